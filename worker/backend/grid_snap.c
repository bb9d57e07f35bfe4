/* Rounding of (s, z) to what formats store; see grid_snap.h.
 *
 * Containers hold s / n for codes multiplied by n (quarters of z make 2-bit codes 4-bit ones): small scales are halves
 * after that division too, which matters among the subnormal ones only. */
#include "worker/backend/grid_snap.h"

#include <math.h>

#include "common/half.h"

/* Codes of fewer bits travel in containers of 4. */
enum { CONTAINER_BITS = 4 };

bool grid_binds_zero(const struct grid *grid)
{
	return grid->symmetric || grid->integer_zero || grid->zero_parts > 0;
}

double grid_zero(const struct grid *grid, double z)
{
	const int levels = 1 << grid->bits;
	const double parts = grid->integer_zero ? 1 : grid->zero_parts;

	if (grid->symmetric)
		return levels / 2;
	if (parts > 0)
		return fmin(fmax(nearbyint(z * parts), 0), parts * levels - 1) / parts;
	return z;
}

/* The half nearest to `value`, or `value` itself when that is beyond the halves. */
static float near_half(float value)
{
	const float half = f16_to_f32(f32_to_f16(value));

	return isfinite(half) ? half : value;
}

static float divisor(const struct grid *grid)
{
	const unsigned container = grid->bits < CONTAINER_BITS ? 1u << (CONTAINER_BITS - grid->bits) : 1;

	if (!grid_binds_zero(grid))
		return 1;
	return (float)(grid->zero_parts > container ? grid->zero_parts : container);
}

void grid_snap(const struct grid *grid, float *s, float *z)
{
	const float least = 0x1p-24f, by = divisor(grid);

	if (!grid->symmetric)
		*z = (float)grid_zero(grid, *z);
	if (!grid->half)
		return;
	*s = near_half(fmaxf(*s / by, least)) * by;
	if (!grid_binds_zero(grid))
		*z = near_half(*s * *z) / *s;
}

void grid_snap_all(const struct grid *grid, float *s, float *z, size_t n)
{
	for (size_t i = 0; i < n; i++)
		grid_snap(grid, &s[i], &z[i]);
}
