#include "common/half.h"

#include <stdbool.h>
#include <string.h>

static float f32_of_bits(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

static uint32_t bits_of_f32(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

float bf16_to_f32(uint16_t bits)
{
	return f32_of_bits((uint32_t)bits << 16);
}

uint16_t f32_to_bf16(float value)
{
	uint32_t bits = bits_of_f32(value);

	if ((bits & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(bits >> 16 | 0x40);
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* All bits set where the condition holds. */
static inline uint32_t mask_of(bool holds)
{
	return 0u - (uint32_t)holds;
}

/* Every case is computed and masks choose one: a loop over it becomes vector code. */
static inline uint32_t f16_widen(uint32_t bits)
{
	const uint32_t sign = (bits & 0x8000) << 16, magnitude = (bits & 0x7fff) << 13;
	const uint32_t subnormal = mask_of(magnitude < 0x00800000), special = mask_of(magnitude >= 0x0f800000);
	const uint32_t quiet = mask_of(magnitude > 0x0f800000) & 0x400000;
	/* Below 2^-14, with mantissa m: m 2^-24 is 2^-14 (1 + m 2^-10) less 2^-14, exactly. */
	const uint32_t small = bits_of_f32(f32_of_bits(0x38800000 + magnitude) - 0x1p-14f);

	return sign | (small & subnormal) |
	       ((magnitude + 0x38000000 + (special & 0x38000000)) & ~subnormal) | quiet;
}

float f16_to_f32(uint16_t bits)
{
	return f32_of_bits(f16_widen(bits));
}

uint16_t f32_to_f16(float value)
{
	uint32_t bits = bits_of_f32(value);
	uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
	uint32_t magnitude = bits & 0x7fffffff;

	if (magnitude > 0x7f800000)
		return sign | 0x7e00 | (uint16_t)(magnitude >> 13 & 0x3ff);
	if (magnitude >= 0x477ff000) /* rounds to 65536 or more */
		return sign | 0x7c00;
	if (magnitude < 0x38800000) { /* below 2^-14: adding 0.5 leaves multiples of 2^-24 */
		float shifted = f32_of_bits(magnitude) + 0.5f;

		return sign | (uint16_t)(bits_of_f32(shifted) - 0x3f000000);
	}
	return sign | (uint16_t)((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

void bf16_to_f32_array(const void *src, float *dst, size_t n)
{
	const unsigned char *bytes = src;

	for (size_t i = 0; i < n; i++) {
		uint16_t bits;

		memcpy(&bits, bytes + 2 * i, 2);
		dst[i] = bf16_to_f32(bits);
	}
}

void f16_to_f32_array(const void *src, float *dst, size_t n)
{
	const unsigned char *bytes = src;

	for (size_t i = 0; i < n; i++) {
		uint16_t bits;

		memcpy(&bits, bytes + 2 * i, 2);
		dst[i] = f16_to_f32(bits);
	}
}

void f32_to_bf16_array(const float *src, void *dst, size_t n)
{
	unsigned char *bytes = dst;

	for (size_t i = 0; i < n; i++) {
		uint16_t bits = f32_to_bf16(src[i]);

		memcpy(bytes + 2 * i, &bits, 2);
	}
}

void f32_to_f16_array(const float *src, void *dst, size_t n)
{
	unsigned char *bytes = dst;

	for (size_t i = 0; i < n; i++) {
		uint16_t bits = f32_to_f16(src[i]);

		memcpy(bytes + 2 * i, &bits, 2);
	}
}
