/* backend.h - the compute operations of a worker, one small struct of functions.
 *
 * `ref` (plain C, double precision inside) is the specification; `cpu` (OpenBLAS, vector code, a
 * thread pool) and others are held to it by tests/unit/test_backend.c within the bound stated per
 * operation. Which backends exist is the linker's choice: backend_list.
 *
 * Invariants:
 *  1. Same inputs, same bytes out, for any number of threads: work is cut into tiles by shape alone
 *     and every sum has one order fixed by shape.
 *  2. No I/O, clock, logging or globals that change results. Inputs are finite (checked at entry to
 *     the program); an operation that still meets a non-finite result returns ERR_NUMERIC.
 *  3. One thread opens a backend, calls it and closes it (a driver's current device is a thread's); inside it may use
 *     `threads` threads. identity() may be called from any.
 *  4. Arrays are dense row-major float32 unless said otherwise; shapes stand beside them as (rows, cols).
 *     Outputs do not overlap inputs unless said so. Nothing is kept after return.
 * Symbols (docs/algorithm.md): W (N,K) weights, x inputs, H = mean of x x^T (K,K), s scale,
 * z zero-point, q code, g group size, G = K/g groups per row, b bits.
 */
#ifndef QUARRY_WORKER_BACKEND_BACKEND_H
#define QUARRY_WORKER_BACKEND_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

/* The grid a module is quantized to. */
struct grid {
	int bits;               /* b, 1..8: codes 0 .. 2^b-1 */
	size_t group;           /* g, columns per group, divides K */
	bool integer_zero;      /* z in {0 .. 2^b-1}; else any real */
	bool symmetric;         /* z fixed at 2^(b-1) */
	unsigned zero_parts;    /* n > 0: else z in {0, 1/n .. (n 2^b - 1)/n}; 0: any real */
	bool half;              /* s is an IEEE half, and where z may be any real so is s z (grid_snap.h) */
};

enum fit_method { FIT_NEUQI, FIT_MINMAX };

/* Dimensions of one transformer block. */
struct block_shape {
	size_t hidden, heads, kv_heads, head_dim, intermediate;
	float rms_eps;
};

/* Weights of one block, all float32, (N,K) row-major; biases and q/k norms may be NULL. */
struct block_weights {
	const float *attn_norm, *mlp_norm;              /* (hidden) */
	const float *q, *k, *v;                         /* (heads*head_dim | kv_heads*head_dim, hidden) */
	const float *o;                                 /* (hidden, heads*head_dim) */
	const float *gate, *up, *down;                  /* (inter, hidden) x2, (hidden, inter) */
	const float *q_bias, *k_bias, *v_bias, *o_bias; /* or NULL */
	const float *gate_bias, *up_bias, *down_bias;   /* or NULL */
	const float *q_norm, *k_norm;                   /* (head_dim) or NULL */
};

/* Rotary tables for positions 0..seq_len-1: (seq_len, head_dim/2), "rotate half" pairing
 * (element i with element i + head_dim/2), made by worker/model/rope.c. */
struct rope_table { const float *cos, *sin; };

/* Called once per site in order attn-in, o-in, mlp-in, down-in (enum block_site of
 * common/model_config.h, as int here) with that site's input rows, in memory of the backend; from the calling
 * thread. It may call the backend's memory functions and gram_add(). A non-zero return stops the forward pass, which
 * then returns -1 without touching err. */
typedef int (*block_tap)(void *ctx, int site, const float *x, size_t rows, size_t cols);

/* Gradients of a block's parameters, each of the shape of the weight it belongs to; NULL: not wanted. */
struct block_grads {
	float *attn_norm, *mlp_norm;
	float *q, *k, *v, *o, *gate, *up, *down;
	float *q_bias, *k_bias, *v_bias, *o_bias, *gate_bias, *up_bias, *down_bias;
	float *q_norm, *k_norm;
};

/* What a training step wants of the block's output: reads y (rows, cols) of one sequence of the call,
 * writes dy = dLoss/dy (rows, cols) fully; both in memory of the backend. Called once per sequence, in order, from the
 * calling thread; it may call the backend's memory functions and squared_error(). A non-zero return stops the pass, which
 * then returns -1 without touching err. */
typedef int (*block_loss)(void *ctx, size_t sequence, const float *y, size_t rows, size_t cols,
			  float *dy);

/* Adam's settings for one step (Kingma and Ba; AdamW without weight decay): step counts from 1. */
struct adam { float rate, beta1, beta2, epsilon; int64_t step; };

/* Running log-sum-exp per token over vocabulary tiles; arrays of `rows` elements. */
struct head_state {
	double *max, *sum;      /* running maximum and sum of exp(logit - max); start: -INFINITY, 0 */
	double *target;         /* logit of the target token once its tile was seen */
	double *top_logit;      /* best logit so far; start: -INFINITY */
	int32_t *top_id;        /* its id (the smaller id on a tie) */
};

struct backend;

struct backend_options {
	int threads;            /* >= 1 */
	int device;             /* number of the accelerator; ref and cpu know only 0 */
	uint64_t device_memory; /* bytes of it that may be used; 0: what there is */
};

/* The accelerator that a backend computes on. */
struct backend_device {
	char name[64];          /* "NVIDIA H200" */
	char driver[32];        /* "580.82.07, CUDA 13.0": its driver, where that is known, and what it supports */
	int number;             /* as in backend_options */
	int clock_mhz;          /* highest of its processors; 0: not known */
	uint64_t memory_bytes, memory_free;
};

struct backend_ops {
	const char *name;       /* "ref", "cpu", ... */
	bool own_memory;        /* memory_take() gives memory that the program cannot read or write */
	size_t piece_tokens;    /* tokens that are best given to block_forward at a time */

	/* NULL with err set on failure. */
	struct backend *(*open)(const struct backend_options *options, struct err *err);
	void (*close)(struct backend *be);
	/* What determines the bits of results, for the report: "cpu openblas-0.3.21 SkylakeX avx512". */
	const char *(*identity)(struct backend *be);
	/* NULL where there is no device. 0, or -1 when the device does not answer: it is lost to this process, which has to
	 * start anew to use it again. Cheap, but not free: asked when a backend was opened and when a task failed. */
	int (*describe)(struct backend *be, struct backend_device *out);

	/* --- memory -------------------------------------------------------------------------- */

	/* Memory that operations reach fastest: ordinary memory for ref and cpu, an accelerator's own otherwise. Every array
	 * that an operation is given may lie in it or in ordinary memory, each for itself, with the same results; what
	 * callbacks are given and give is ordinary memory unless said so. With own_memory only memory_copy() reaches it.
	 * Contents are undefined. NULL with err set (ERR_NOMEM names `what`) on failure; 64-byte aligned. */
	void *(*memory_take)(struct backend *be, size_t bytes, const char *what, struct err *err);
	void (*memory_give)(struct backend *be, void *memory); /* NULL is fine */
	/* Either side may be either kind of memory; complete on return. */
	int (*memory_copy)(struct backend *be, void *to, const void *from, size_t bytes, struct err *err);

	/* Ordinary memory that travels to memory of the backend and back fastest (page-locked, on an accelerator), for arrays
	 * that are used again and again: it is dear to take. Contents are undefined; 64-byte aligned. */
	void *(*buffer_take)(struct backend *be, size_t bytes, const char *what, struct err *err);
	void (*buffer_give)(struct backend *be, void *buffer); /* NULL is fine */
	/* Begins a memory_copy() that goes on while operations run, best from or to a buffer. Until memory_wait() nobody
	 * touches `to`, and nobody changes `from`. Several may be under way. A failure may show in memory_wait() only. */
	int (*memory_begin)(struct backend *be, void *to, const void *from, size_t bytes, struct err *err);
	/* Returns when every copy that was begun is complete, or failed. */
	int (*memory_wait)(struct backend *be, struct err *err);

	/* --- forward ------------------------------------------------------------------------- */

	/* y = RMSNorm(x) * weight: x, y (rows, cols); y may be x.
	 * cpu vs ref: |d| <= 1e-5 * (1 + |ref|). */
	int (*rms_norm)(struct backend *be, const float *x, const float *weight, float eps,
			size_t rows, size_t cols, float *y, struct err *err);
	/* One pre-norm block (attention with causal grouped-query heads and RoPE, SwiGLU MLP):
	 * x, y (n_seq * seq_len, hidden), each sequence at positions 0..seq_len-1; y may be x, or NULL
	 * when only the taps matter (then work behind the last tap is skipped). tap may be NULL.
	 * cpu vs ref: |d| <= 1e-4 * max|ref|. */
	int (*block_forward)(struct backend *be, const struct block_shape *shape,
			     const struct block_weights *w, const struct rope_table *rope,
			     const float *x, size_t n_seq, size_t seq_len, float *y,
			     block_tap tap, void *tap_ctx, struct err *err);
	/* Logits of one vocabulary tile folded into `state`: x (rows, hidden) final-normalized hidden
	 * states, w (tile_rows, hidden) output embedding of ids first_id .. first_id+tile_rows-1,
	 * targets (rows) token ids. Call tiles in ascending order. NLL of a row afterwards is
	 * max + log(sum) - target. cpu vs ref: 1e-4 absolute on the NLL. */
	int (*head_tile)(struct backend *be, const float *x, size_t rows, size_t hidden,
			 const float *w, size_t tile_rows, int32_t first_id, const int32_t *targets,
			 struct head_state *state, struct err *err);
	/* After every tile went through head_tile for both x and x_ref: one tile again, for
	 * KL(reference || model) of the next-token distributions. kl (rows), NULL: not wanted: += sum over the tile
	 * of p_ref (log p_ref - log p). dx (rows, hidden), NULL: not wanted: += (p - p_ref) w, the gradient of
	 * the sum of kl. x and x_ref (rows, hidden) are final-normalized; w and w_ref (tile_rows, hidden) the output
	 * embedding of the model and of the reference, the same when they share it. Tiles in ascending order.
	 * cpu vs ref: kl 1e-4 absolute once complete; dx 1e-4 * max|ref|. */
	int (*head_kl_tile)(struct backend *be, const float *x, const float *x_ref, size_t rows,
			    size_t hidden, const float *w, const float *w_ref, size_t tile_rows,
			    const struct head_state *state, const struct head_state *ref_state,
			    double *kl, float *dx, struct err *err);
	/* h (cols, cols) double, full symmetric matrix: h += x^T x, x (rows, cols). float32-accurate
	 * products over at most 1024 rows at a time, summed in double.
	 * cpu vs ref: |d_ij| <= 1e-5 * sqrt(ref_ii ref_jj). */
	int (*gram_add)(struct backend *be, const float *x, size_t rows, size_t cols, double *h,
			struct err *err);
	/* h (cols, cols) becomes h / rows, and diagonal (cols) is what stands on its diagonal. Exact to ref. */
	int (*gram_mean)(struct backend *be, double *h, size_t cols, uint64_t rows, double *diagonal,
			 struct err *err);

	/* --- training ------------------------------------------------------------------------- */

	/* dx (rows, cols) = dLoss/dx of y = RMSNorm(x) * weight, from dy (rows, cols); dx may be dy.
	 * cpu vs ref: |d| <= 1e-4 * max|ref|. */
	int (*rms_norm_backward)(struct backend *be, const float *x, const float *weight, float eps,
				 size_t rows, size_t cols, const float *dy, float *dx, struct err *err);
	/* Forward and backward of one block. x (n_seq * seq_len, hidden) as in block_forward; the activations are
	 * recomputed from it, one sequence at a time: forward, loss(), backward. Writes dx (same shape as x;
	 * may be NULL, may not be x) and every gradient that `grads` asks for, summed over the call's
	 * sequences in their order. Memory: the activations of one sequence.
	 * cpu vs ref: |d| <= 2e-4 * max|ref| of each tensor. ref is held to central differences. */
	int (*block_backward)(struct backend *be, const struct block_shape *shape,
			      const struct block_weights *w, const struct rope_table *rope,
			      const float *x, size_t n_seq, size_t seq_len, block_loss loss,
			      void *loss_ctx, float *dx, const struct block_grads *grads,
			      struct err *err);
	/* *sum = sum over n of (y - target)^2, products and sum in double; dy (n), NULL: not wanted: scale (y - target), the
	 * difference and its product in double, then rounded. dy may be y. ERR_NUMERIC when *sum is not finite.
	 * cpu vs ref: *sum 1e-12 relative, dy exact. */
	int (*squared_error)(struct backend *be, const float *y, const float *target, size_t n, double scale,
			     float *dy, double *sum, struct err *err);
	/* w (N,K) = s (q - z), q = clamp(round-half-even(latent), 0, 2^b-1); latents (N,K) in code units.
	 * float32 as common/packed.h computes it: subtract, then multiply. Exact to ref. */
	int (*grid_values)(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
			   size_t cols, const float *scales, const float *zeros, float *w,
			   struct err *err);
	/* From dw (N,K) = dLoss/dw of grid_values: dscales (N,G) = sum over the group of dw (q - z); dzeros (N,G) =
	 * -s sum dw; dlatents (N,K) = s dw where -0.5 < latent < 2^b - 0.5, else 0 (straight through the
	 * rounding; Bengio et al. 2013). NULL: not wanted; dlatents may be dw.
	 * cpu vs ref: |d| <= 1e-5 * (sum of the absolute terms). */
	int (*grid_gradients)(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
			      size_t cols, const float *scales, const float *zeros, const float *dw,
			      float *dscales, float *dzeros, float *dlatents, struct err *err);
	/* One step of n parameters: m = beta1 m + (1-beta1) g, v = beta2 v + (1-beta2) g^2,
	 * p -= rate * (m / (1-beta1^step)) / (sqrt(v / (1-beta2^step)) + epsilon). ERR_NUMERIC when a p is no
	 * longer finite. cpu vs ref: |dp| <= 1e-5 * rate + 1e-6 * |p|. */
	int (*adam_step)(struct backend *be, const struct adam *adam, size_t n, float *p,
			 const float *g, float *m, float *v, struct err *err);

	/* --- quantization --------------------------------------------------------------------- */

	/* Factors the permuted H = U D U^T, U unit upper triangular: entry (i,j) of the permuted matrix is
	 * h[perm[i]*n + perm[j]], with `damp` added to its diagonal. u (n, n) float32, strictly upper part
	 * written, rest zero (unit diagonal implied). pivots (n), NULL: not wanted: D that belongs to u as written, in the
	 * order of perm: D_j = h_jj + damp - sum over k > j of U_jk^2 D_k, at least 0. ERR_NUMERIC when not positive definite
	 * (the caller raises the damping). cpu vs ref: |d| <= 1e-3 * max|ref|. */
	int (*factor)(struct backend *be, const double *h, const int32_t *perm, size_t n, double damp,
		      float *u, double *pivots, struct err *err);
	/* Chooses s, z of every group to minimise sum_i h_i (w_i - s (q_i - z))^2 with q_i the nearest code:
	 * NeUQI (docs/algorithm.md) or min-max. w (N,K), h (K) > 0; scales, zeros (N, G) written;
	 * objective (N, G) double written when not NULL. zero_parts and half are the caller's to see to. s > 0 and finite always (a constant group gets an exact
	 * representation where the grid has one). cpu vs ref: sum of objective <= 1.0005 * ref. */
	int (*fit_groups)(struct backend *be, enum fit_method method, const struct grid *grid,
			  const float *w, size_t rows, size_t cols, const double *h,
			  float *scales, float *zeros, double *objective, struct err *err);
	/* Nearest codes: q = clamp(round-half-even(w / s + z), 0, 2^b-1). Exact to ref except where
	 * w/s + z is within 1e-5 of a rounding boundary, and everywhere where s = 1 and z = 0. codes (N,K) bytes. */
	int (*round_nearest)(struct backend *be, const struct grid *grid, const float *w, size_t rows,
			     size_t cols, const float *scales, const float *zeros, uint8_t *codes,
			     struct err *err);
	/* LDLQ (equivalent to GPTQ): in the order perm[0], perm[1], ... column perm[j] is rounded to the
	 * grid of its own group after adding sum over i<j of U[i][j] * (w - what)[perm[i]]. u from factor().
	 * row_loss (rows), or NULL: sum over j of pivots[j] * (target - what)^2, which is e H e^T of that
	 * row when pivots (K) is D in the order of perm; pivots may be NULL when row_loss is.
	 * cpu vs ref: proxy loss <= 1.002 * ref. */
	int (*round_ldlq)(struct backend *be, const struct grid *grid, const float *w, size_t rows,
			  size_t cols, const int32_t *perm, const float *u, const double *pivots,
			  const float *scales, const float *zeros, uint8_t *codes, double *row_loss,
			  struct err *err);
	/* One round of refinement (docs/algorithm.md): per row, one sweep of coordinate descent over the codes in the
	 * order of perm, each chosen given all others, alone or together with one other code; then the
	 * least-squares (s, z) of group after group for the codes it has; both in the metric H + damp I. z stays an integer
	 * of the grid, or fixed, where `grid` says so, and half values stay halves; s stays > 0 and finite. A row keeps its old state where the
	 * new one loses more, so no row's loss ever rises. codes, scales, zeros in place; row_loss (N):
	 * e (H + damp I) e^T of each row as left. Not finite: ERR_NUMERIC, some rows may be refined already.
	 * cpu vs ref: sum of row_loss <= 1.002 * ref over many rows; one row may part from ref at a tie. */
	int (*refine)(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		      size_t cols, const double *h, double damp, const int32_t *perm, uint8_t *codes,
		      float *scales, float *zeros, double *row_loss, struct err *err);
	/* *loss = trace(E H E^T), E = W - s (q - z), and *energy = trace(W H W^T) (may be NULL); h without
	 * damping plus `damp` on the diagonal. cpu vs ref: 1e-4 relative. */
	int (*proxy_loss)(struct backend *be, const struct grid *grid, const float *w, size_t rows,
			  size_t cols, const double *h, double damp, const uint8_t *codes,
			  const float *scales, const float *zeros, double *loss, double *energy,
			  struct err *err);
};

/* Every implementation begins with this. */
struct backend { const struct backend_ops *ops; };

/* The backends linked in, NULL-terminated, the first one the default: what every machine can run comes before what
 * needs a device. Defined by worker/backend/list_plain.c or list_cuda.c. */
extern const struct backend_ops *const backend_list[];
/* What could be there and is not, beside it in the same file, for that sentence: "; it was built without ..." or "". */
extern const char backend_list_note[];
/* NULL with err naming the backends there are. */
const struct backend_ops *backend_find(const char *name, struct err *err);

#endif
