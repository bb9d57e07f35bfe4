/* Opening, closing and the table of the cpu backend. */
#include "worker/backend/cpu/cpu.h"

#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/cpu/kernels.h"
#include "worker/backend/cpu/kernels_train.h"
#include "worker/backend/plain_memory.h"

CPU_LEVEL_DECLARE(struct forward_kernels, forward_kernels);
static const struct forward_kernels *const kernel_tables[] = CPU_LEVEL_TABLE(forward_kernels);
CPU_LEVEL_DECLARE(struct train_kernels, train_kernels);
static const struct train_kernels *const train_tables[] = CPU_LEVEL_TABLE(train_kernels);

static void cpu_close(struct backend *be)
{
	struct cpu_backend *cpu = cpu_of(be);

	if (!cpu)
		return;
	pool_free(cpu->pool);
	mem_free(cpu->scratch);
	mem_free(cpu);
}

float *cpu_scratch_take(struct cpu_backend *cpu, size_t floats, const char *what, struct err *err)
{
	if (cpu->scratch && cpu->scratch_floats >= floats)
		return cpu->scratch;
	mem_free(cpu->scratch);
	cpu->scratch = mem_alloc_aligned(floats, sizeof(*cpu->scratch));
	cpu->scratch_floats = cpu->scratch ? floats : 0;
	if (!cpu->scratch)
		err_set_nomem(err, what);
	return cpu->scratch;
}

void cpu_scratch_give(struct cpu_backend *cpu)
{
	if (cpu->scratch_floats <= CPU_KEEP_BYTES / sizeof(*cpu->scratch))
		return;
	mem_free(cpu->scratch);
	cpu->scratch = NULL;
	cpu->scratch_floats = 0;
}

/* OpenBLAS calls itself "OpenBLAS 0.3.21 ... Haswell ..."; its kernels differ in their last bits. */
static void name_identity(struct cpu_backend *cpu)
{
	char version[32] = "unknown";

	if (sscanf(openblas_get_config(), "OpenBLAS %31s", version) != 1)
		memcpy(version, "unknown", sizeof("unknown"));
	snprintf(cpu->identity, sizeof(cpu->identity), "cpu openblas-%s %.32s %s", version,
		 openblas_get_corename(), cpu_level_name(cpu->level));
}

static struct backend *cpu_open(const struct backend_options *options, struct err *err)
{
	struct cpu_backend *cpu;

	if (plain_options_check("cpu", options, err) != 0)
		return NULL;
	cpu = mem_alloc(1, sizeof(*cpu));
	if (!cpu) {
		err_set_nomem(err, "the cpu backend");
		return NULL;
	}
	cpu->base.ops = &cpu_ops;
	if (cpu_level_choose(getenv("QUARRY_CPU_LEVEL"), &cpu->level, err) != 0)
		goto fail;
	cpu->forward = kernel_tables[cpu->level];
	cpu->train = train_tables[cpu->level];
	cpu->pool = pool_new(options->threads, err);
	if (!cpu->pool)
		goto fail;
	openblas_set_num_threads(1);
	name_identity(cpu);
	return &cpu->base;
fail:
	cpu_close(&cpu->base);
	return NULL;
}

static const char *cpu_identity(struct backend *be)
{
	return cpu_of(be)->identity;
}

const struct backend_ops cpu_ops = {
	.name = "cpu",
	.piece_tokens = PLAIN_PIECE_TOKENS,
	.open = cpu_open,
	.close = cpu_close,
	.identity = cpu_identity,
	.memory_take = plain_memory_take,
	.memory_give = plain_memory_give,
	.memory_copy = plain_memory_copy,
	.buffer_take = plain_memory_take,
	.buffer_give = plain_memory_give,
	.memory_begin = plain_memory_begin,
	.memory_wait = plain_memory_wait,
	.rms_norm = cpu_rms_norm,
	.block_forward = cpu_block_forward,
	.head_tile = cpu_head_tile,
	.head_kl_tile = cpu_head_kl_tile,
	.gram_add = cpu_gram_add,
	.gram_mean = cpu_gram_mean,
	.rms_norm_backward = cpu_rms_norm_backward,
	.block_backward = cpu_block_backward,
	.squared_error = cpu_squared_error,
	.grid_values = cpu_grid_values,
	.grid_gradients = cpu_grid_gradients,
	.adam_step = cpu_adam_step,
	.factor = cpu_factor,
	.fit_groups = cpu_fit_groups,
	.round_nearest = cpu_round_nearest,
	.round_ldlq = cpu_round_ldlq,
	.refine = cpu_refine,
	.proxy_loss = cpu_proxy_loss,
};
