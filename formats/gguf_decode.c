/* gguf_decode.c - blocks to numbers, element by element, as the format is described: index e of a block, its bits, its
 * scale. Plain on purpose: this is what the encoder is held against. Products and sums in float32. */
#include <string.h>

#include "common/half.h"
#include "formats/gguf_read.h"

typedef float element_fn(const unsigned char *block, unsigned e);

static float half_at(const unsigned char *bytes)
{
	return f16_to_f32((uint16_t)(bytes[0] | bytes[1] << 8));
}

/* --- plain numbers ------------------------------------------------------------------------------- */

static float f32_element(const unsigned char *block, unsigned e)
{
	float value;

	(void)e;
	memcpy(&value, block, sizeof(value));
	return value;
}

static float f16_element(const unsigned char *block, unsigned e)
{
	(void)e;
	return half_at(block);
}

static float bf16_element(const unsigned char *block, unsigned e)
{
	(void)e;
	return bf16_to_f32((uint16_t)(block[0] | block[1] << 8));
}

/* --- blocks of 32 -------------------------------------------------------------------------------- */

/* Low four bits: byte e % 16, the high nibble from e = 16 on. */
static int nibble(const unsigned char *qs, unsigned e)
{
	return e < 16 ? qs[e] & 15 : qs[e - 16] >> 4;
}

/* Bit e of a 32-bit word. */
static int fifth(const unsigned char *qh, unsigned e)
{
	return (qh[e / 8] >> e % 8 & 1) << 4;
}

static float q4_0_element(const unsigned char *b, unsigned e)
{
	return (float)(nibble(b + 2, e) - 8) * half_at(b);
}

static float q4_1_element(const unsigned char *b, unsigned e)
{
	return (float)nibble(b + 4, e) * half_at(b) + half_at(b + 2);
}

static float q5_0_element(const unsigned char *b, unsigned e)
{
	return (float)((nibble(b + 6, e) | fifth(b + 2, e)) - 16) * half_at(b);
}

static float q5_1_element(const unsigned char *b, unsigned e)
{
	return (float)(nibble(b + 8, e) | fifth(b + 4, e)) * half_at(b) + half_at(b + 2);
}

static float q8_0_element(const unsigned char *b, unsigned e)
{
	return (float)(signed char)b[2 + e] * half_at(b);
}

/* --- super-blocks of 256 ------------------------------------------------------------------------- */

/* Two bits of element e: byte 32 H + r % 32, shift 2 (r / 32), where e = 128 H + r. */
static int two_bits(const unsigned char *qs, unsigned e)
{
	const unsigned high = e / 128, r = e % 128;

	return qs[32 * high + r % 32] >> 2 * (r / 32) & 3;
}

static float q2_k_element(const unsigned char *b, unsigned e)
{
	const unsigned char scale = b[e / 16];

	return half_at(b + 80) * (float)(scale & 15) * (float)two_bits(b + 16, e) - half_at(b + 82) * (float)(scale >> 4);
}

static float q3_k_element(const unsigned char *b, unsigned e)
{
	const unsigned char *hmask = b, *qs = b + 32, *scales = b + 96;
	const unsigned j = e / 16;
	const int low = j < 8 ? scales[j] & 15 : scales[j - 8] >> 4;
	const int top = scales[8 + j % 4] >> 2 * (j / 4) & 3;
	const int q = two_bits(qs, e) - (hmask[e % 32] >> e / 32 & 1 ? 0 : 4);

	return half_at(b + 108) * (float)((low | top << 4) - 32) * (float)q;
}

/* Scale and minimum j = 0..7 of Q4_K and Q5_K, 6 bits each. */
static int k_scale(const unsigned char *s, unsigned j)
{
	return j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
}

static int k_minimum(const unsigned char *s, unsigned j)
{
	return j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
}

static int k_nibble(const unsigned char *qs, unsigned e)
{
	const unsigned char byte = qs[32 * (e / 64) + e % 32];

	return e / 32 % 2 ? byte >> 4 : byte & 15;
}

static float k_value(const unsigned char *b, unsigned e, int q)
{
	return half_at(b) * (float)k_scale(b + 4, e / 32) * (float)q - half_at(b + 2) * (float)k_minimum(b + 4, e / 32);
}

static float q4_k_element(const unsigned char *b, unsigned e)
{
	return k_value(b, e, k_nibble(b + 16, e));
}

static float q5_k_element(const unsigned char *b, unsigned e)
{
	return k_value(b, e, k_nibble(b + 48, e) | (b[16 + e % 32] >> e / 32 & 1) << 4);
}

static float q6_k_element(const unsigned char *b, unsigned e)
{
	const unsigned high = e / 128, t = e % 128 / 32, l = e % 32;
	const int low = b[64 * high + 32 * (t & 1) + l] >> 4 * (t >> 1) & 15;
	const int top = b[128 + 32 * high + l] >> 2 * t & 3;

	return half_at(b + 208) * (float)(signed char)b[192 + e / 16] * (float)((low | top << 4) - 32);
}

/* --- types --------------------------------------------------------------------------------------- */

static const struct kind {
	uint32_t type;
	const char *name;
	uint32_t elements, bytes;
	element_fn *element;
} kinds[] = {
	{ 0, "F32", 1, 4, f32_element },
	{ 1, "F16", 1, 2, f16_element },
	{ 2, "Q4_0", 32, 2 + 16, q4_0_element },
	{ 3, "Q4_1", 32, 4 + 16, q4_1_element },
	{ 6, "Q5_0", 32, 2 + 4 + 16, q5_0_element },
	{ 7, "Q5_1", 32, 4 + 4 + 16, q5_1_element },
	{ 8, "Q8_0", 32, 2 + 32, q8_0_element },
	{ 10, "Q2_K", 256, 16 + 64 + 4, q2_k_element },
	{ 11, "Q3_K", 256, 32 + 64 + 12 + 2, q3_k_element },
	{ 12, "Q4_K", 256, 4 + 12 + 128, q4_k_element },
	{ 13, "Q5_K", 256, 4 + 12 + 32 + 128, q5_k_element },
	{ 14, "Q6_K", 256, 128 + 64 + 16 + 2, q6_k_element },
	{ 30, "BF16", 1, 2, bf16_element },
};

static const struct kind *kind_of(uint32_t type)
{
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (kinds[i].type == type)
			return &kinds[i];
	return NULL;
}

const char *gr_type_name(uint32_t type)
{
	const struct kind *k = kind_of(type);

	return k ? k->name : NULL;
}

bool gr_type_block(uint32_t type, uint32_t *elements, uint32_t *bytes)
{
	const struct kind *k = kind_of(type);

	if (!k)
		return false;
	*elements = k->elements;
	*bytes = k->bytes;
	return true;
}

void gr_decode(uint32_t type, const void *bytes, size_t blocks, float *out)
{
	const struct kind *k = kind_of(type);
	const unsigned char *block = bytes;

	for (size_t i = 0; i < blocks; i++, block += k->bytes)
		for (unsigned e = 0; e < k->elements; e++)
			*out++ = k->element(block, e);
}
