/* embedding.c - rows of an embedding or output head in 8, 6 or 4 bits, each group of columns by itself.
 *
 * In 8 bits the arithmetic is that of gguf_encode_floats() for Q8_0, step by step, so that the two agree to the bit. A
 * group whose scale would be 0 has scale 1: all its codes are those of one value then.
 */
#include "formats/embedding.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "common/half.h"
#include "common/utf8.h"
#include "formats/gguf_blocks.h"
#include "formats/gguf_read.h"

enum { GROUP = 32, LANES = 8, SUPER = 256, SUPER_BYTES = 210, MIDDLE = 128, TOP_8 = 127, TOP_4 = 15 };

#define HALF_LARGEST 65504.0f
/* 128 scales are still a half: the offset that mlx stores. */
#define LARGEST_8 (TOP_8 * (HALF_LARGEST / MIDDLE))

/* --- what there is ------------------------------------------------------------------------------- */

bool embedding_bits_known(int64_t bits)
{
	return bits == 16 || bits == 8 || bits == 6 || bits == 4;
}

void embedding_settings(int bits, struct module_settings *out)
{
	*out = (struct module_settings){
		.bits = bits, .group_size = bits == 6 ? GROUP / 2 : GROUP, .method = METHOD_MINMAX,
		.zero_point = ZERO_FLOAT, .symmetric = bits != 4, .rounding = ROUND_NEAREST,
	};
}

/* Columns must be a multiple of this. */
static uint64_t block_of(int bits)
{
	return bits == 16 ? 1 : bits == 6 ? SUPER : GROUP;
}

int embedding_check(int bits, uint64_t cols, const char *option, struct problems *problems)
{
	if (embedding_bits_known(bits) && cols % block_of(bits) == 0)
		return 0;
	if (!problems)
		return -1;
	if (!embedding_bits_known(bits))
		problems_add(problems, "\"%s\" is %d; it must be 16, 8, 6 or 4", option, bits);
	else
		problems_add(problems, "\"%s\" %d needs a multiple of %" PRIu64 " columns, and the model has %" PRIu64 "; %s",
			     option, bits, block_of(bits), cols, cols % GROUP == 0 ? "16, 8 and 4 fit" : "16 fits");
	return -1;
}

/* --- formats ------------------------------------------------------------------------------------- */

/* Formats that hold tables in fewer than 16 bits, as `fits` says; the others hold the source's values alone. */
static const struct holder { const char *format; bool holds_6; const char *fits; } holders[] = {
	{ "mlx", false, "16, 8 or 4" }, { "gguf", true, "16, 8, 6 or 4" },
};

/* Their tables are floats: any will do. */
static bool holds_floats(const char *format)
{
	return strcmp(format, "packed") == 0 || strncmp(format, "dense", 5) == 0;
}

int embedding_check_format(const char *format, int bits, const char *option, struct problems *problems)
{
	const struct holder *h = NULL;

	for (size_t i = 0; i < sizeof(holders) / sizeof(holders[0]); i++)
		if (strcmp(holders[i].format, format) == 0)
			h = &holders[i];
	if (bits == 16 || holds_floats(format) || (h && (bits != 6 || h->holds_6)))
		return 0;
	if (problems)
		problems_add(problems, "format %s does not hold \"%s\" %d; ask for \"%s\" %s, or for another format: %s "
			     "%d bits", format, option, bits, option, h ? h->fits : "16",
			     bits == 6 ? "gguf and dense hold" : "mlx, gguf and dense hold", bits);
	return -1;
}

/* --- one group ----------------------------------------------------------------------------------- */

/* `low` + code steps of `scale`. */
struct group { float scale, low; };

/* The nearest integer of low .. high, ties to even: adding 1.5 * 2^23 leaves no room for fractions. Plain comparisons
 * with numbers the compiler does not know, so that loops over it become vector code. */
static inline float nearest(float x, float low, float high)
{
	const float big = 0x1.8p23f;

	x = x > low ? x : low;
	x = x < high ? x : high;
	return (x + big) - big;
}

static float to_half(float value)
{
	return f16_to_f32(f32_to_f16(value));
}

/* In lanes, which become one vector: a running minimum would be one number after the other. */
static void range_of(const float *x, float *least, float *most)
{
	float low[LANES], high[LANES];

	memcpy(low, x, sizeof(low));
	memcpy(high, x, sizeof(high));
	for (int i = LANES; i < GROUP; i += LANES)
		for (int k = 0; k < LANES; k++) {
			low[k] = x[i + k] < low[k] ? x[i + k] : low[k];
			high[k] = x[i + k] > high[k] ? x[i + k] : high[k];
		}
	*least = low[0];
	*most = high[0];
	for (int k = 1; k < LANES; k++) {
		*least = low[k] < *least ? low[k] : *least;
		*most = high[k] > *most ? high[k] : *most;
	}
}

static struct group fit_group(int bits, const float *x)
{
	float least, most, low;

	range_of(x, &least, &most);
	if (bits == 8)
		return (struct group){ to_half((most > -least ? most : -least) / TOP_8), 0 };
	low = to_half(least) + 0.0f; /* never -0 */
	return (struct group){ most > low ? to_half((most - low) / TOP_4) : 0, low };
}

/* q: the codes, in 8 bits without their middle, -128 .. 127; zeros where the scale is 0. */
static struct group fit(int bits, const float *x, float *q)
{
	const struct group g = fit_group(bits, x);
	const float low = bits == 8 ? -MIDDLE : 0, high = bits == 8 ? TOP_8 : TOP_4;

	if (g.scale > 0)
		for (int i = 0; i < GROUP; i++)
			q[i] = nearest((x[i] - g.low) / g.scale, low, high);
	else
		memset(q, 0, GROUP * sizeof(*q));
	return g;
}

/* --- rows ---------------------------------------------------------------------------------------- */

static int refuse_value(int bits, const char *name, uint64_t row, size_t col, float value, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	return err_set(err, ERR_NUMERIC, "%s: row %" PRIu64 ", column %zu is %g; %d bits hold numbers to %g",
		       utf8_show(shown, name), row, col, (double)value, bits,
		       (double)(bits == 8 ? LARGEST_8 : HALF_LARGEST));
}

static int check_row(int bits, const char *name, uint64_t row, const float *x, size_t cols, struct err *err)
{
	const float most = bits == 8 ? LARGEST_8 : HALF_LARGEST;
	int bad = 0;

	for (size_t i = 0; i < cols; i++)
		bad |= !(fabsf(x[i]) <= most);
	for (size_t i = 0; bad && i < cols; i++)
		if (!(fabsf(x[i]) <= most))
			return refuse_value(bits, name, row, i, x[i], err);
	return 0;
}

static int check_shape(int bits, const char *name, size_t cols, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	if (embedding_check(bits, cols, "", NULL) == 0)
		return 0;
	return err_set(err, ERR_REFUSED, "%s: rows of %zu columns are not stored in %d bits", utf8_show(shown, name), cols,
		       bits);
}

int embedding_quantize(int bits, const char *name, uint64_t row, const float *values, size_t cols, uint8_t *codes,
		       float *scales, float *zeros, struct err *err)
{
	const float middle = bits == 8 ? MIDDLE : 0;

	if (check_shape(bits == 8 || bits == 4 ? bits : -1, name, cols, err) != 0 ||
	    check_row(bits, name, row, values, cols, err) != 0)
		return -1;
	for (size_t at = 0, n = 0; at < cols; at += GROUP, n++) {
		float q[GROUP];
		const struct group g = fit(bits, values + at, q);

		scales[n] = g.scale > 0 ? g.scale : 1;
		zeros[n] = bits == 8 ? MIDDLE : 0 - g.low / scales[n];
		for (int i = 0; i < GROUP; i++)
			codes[at + (size_t)i] = (uint8_t)(q[i] + middle);
	}
	return 0;
}

static void round_groups(int bits, float *x, size_t cols)
{
	for (size_t at = 0; at < cols; at += GROUP) {
		float q[GROUP];
		const struct group g = fit(bits, x + at, q);

		for (int i = 0; i < GROUP; i++)
			x[at + (size_t)i] = q[i] * g.scale + g.low;
	}
}

static int round_super(const char *name, float *x, size_t cols, struct err *err)
{
	for (size_t at = 0; at < cols; at += SUPER) {
		_Alignas(2) uint8_t block[SUPER_BYTES];

		if (gguf_encode_floats(name, GGUF_Q6_K, x + at, 1, SUPER, block, err) != 0)
			return -1;
		gr_decode(GGUF_Q6_K, block, 1, x + at);
	}
	return 0;
}

int embedding_round(int bits, const char *name, uint64_t row, float *values, size_t rows, size_t cols, struct err *err)
{
	if (check_shape(bits, name, cols, err) != 0)
		return -1;
	for (size_t r = 0; bits != 16 && r < rows; r++) {
		float *x = values + r * cols;

		if (check_row(bits, name, row + r, x, cols, err) != 0)
			return -1;
		if (bits != 6)
			round_groups(bits, x, cols);
		else if (round_super(name, x, cols, err) != 0)
			return -1;
	}
	return 0;
}
