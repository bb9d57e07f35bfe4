/* Rounding of (s, z) to what formats store: group_choice.h, compiled for the host.
 *
 * Containers hold s / n for codes multiplied by n (quarters of z make 2-bit codes 4-bit ones): small scales are halves
 * after that division too, which matters among the subnormal ones only. */
#include "worker/backend/grid_snap.h"

#include "common/half.h"

#define CHOICE_FN static inline
#define CHOICE_HALF(x) f16_to_f32(f32_to_f16(x))
#include "worker/backend/group_choice.h"

bool grid_binds_zero(const struct grid *grid)
{
	return choice_binds_zero(grid);
}

double grid_zero(const struct grid *grid, double z)
{
	return choice_zero(grid, z);
}

void grid_snap(const struct grid *grid, float *s, float *z)
{
	choice_snap(grid, s, z);
}

void grid_snap_all(const struct grid *grid, float *s, float *z, size_t n)
{
	for (size_t i = 0; i < n; i++)
		choice_snap(grid, &s[i], &z[i]);
}
