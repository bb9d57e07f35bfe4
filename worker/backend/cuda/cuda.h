/* cuda.h - the cuda backend: one NVIDIA GPU, cuBLAS, cuSOLVER and own kernels.
 *
 * Host code is C (*.c); device code is CUDA C++ (kernels_*.cu) behind launchers with C names (kernels_*.h).
 * Invariants:
 *  1. Everything runs in one stream, in the order of the program; an operation returns when its results are there. Only
 *     copies that were begun (copies.h) run in streams of their own, until the program waits for them.
 *  2. The arrays of an operation pass through a frame (frame.h), which brings ordinary memory to the device and back
 *     and frees what was taken: no operation calls cudaMalloc or cudaMemcpy by itself.
 *  3. Every CUDA call is checked. The first failure ends the operation: ERR_NOMEM when the memory of the device is
 *     used up, ERR_UNAVAILABLE when the device is lost (the process has to open it again), else ERR_INTERNAL.
 *  4. No atomics on floating-point numbers and no order of sums that depends on timing: same inputs, same bytes on the
 *     same model of GPU with the same libraries.
 *  5. The libraries are opened when the backend is (libraries.h): the program starts on machines without a GPU.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_CUDA_H
#define QUARRY_WORKER_BACKEND_CUDA_CUDA_H

#include <cuda_runtime_api.h>

#include "worker/backend/backend.h"
#include "worker/backend/cuda/libraries.h"

struct cuda_copies;
struct cuda_transfer;

struct cuda_backend {
	struct backend base;
	int device;
	cudaStream_t stream;
	cudaMemPool_t pool;             /* all device memory comes from here; bounded by device_memory */
	struct cuda_libraries libraries;
	struct cuda_transfer *transfer; /* pinned buffers, copying threads */
	struct cuda_copies *copies;     /* those that go on beside the stream */
	int *bad;                       /* one flag on the device: something was not finite (frame.h) */
	char identity[256];
};

extern const struct backend_ops cuda_ops;

static inline struct cuda_backend *cuda_of(struct backend *be)
{
	return (struct cuda_backend *)be;
}

/* 0, or -1 with err set: "<what>: <CUDA's words>". */
int cuda_check(cudaError_t status, const char *what, struct err *err);

/* device.c */
int cuda_describe(struct backend *be, struct backend_device *out);

/* memory.c */
bool cuda_is_own(const void *memory); /* on the device */
void *cuda_memory_take(struct backend *be, size_t bytes, const char *what, struct err *err);
void cuda_memory_give(struct backend *be, void *memory);
int cuda_memory_copy(struct backend *be, void *to, const void *from, size_t bytes, struct err *err);
void *cuda_buffer_take(struct backend *be, size_t bytes, const char *what, struct err *err);
void cuda_buffer_give(struct backend *be, void *buffer);
int cuda_memory_begin(struct backend *be, void *to, const void *from, size_t bytes, struct err *err);
int cuda_memory_wait(struct backend *be, struct err *err);

/* norm.c, forward.c, backward.c */
int cuda_rms_norm(struct backend *be, const float *x, const float *weight, float eps, size_t rows,
		  size_t cols, float *y, struct err *err);
int cuda_rms_norm_backward(struct backend *be, const float *x, const float *weight, float eps,
			   size_t rows, size_t cols, const float *dy, float *dx, struct err *err);
int cuda_block_forward(struct backend *be, const struct block_shape *shape,
		       const struct block_weights *w, const struct rope_table *rope, const float *x,
		       size_t n_seq, size_t seq_len, float *y, block_tap tap, void *tap_ctx,
		       struct err *err);
int cuda_block_backward(struct backend *be, const struct block_shape *shape,
			const struct block_weights *w, const struct rope_table *rope, const float *x,
			size_t n_seq, size_t seq_len, block_loss loss, void *loss_ctx, float *dx,
			const struct block_grads *grads, struct err *err);

/* head.c, gram.c */
int cuda_head_tile(struct backend *be, const float *x, size_t rows, size_t hidden, const float *w,
		   size_t tile_rows, int32_t first_id, const int32_t *targets,
		   struct head_state *state, struct err *err);
int cuda_head_kl_tile(struct backend *be, const float *x, const float *x_ref, size_t rows, size_t hidden,
		      const float *w, const float *w_ref, size_t tile_rows, const struct head_state *state,
		      const struct head_state *ref_state, double *kl, float *dx, struct err *err);
int cuda_gram_add(struct backend *be, const float *x, size_t rows, size_t cols, double *h,
		  struct err *err);
int cuda_gram_mean(struct backend *be, double *h, size_t cols, uint64_t rows, double *diagonal,
		   struct err *err);

/* loss.c, train.c */
int cuda_squared_error(struct backend *be, const float *y, const float *target, size_t n, double scale, float *dy,
		       double *sum, struct err *err);
int cuda_grid_values(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
		     size_t cols, const float *scales, const float *zeros, float *w, struct err *err);
int cuda_grid_gradients(struct backend *be, const struct grid *grid, const float *latents, size_t rows,
			size_t cols, const float *scales, const float *zeros, const float *dw,
			float *dscales, float *dzeros, float *dlatents, struct err *err);
int cuda_adam_step(struct backend *be, const struct adam *adam, size_t n, float *p, const float *g,
		   float *m, float *v, struct err *err);

/* factor.c, fit.c, round.c, ldlq.c, refine.c, proxy.c */
int cuda_factor(struct backend *be, const double *h, const int32_t *perm, size_t n, double damp,
		float *u, double *pivots, struct err *err);
int cuda_fit_groups(struct backend *be, enum fit_method method, const struct grid *grid,
		    const float *w, size_t rows, size_t cols, const double *h, float *scales,
		    float *zeros, double *objective, struct err *err);
int cuda_round_nearest(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		       size_t cols, const float *scales, const float *zeros, uint8_t *codes,
		       struct err *err);
int cuda_round_ldlq(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		    size_t cols, const int32_t *perm, const float *u, const double *pivots,
		    const float *scales, const float *zeros, uint8_t *codes, double *row_loss,
		    struct err *err);
int cuda_refine(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
		const double *h, double damp, const int32_t *perm, uint8_t *codes, float *scales,
		float *zeros, double *row_loss, struct err *err);
int cuda_proxy_loss(struct backend *be, const struct grid *grid, const float *w, size_t rows,
		    size_t cols, const double *h, double damp, const uint8_t *codes,
		    const float *scales, const float *zeros, double *loss, double *energy,
		    struct err *err);

#endif
