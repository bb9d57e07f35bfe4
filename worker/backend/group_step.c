/* Least squares for (s, z) of one group: group_choice.h, compiled for the host. */
#include "worker/backend/group_step.h"

#include "common/half.h"

#define CHOICE_FN static inline
#define CHOICE_HALF(x) f16_to_f32(f32_to_f16(x))
#include "worker/backend/group_choice.h"

double group_step(const struct grid *grid, const struct group_sums *sums, double least, float *s,
		  float *z)
{
	return choice_step(grid, sums, least, s, z);
}
