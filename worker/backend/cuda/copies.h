/* copies.h - copies that go on while operations run, and the page-locked buffers that they travel from and to fastest.
 *
 * There is one stream for each direction beside the one that computes. A copy begins after everything that the
 * computing stream was given before it, so memory that was just taken, or just written, is there. Page-locking memory
 * is far dearer than copying it: buffers that were given back are kept for the next who takes one, until they are too
 * small. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_COPIES_H
#define QUARRY_WORKER_BACKEND_CUDA_COPIES_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

struct cuda_copies;

/* NULL with err set on failure. */
struct cuda_copies *cuda_copies_new(struct err *err);
/* Frees every buffer; no copy may be under way. NULL is fine. */
void cuda_copies_free(struct cuda_copies *c);

/* Page-locked memory, in *memory. */
cudaError_t cuda_copies_buffer(struct cuda_copies *c, size_t bytes, void **memory);
void cuda_copies_keep(struct cuda_copies *c, const void *memory); /* one that cuda_copies_buffer() gave */

/* out: towards ordinary memory. compute: the stream that the copy waits for. */
cudaError_t cuda_copies_begin(struct cuda_copies *c, cudaStream_t compute, void *to, const void *from, size_t bytes,
			      bool out);
cudaError_t cuda_copies_wait(struct cuda_copies *c);

#endif
