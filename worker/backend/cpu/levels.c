/* Which level this machine runs; see levels.h. */
#include "worker/backend/cpu/levels.h"

#include <stdbool.h>
#include <string.h>

static const char *const level_names[CPU_LEVELS] = { "base", "v3", "v4" };

#if defined(__x86_64__)
static bool level_runs(enum cpu_level level)
{
	bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
		  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");

	switch (level) {
	case CPU_BASE:
		return true;
	case CPU_V3:
		return v3;
	case CPU_V4:
		return v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		       __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
		       __builtin_cpu_supports("avx512vl");
	case CPU_LEVELS:
		break;
	}
	return false;
}
#else
static bool level_runs(enum cpu_level level)
{
	return level == CPU_BASE;
}
#endif

const char *cpu_level_name(enum cpu_level level)
{
	return level_names[level];
}

enum cpu_level cpu_level_best(void)
{
	enum cpu_level level = CPU_BASE;

	while (level + 1 < CPU_LEVELS && level_runs(level + 1))
		level++;
	return level;
}

int cpu_level_choose(const char *forced, enum cpu_level *level, struct err *err)
{
	const enum cpu_level best = cpu_level_best();

	*level = best;
	if (!forced || !*forced)
		return 0;
	for (enum cpu_level l = CPU_BASE; l <= best; l++) {
		if (strcmp(forced, level_names[l]) == 0) {
			*level = l;
			return 0;
		}
	}
	return err_set(err, ERR_INVALID, "QUARRY_CPU_LEVEL is \"%.32s\"; it must be base, v3 or v4 and no "
		       "higher than this machine's %s", forced, level_names[best]);
}
