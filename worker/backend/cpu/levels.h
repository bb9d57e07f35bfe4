/* levels.h - instruction-set levels of the cpu backend and the choice among them.
 *
 * The Makefile compiles every kernels_*.c once per level with -DKERNEL_LEVEL=base|v3|v4 (x86-64
 * baseline, AVX2, AVX-512; base alone on other machines). Such a file ends in one const struct of
 * function pointers, named with KERNEL_TABLE(x); another file gathers them with CPU_LEVEL_DECLARE
 * and CPU_LEVEL_TABLE and indexes the array with the backend's level:
 *
 *   kernels_fit.c:  const struct fit_kernels KERNEL_TABLE(fit_kernels) = { ... };
 *   fit.c:          CPU_LEVEL_DECLARE(struct fit_kernels, fit_kernels);
 *                   static const struct fit_kernels *const tables[] = CPU_LEVEL_TABLE(fit_kernels);
 *                   ... tables[((struct cpu_backend *)be)->level] ...
 *
 * Bits may differ between levels, so the level is part of the backend's identity.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_LEVELS_H
#define QUARRY_WORKER_BACKEND_CPU_LEVELS_H

#include "common/err.h"

enum cpu_level { CPU_BASE, CPU_V3, CPU_V4, CPU_LEVELS };

#define KERNEL_PASTE_(a, b) a##_##b
#define KERNEL_PASTE(a, b) KERNEL_PASTE_(a, b)
#define KERNEL_TABLE(name) KERNEL_PASTE(name, KERNEL_LEVEL)

/* The one place that knows which levels the Makefile builds. */
#if defined(__x86_64__)
#define CPU_LEVEL_DECLARE(type, name) extern const type name##_base, name##_v3, name##_v4
#define CPU_LEVEL_TABLE(name) { &name##_base, &name##_v3, &name##_v4 }
#else
#define CPU_LEVEL_DECLARE(type, name) extern const type name##_base
#define CPU_LEVEL_TABLE(name) { &name##_base }
#endif

/* "base", "v3", "v4" */
const char *cpu_level_name(enum cpu_level level);
/* The highest level that was built and that this machine runs. */
enum cpu_level cpu_level_best(void);
/* As cpu_level_best(), or the lower one that `forced` names (NULL or "" = no wish).
 * -1: unknown name, or a level above the best one. */
int cpu_level_choose(const char *forced, enum cpu_level *level, struct err *err);

#endif
