/* stored_blocks.c - GGUF blocks to codes, scales and offsets, as the format is described (docs/formats.md).
 *
 * value = scale * code + offset in every type: the signed ones store code - middle, their offset is -scale * middle.
 * Scales are products of a half and a small integer, exact in float64. Nothing is shared with the encoder.
 */
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "common/half.h"
#include "common/utf8.h"
#include "formats/gguf_read.h"
#include "formats/stored_parts.h"

struct group { double scale, offset; };

struct layout {
	uint32_t type;
	int bits;
	unsigned group;
	int middle;             /* zero-point of the signed types, else -1 */
	struct group (*scale)(const unsigned char *block, unsigned j);
	unsigned (*code)(const unsigned char *block, unsigned e);
};

static double half_at(const unsigned char *b)
{
	return (double)f16_to_f32((uint16_t)(b[0] | b[1] << 8));
}

/* --- blocks of 32 -------------------------------------------------------------------------------- */

static struct group scale_only(const unsigned char *b, unsigned j)
{
	(void)j;
	return (struct group){ half_at(b), 0 };
}

static struct group scale_and_offset(const unsigned char *b, unsigned j)
{
	(void)j;
	return (struct group){ half_at(b), half_at(b + 2) };
}

static unsigned four(const unsigned char *qs, unsigned e)
{
	return e < 16 ? qs[e] & 15u : qs[e - 16] >> 4;
}

static unsigned q4_0_code(const unsigned char *b, unsigned e)
{
	return four(b + 2, e);
}

static unsigned q4_1_code(const unsigned char *b, unsigned e)
{
	return four(b + 4, e);
}

static unsigned q5_0_code(const unsigned char *b, unsigned e)
{
	return four(b + 6, e) | (b[2 + e / 8] >> e % 8 & 1u) << 4;
}

static unsigned q5_1_code(const unsigned char *b, unsigned e)
{
	return four(b + 8, e) | (b[4 + e / 8] >> e % 8 & 1u) << 4;
}

static unsigned q8_0_code(const unsigned char *b, unsigned e)
{
	return b[2 + e] ^ 0x80u;
}

/* --- blocks of 256 ------------------------------------------------------------------------------- */

/* Eight groups of 32: scales and minima of 6 bits, the first four of each whole in bytes 0..3 and 4..7, the others in nibbles of
 * bytes 8..11 with their upper bits above the first ones. */
static struct group k_scale(const unsigned char *b, unsigned j)
{
	const unsigned char *s = b + 4;
	const unsigned sc = j < 4 ? s[j] & 63u : (s[j + 4] & 15u) | (s[j - 4] >> 6) << 4;
	const unsigned mn = j < 4 ? s[j + 4] & 63u : (unsigned)(s[j + 4] >> 4) | (s[j] >> 6) << 4;

	return (struct group){ half_at(b) * sc, -half_at(b + 2) * mn };
}

static struct group q2_k_scale(const unsigned char *b, unsigned j)
{
	return (struct group){ half_at(b + 80) * (b[j] & 15), -half_at(b + 82) * (b[j] >> 4) };
}

static struct group q3_k_scale(const unsigned char *b, unsigned j)
{
	const unsigned char *s = b + 96;
	const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4, top = s[8 + j % 4] >> 2 * (j / 4) & 3;

	return (struct group){ half_at(b + 108) * ((low | top << 4) - 32), 0 };
}

static struct group q6_k_scale(const unsigned char *b, unsigned j)
{
	return (struct group){ half_at(b + 208) * (signed char)b[192 + j], 0 };
}

/* Two bits: 32 bytes hold 128 codes, 32 of them per pair of bits. */
static unsigned two(const unsigned char *qs, unsigned e)
{
	return qs[e / 128 * 32 + e % 32] >> e % 128 / 32 * 2 & 3u;
}

static unsigned q2_k_code(const unsigned char *b, unsigned e)
{
	return two(b + 16, e);
}

/* The third bit, from the mask at the front, is clear where 4 is taken away: it is the code's own highest bit. */
static unsigned q3_k_code(const unsigned char *b, unsigned e)
{
	return two(b + 32, e) | (b[e % 32] >> e / 32 & 1u) << 2;
}

static unsigned k_nibble(const unsigned char *qs, unsigned e)
{
	return qs[e / 64 * 32 + e % 32] >> e % 64 / 32 * 4 & 15u;
}

static unsigned q4_k_code(const unsigned char *b, unsigned e)
{
	return k_nibble(b + 16, e);
}

static unsigned q5_k_code(const unsigned char *b, unsigned e)
{
	return k_nibble(b + 48, e) | (b[16 + e % 32] >> e / 32 & 1u) << 4;
}

static unsigned q6_k_code(const unsigned char *b, unsigned e)
{
	const unsigned part = e % 128 / 32, l = e % 32;
	const unsigned low = b[e / 128 * 64 + part % 2 * 32 + l] >> part / 2 * 4 & 15u;

	return low | (b[128 + e / 128 * 32 + l] >> 2 * part & 3u) << 4;
}

static const struct layout layouts[] = {
	{ 2, 4, 32, 8, scale_only, q4_0_code },
	{ 3, 4, 32, -1, scale_and_offset, q4_1_code },
	{ 6, 5, 32, 16, scale_only, q5_0_code },
	{ 7, 5, 32, -1, scale_and_offset, q5_1_code },
	{ 8, 8, 32, 128, scale_only, q8_0_code },
	{ 10, 2, 16, -1, q2_k_scale, q2_k_code },
	{ 11, 3, 16, 4, q3_k_scale, q3_k_code },
	{ 12, 4, 32, -1, k_scale, q4_k_code },
	{ 13, 5, 32, -1, k_scale, q5_k_code },
	{ 14, 6, 16, 32, q6_k_scale, q6_k_code },
};

static const struct layout *layout_of(uint32_t type)
{
	for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++)
		if (layouts[i].type == type)
			return &layouts[i];
	return NULL;
}

bool stored_block_settings(uint32_t type, int *bits, unsigned *group)
{
	const struct layout *l = layout_of(type);

	if (!l)
		return false;
	*bits = l->bits;
	*group = l->group;
	return true;
}

/* --- a tensor ------------------------------------------------------------------------------------ */

static int room(struct stored_module *m, const struct layout *l, size_t rows, size_t cols, struct err *err)
{
	size_t codes, pairs;

	*m = (struct stored_module){
		.settings = { .quantized = true, .bits = l->bits, .group_size = l->group, .symmetric = l->middle >= 0 },
		.rows = rows, .cols = cols, .groups = cols / l->group,
	};
	if (!size_mul(rows, cols, &codes) || !size_mul(rows, m->groups, &pairs))
		return err_set(err, ERR_TOO_LARGE, "a gguf tensor of %zu x %zu is too large", rows, cols);
	m->codes = mem_alloc(codes, 1);
	m->group_of = mem_alloc(cols, sizeof(*m->group_of));
	m->scales = mem_alloc(pairs, sizeof(double));
	m->offsets = mem_alloc(pairs, sizeof(double));
	m->zeros = mem_alloc(pairs, sizeof(double));
	if (!m->codes || !m->group_of || !m->scales || !m->offsets || !m->zeros)
		return err_set_nomem(err, "a gguf tensor");
	for (size_t k = 0; k < cols; k++)
		m->group_of[k] = (uint32_t)(k / l->group);
	return 0;
}

static int put_group(const struct layout *l, const char *name, struct group g, struct stored_module *m, size_t at,
		     struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	if (!isfinite(g.scale) || !isfinite(g.offset))
		return err_set(err, ERR_CORRUPT, "%s: the scale or minimum of row %zu, group %zu is not finite",
			       utf8_show(shown, name), at / m->groups, at % m->groups);
	if (l->middle >= 0)
		g.offset = -(g.scale * l->middle);
	m->scales[at] = g.scale;
	m->offsets[at] = g.offset;
	if (l->middle >= 0)
		m->zeros[at] = l->middle;
	else
		m->zeros[at] = g.scale != 0 ? 0 - g.offset / g.scale : 0;
	return 0;
}

int stored_blocks(uint32_t type, const char *name, const unsigned char *bytes, size_t rows, size_t cols,
		  struct stored_module *out, struct err *err)
{
	const struct layout *l = layout_of(type);
	uint32_t elements, size;
	size_t blocks;

	if (!l || !gr_type_block(type, &elements, &size) || cols % elements != 0)
		return err_set(err, ERR_CORRUPT, "a gguf tensor is not made of whole blocks");
	if (room(out, l, rows, cols, err) != 0) {
		stored_module_deinit(out);
		return -1;
	}
	blocks = rows * (cols / elements);
	for (size_t b = 0; b < blocks; b++, bytes += size) {
		for (unsigned j = 0; j < elements / l->group; j++)
			if (put_group(l, name, l->scale(bytes, j), out, b * (elements / l->group) + j, err) != 0) {
				stored_module_deinit(out);
				return -1;
			}
		for (unsigned e = 0; e < elements; e++)
			out->codes[b * elements + e] = (uint8_t)l->code(bytes, e);
	}
	return 0;
}
