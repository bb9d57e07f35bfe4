/* kernels_train.h - the inner loops of the cpu backend's training half, one table per instruction-set level.
 *
 * As in kernels.h: sums run over interleaved partial sums that are added in one fixed order, so a result
 * depends on n alone. Pure, thread-safe, any alignment. Arrays do not overlap unless said so; then they are
 * the same.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_KERNELS_TRAIN_H
#define QUARRY_WORKER_BACKEND_CPU_KERNELS_TRAIN_H

#include <stdbool.h>
#include <stddef.h>

/* A distribution exp(logit - max) * inverse over the vocabulary. */
struct kl_side { float max, inverse; };

/* One row of a grid: `count` groups of `group` columns; codes are 0 .. top. */
struct grid_row {
	size_t count, group;
	float top;
	const float *scales, *zeros;    /* (count) */
};

/* Adam's step with what does not depend on the element: p -= rate * m / (sqrt(v) * root + epsilon). */
struct adam_factors { float beta1, rest1, beta2, rest2, rate, root, epsilon; };

struct train_kernels {
	/* dx = add + the gradient through y = x * weight / sqrt(mean(x^2) + eps), n elements. add NULL: 0.
	 * dweight NULL: not wanted, else += that row's share. dx may be dy. */
	void (*norm_backward)(const float *x, const float *weight, float eps, size_t n, const float *dy,
			      const float *add, float *dx, float *dweight);
	/* d = silu(gate) * up. */
	void (*swiglu)(const float *gate, const float *up, float *d, size_t n);
	/* From dd, the gradient of that d: gate and up become their own gradients. */
	void (*swiglu_backward)(float *gate, float *up, const float *dd, size_t n);
	/* scores become p = exp(score - max) * inverse; dp, the gradient of p, becomes
	 * p * (dp - mean) * factor. */
	void (*softmax_backward)(float *scores, float *dp, float max, float inverse, float mean,
				 float factor, size_t n);
	/* The turn of forward_kernels.rope by the opposite angles. */
	void (*rope_backward)(float *x, const float *cosine, const float *sine, size_t half);
	float (*dot)(const float *a, const float *b, size_t n);
	/* x and ref are logits. Returns the sum of p_ref * (log p_ref - log p) where
	 * shift = log sum of x - log sum of ref, both relative to their max; x becomes p - p_ref. */
	double (*kl)(float *x, const float *ref, struct kl_side side, struct kl_side ref_side, float shift,
		     size_t n);
	/* Sum of (y - target)^2 in double. */
	double (*squared_error)(const float *y, const float *target, size_t n);
	/* dy = scale (y - target), made in double; dy may be y. */
	void (*error_gradient)(const float *y, const float *target, size_t n, double scale, float *dy);
	/* w = s (q - z), q the nearest code of latents. */
	void (*grid_values)(const struct grid_row *row, const float *latents, float *w);
	/* Gradients of that: backend.h. Each may be NULL; dlatents may be dw. */
	void (*grid_gradients)(const struct grid_row *row, const float *latents, const float *dw,
			       float *dscales, float *dzeros, float *dlatents);
	/* False when some p, m or v is not finite afterwards. */
	bool (*adam)(const struct adam_factors *f, size_t n, float *p, const float *g, float *m, float *v);
};

#endif
