/* half.h - conversion between float32 and the 16-bit float types of checkpoints.
 *
 * Rounding to nearest, ties to even, subnormals kept, NaN stays a quiet NaN,
 * overflow becomes infinity (IEEE 754). Array forms: `n` elements, any alignment.
 */
#ifndef QUARRY_COMMON_HALF_H
#define QUARRY_COMMON_HALF_H

#include <stddef.h>
#include <stdint.h>

float bf16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float value);
float f16_to_f32(uint16_t bits);
uint16_t f32_to_f16(float value);

void bf16_to_f32_array(const void *src, float *dst, size_t n);
void f16_to_f32_array(const void *src, float *dst, size_t n);
void f32_to_bf16_array(const float *src, void *dst, size_t n);
void f32_to_f16_array(const float *src, void *dst, size_t n);

#endif
