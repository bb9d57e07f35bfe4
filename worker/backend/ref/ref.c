/* Opening, closing and the table of the reference backend. It has no state. */
#include "worker/backend/ref/ref.h"

#include "common/alloc.h"
#include "worker/backend/plain_memory.h"

static struct backend *ref_open(const struct backend_options *options, struct err *err)
{
	struct ref_backend *ref;

	if (options->threads < 1) {
		err_set(err, ERR_INVALID, "threads is %d; it must be at least 1", options->threads);
		return NULL;
	}
	if (plain_options_check("ref", options, err) != 0)
		return NULL;
	ref = mem_alloc(1, sizeof(*ref));
	if (!ref) {
		err_set_nomem(err, "the ref backend");
		return NULL;
	}
	ref->base.ops = &ref_ops;
	return &ref->base;
}

static void ref_close(struct backend *be)
{
	mem_free(be);
}

static const char *ref_identity(struct backend *be)
{
	(void)be;
	return "ref float64";
}

const struct backend_ops ref_ops = {
	.name = "ref",
	.piece_tokens = PLAIN_PIECE_TOKENS,
	.open = ref_open,
	.close = ref_close,
	.identity = ref_identity,
	.memory_take = plain_memory_take,
	.memory_give = plain_memory_give,
	.memory_copy = plain_memory_copy,
	.buffer_take = plain_memory_take,
	.buffer_give = plain_memory_give,
	.memory_begin = plain_memory_begin,
	.memory_wait = plain_memory_wait,
	.rms_norm = ref_rms_norm,
	.block_forward = ref_block_forward,
	.head_tile = ref_head_tile,
	.head_kl_tile = ref_head_kl_tile,
	.gram_add = ref_gram_add,
	.gram_mean = ref_gram_mean,
	.rms_norm_backward = ref_rms_norm_backward,
	.block_backward = ref_block_backward,
	.squared_error = ref_squared_error,
	.grid_values = ref_grid_values,
	.grid_gradients = ref_grid_gradients,
	.adam_step = ref_adam_step,
	.factor = ref_factor,
	.fit_groups = ref_fit_groups,
	.round_nearest = ref_round_nearest,
	.round_ldlq = ref_round_ldlq,
	.refine = ref_refine,
	.proxy_loss = ref_proxy_loss,
};
