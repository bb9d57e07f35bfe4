/* frame.h - the arrays of one operation on the device.
 *
 *	struct cuda_frame f = cuda_begin(be, "LDLQ", err);
 *	const float *w_d = cuda_in(&f, w, rows * cols * sizeof(*w));
 *	uint8_t *codes_d = cuda_out(&f, codes, rows * cols);
 *	float *errors = cuda_take(&f, rows * BLOCK * sizeof(*errors));
 *
 *	if (cuda_ok(&f))
 *		cuda_try(&f, ldlq_launch(cuda->stream, w_d, ..., cuda_bad(&f)));
 *	return cuda_end(&f);
 *
 * The first failure sticks: later calls do nothing and give NULL, and cuda_end() returns -1 with err set. An array that
 * is memory of the backend is used where it lies; an ordinary one is copied, in for _in and _inout, out (in cuda_end(),
 * only if nothing failed) for _out and _inout. A NULL array gives NULL and is no failure. Sizes are the caller's to check
 * for overflow (shape.h). Contents of _out and _take are undefined: kernels write every element.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_FRAME_H
#define QUARRY_WORKER_BACKEND_CUDA_FRAME_H

#include "worker/backend/cuda/cuda.h"

enum { CUDA_FRAME_ARRAYS = 128 };

struct cuda_frame {
	struct cuda_backend *cuda;
	const char *what;       /* "LDLQ": the operation, for errors */
	struct err *err;
	int rc;
	bool flagged;           /* cuda_bad() was asked for */
	size_t count;
	struct { void *device, *host; size_t bytes; } array[CUDA_FRAME_ARRAYS];
};

struct cuda_frame cuda_begin(struct backend *be, const char *what, struct err *err);
const void *cuda_in(struct cuda_frame *f, const void *array, size_t bytes);
void *cuda_out(struct cuda_frame *f, void *array, size_t bytes);
void *cuda_inout(struct cuda_frame *f, void *array, size_t bytes);
/* Scratch of the device, 256-byte aligned. bytes 0 gives NULL. */
void *cuda_take(struct cuda_frame *f, size_t bytes);

/* Gives back the scratch taken since cuda_mark(), for pieces in a loop; no _out or _inout may be among it. */
size_t cuda_mark(const struct cuda_frame *f);
void cuda_drop(struct cuda_frame *f, size_t mark);

static inline bool cuda_ok(const struct cuda_frame *f)
{
	return f->rc == 0;
}

/* Takes the status of a CUDA call or a launcher; whether all is well. */
bool cuda_try(struct cuda_frame *f, cudaError_t status);
/* Takes the status of a cuBLAS or cuSOLVER call, 0 = well. */
bool cuda_try_library(struct cuda_frame *f, const char *library, int status);
/* A failure of the caller's own: err was set by the caller, through f->err. */
void cuda_fail(struct cuda_frame *f);

/* A device flag, 0 at first. Kernels write 1 when a value that they store is not finite; then cuda_end(), or
 * cuda_finite_so_far() on the way, fails with ERR_NUMERIC. */
int *cuda_bad(struct cuda_frame *f);
bool cuda_finite_so_far(struct cuda_frame *f);

/* Waits for the stream, copies results out, gives everything back. 0, or -1 with err set. */
int cuda_end(struct cuda_frame *f);

#endif
