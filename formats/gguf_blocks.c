/* gguf_blocks.c - codes into blocks, eight bytes of codes at a time.
 *
 * Codes are bytes; shifts of a whole 64-bit word stay inside their bytes because codes are small. A byte's place in the
 * word does not matter but for gather_bit(): little-endian hosts only, as everything that stores words.
 * Invariant: gguf_holds() and values_check() hold before a block is made, and n z is in its range.
 */
#include "formats/gguf_blocks.h"

#include <string.h>

#include "common/utf8.h"
#include "formats/values.h"

#define EACH(byte) ((uint64_t)(byte) * 0x0101010101010101u)
enum { RUN_GROUPS = 128 };

/* What a group's blocks share. */
struct block_numbers {
	uint16_t d, m;          /* halves: d, and m or dmin */
	uint8_t minimum;        /* mn of super-blocks */
	uint8_t parts, shift;   /* signed: stored code = parts * q + shift, modulo 256 */
};

typedef uint8_t *block_fn(const uint8_t *codes, const struct block_numbers *n, uint8_t *out);

/* --- eight at a time ----------------------------------------------------------------------------- */

static inline uint64_t load(const uint8_t *bytes)
{
	uint64_t x;

	memcpy(&x, bytes, 8);
	return x;
}

static inline uint8_t *store(uint8_t *out, uint64_t x)
{
	memcpy(out, &x, 8);
	return out + 8;
}

static inline uint8_t *store_half(uint8_t *out, uint16_t half)
{
	memcpy(out, &half, 2);
	return out + 2;
}

/* Bit `bit` of each of eight bytes as one byte, the first byte's lowest. */
static inline uint8_t gather_bit(uint64_t x, int bit)
{
	return (uint8_t)(((x >> bit & EACH(1)) * 0x0102040810204080u) >> 56);
}

/* parts * q + shift in each byte. */
static inline uint64_t moved(uint64_t x, const struct block_numbers *n)
{
	const uint64_t shift = EACH(n->shift);

	x *= n->parts;
	return ((x & EACH(0x7f)) + (shift & EACH(0x7f))) ^ ((x ^ shift) & EACH(0x80));
}

/* --- blocks of 32 -------------------------------------------------------------------------------- */

static inline void nibbles(const uint64_t x[4], uint8_t *out)
{
	store(out, (x[0] & EACH(15)) | (x[2] & EACH(15)) << 4);
	store(out + 8, (x[1] & EACH(15)) | (x[3] & EACH(15)) << 4);
}

static inline uint8_t *fifth_bits(const uint64_t x[4], uint8_t *out)
{
	for (int i = 0; i < 4; i++)
		*out++ = gather_bit(x[i], 4);
	return out;
}

static inline void load_block(const uint8_t *codes, uint64_t x[4])
{
	for (int i = 0; i < 4; i++)
		x[i] = load(codes + 8 * i);
}

static inline void load_moved(const uint8_t *codes, const struct block_numbers *n, uint64_t x[4])
{
	for (int i = 0; i < 4; i++)
		x[i] = moved(load(codes + 8 * i), n);
}

static uint8_t *put_q4_0(const uint8_t *codes, const struct block_numbers *n, uint8_t *out)
{
	uint64_t x[4];

	load_moved(codes, n, x);
	out = store_half(out, n->d);
	nibbles(x, out);
	return out + 16;
}

static uint8_t *put_q4_1(const uint8_t *codes, const struct block_numbers *n, uint8_t *out)
{
	uint64_t x[4];

	load_block(codes, x);
	out = store_half(store_half(out, n->d), n->m);
	nibbles(x, out);
	return out + 16;
}

static uint8_t *put_q5_0(const uint8_t *codes, const struct block_numbers *n, uint8_t *out)
{
	uint64_t x[4];

	load_moved(codes, n, x);
	out = fifth_bits(x, store_half(out, n->d));
	nibbles(x, out);
	return out + 16;
}

static uint8_t *put_q5_1(const uint8_t *codes, const struct block_numbers *n, uint8_t *out)
{
	uint64_t x[4];

	load_block(codes, x);
	out = fifth_bits(x, store_half(store_half(out, n->d), n->m));
	nibbles(x, out);
	return out + 16;
}

static uint8_t *put_q8_0(const uint8_t *codes, const struct block_numbers *n, uint8_t *out)
{
	out = store_half(out, n->d);
	for (int i = 0; i < 32; i += 8)
		out = store(out, moved(load(codes + i), n));
	return out;
}

/* --- super-blocks of 256 ------------------------------------------------------------------------- */

static uint8_t *put_q2_k(const uint8_t *codes, const struct block_numbers *n, uint8_t *out)
{
	memset(out, 1 | n->minimum << 4, 16);
	out += 16;
	for (int half = 0; half < 256; half += 128)
		for (int l = half; l < half + 32; l += 8)
			out = store(out, load(codes + l) | load(codes + l + 32) << 2 | load(codes + l + 64) << 4 |
				    load(codes + l + 96) << 6);
	return store_half(store_half(out, n->d), n->m);
}

/* Sub-scales are stored 32 too high: 33, low bits 1, high bits 2. */
static uint8_t *put_q3_k(const uint8_t *codes, const struct block_numbers *n, uint8_t *out)
{
	for (int l = 0; l < 32; l += 8) {
		uint64_t high = 0;

		for (int k = 0; k < 8; k++)
			high |= (moved(load(codes + l + 32 * k), n) >> 2 & EACH(1)) << k;
		out = store(out, high);
	}
	for (int half = 0; half < 256; half += 128)
		for (int l = half; l < half + 32; l += 8) {
			uint64_t low = 0;

			for (int k = 0; k < 4; k++)
				low |= (moved(load(codes + l + 32 * k), n) & EACH(3)) << 2 * k;
			out = store(out, low);
		}
	memset(out, 0x11, 8);
	memset(out + 8, 0xaa, 4);
	return store_half(out + 12, n->d);
}

/* Eight sub-scales of 1 and eight minima of 6 bits. */
static inline uint8_t *put_k_head(const struct block_numbers *n, uint8_t *out)
{
	out = store_half(store_half(out, n->d), n->m);
	memset(out, 1, 4);
	memset(out + 4, (n->minimum & 63) | n->minimum >> 4 << 6, 4);
	memset(out + 8, 1 | (n->minimum & 15) << 4, 4);
	return out + 12;
}

static inline uint8_t *put_k_nibbles(const uint8_t *codes, uint8_t *out)
{
	for (int pair = 0; pair < 256; pair += 64)
		for (int l = pair; l < pair + 32; l += 8)
			out = store(out, (load(codes + l) & EACH(15)) | (load(codes + l + 32) & EACH(15)) << 4);
	return out;
}

static uint8_t *put_q4_k(const uint8_t *codes, const struct block_numbers *n, uint8_t *out)
{
	return put_k_nibbles(codes, put_k_head(n, out));
}

static uint8_t *put_q5_k(const uint8_t *codes, const struct block_numbers *n, uint8_t *out)
{
	out = put_k_head(n, out);
	for (int l = 0; l < 32; l += 8) {
		uint64_t high = 0;

		for (int k = 0; k < 8; k++)
			high |= (load(codes + l + 32 * k) >> 4 & EACH(1)) << k;
		out = store(out, high);
	}
	return put_k_nibbles(codes, out);
}

static uint8_t *put_q6_k(const uint8_t *codes, const struct block_numbers *n, uint8_t *out)
{
	uint8_t *high = out + 128;

	for (int half = 0; half < 256; half += 128, out += 64)
		for (int l = 0; l < 32; l += 8) {
			uint64_t x[4], top = 0;

			for (int t = 0; t < 4; t++) {
				x[t] = moved(load(codes + half + l + 32 * t), n);
				top |= (x[t] >> 4 & EACH(3)) << 2 * t;
			}
			store(out + l, (x[0] & EACH(15)) | (x[2] & EACH(15)) << 4);
			store(out + l + 32, (x[1] & EACH(15)) | (x[3] & EACH(15)) << 4);
			high = store(high, top);
		}
	memset(high, 1, 16);
	return store_half(high + 16, n->d);
}

/* --- modules ------------------------------------------------------------------------------------- */

struct writer {
	enum gguf_type type;
	block_fn *put;
	int bias;               /* stored code of 0 in a signed type */
};

static const struct writer writers[] = {
	{ GGUF_Q4_0, put_q4_0, 8 },
	{ GGUF_Q4_1, put_q4_1, 0 },
	{ GGUF_Q5_0, put_q5_0, 16 },
	{ GGUF_Q5_1, put_q5_1, 0 },
	{ GGUF_Q8_0, put_q8_0, 0 },
	{ GGUF_Q2_K, put_q2_k, 0 },
	{ GGUF_Q3_K, put_q3_k, 4 },
	{ GGUF_Q4_K, put_q4_k, 0 },
	{ GGUF_Q5_K, put_q5_k, 0 },
	{ GGUF_Q6_K, put_q6_k, 32 },
};

struct encoder {
	const struct codec_module *m;
	const struct codec_values *v;
	const struct writer *to;
	enum gguf_way way;
	unsigned parts;         /* n; 0 = zero-points are any numbers */
	unsigned low, high;     /* n z */
};

static const struct writer *writer_of(enum gguf_type type)
{
	for (size_t i = 0; i < sizeof(writers) / sizeof(writers[0]); i++)
		if (writers[i].type == type)
			return &writers[i];
	return NULL;
}

static void set_range(struct encoder *e)
{
	const unsigned top = (1u << e->m->settings.bits) - 1;

	e->parts = codec_zero_parts(e->m);
	e->low = e->m->settings.symmetric ? (top + 1) / 2 : 0;
	e->high = e->m->settings.symmetric ? e->low : e->parts * top;
}

struct run_numbers { uint16_t d[RUN_GROUPS], m[RUN_GROUPS]; uint8_t fields[RUN_GROUPS]; };

/* The numbers of some groups, all exact. */
static int read_numbers(const struct encoder *e, struct group_run run, struct run_numbers *n, struct err *err)
{
	const float parts = e->parts ? (float)e->parts : 1;

	if (values_halves(e->m, e->v, run, e->way == GGUF_WAY_SIGNED ? parts : 1, n->d, err) != 0)
		return -1;
	if (e->parts == 0)
		return values_half_offsets(e->m, e->v, run, n->m, err);
	if (values_fields(e->m, e->v, run, e->parts, e->low, e->high, n->fields, err) != 0)
		return -1;
	return e->way == GGUF_WAY_SUPER ? values_halves(e->m, e->v, run, parts, n->m, err) : 0;
}

static uint16_t negated(uint16_t half)
{
	return half ? half ^ 0x8000 : 0;
}

static struct block_numbers numbers_of(const struct encoder *e, const struct run_numbers *run, size_t i)
{
	struct block_numbers n = { .d = run->d[i], .minimum = 1, .parts = (uint8_t)e->parts };

	switch (e->way) {
	case GGUF_WAY_OFFSET:
		n.m = run->m[i];
		break;
	case GGUF_WAY_SUPER:
		n.m = e->parts ? run->m[i] : negated(run->m[i]);
		if (e->parts)
			n.minimum = run->fields[i];
		break;
	case GGUF_WAY_SIGNED:
		n.shift = (uint8_t)(e->to->bias - run->fields[i]);
		break;
	}
	return n;
}

static int put_run(const struct encoder *e, struct group_run run, uint8_t *out, struct err *err)
{
	const size_t block = gguf_block_elements(e->to->type), group = e->v->group;
	const uint8_t *codes = e->v->codes + run.row * e->v->cols + run.first * group;
	struct run_numbers numbers;

	if (read_numbers(e, run, &numbers, err) != 0)
		return -1;
	for (size_t i = 0; i < run.count; i++) {
		const struct block_numbers n = numbers_of(e, &numbers, i);

		for (size_t j = 0; j < group; j += block, codes += block)
			out = e->to->put(codes, &n, out);
	}
	return 0;
}

size_t gguf_row_source(size_t rows, size_t heads, size_t row)
{
	size_t size, in_head;

	if (heads == 0)
		return row;
	size = rows / heads;
	in_head = row % size;
	return row - in_head + in_head % 2 * (size / 2) + in_head / 2;
}

static int check_call(const struct codec_module *m, enum gguf_type type, size_t heads, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	if (m->settings.skip || !gguf_holds(m, type))
		return err_set(err, ERR_REFUSED, "%s: gguf type %s does not hold this module's settings",
			       utf8_show(shown, m->name), gguf_type_name(type));
	if (heads && m->rows % (2 * heads) != 0)
		return err_set(err, ERR_REFUSED, "%s: %llu rows are not %zu heads of an even size",
			       utf8_show(shown, m->name), (unsigned long long)m->rows, heads);
	return 0;
}

int gguf_encode(const struct codec_module *m, enum gguf_type type, const struct codec_values *v, size_t heads,
		void *out, struct err *err)
{
	struct encoder e = { .m = m, .v = v, .to = writer_of(type), .way = gguf_way_of(type) };
	size_t groups, row_bytes, group_bytes;

	if (check_call(m, type, heads, err) != 0 || values_check(m, v, err) != 0)
		return -1;
	set_range(&e);
	groups = v->cols / v->group;
	row_bytes = gguf_row_bytes(type, v->cols);
	group_bytes = gguf_row_bytes(type, v->group);
	for (size_t r = 0; r < v->rows; r++) {
		uint8_t *row = (uint8_t *)out + r * row_bytes;
		const size_t source = gguf_row_source(v->rows, heads, r);

		for (size_t g = 0; g < groups; g += RUN_GROUPS) {
			const size_t left = groups - g;
			const struct group_run run = { source, g, left < RUN_GROUPS ? left : RUN_GROUPS };

			if (put_run(&e, run, row + g * group_bytes, err) != 0)
				return -1;
		}
	}
	return 0;
}
