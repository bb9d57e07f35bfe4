/* transfer.h - copies between ordinary memory and the device through pinned buffers.
 *
 * Ordinary memory cannot be read by the device's copy engine: several threads copy a piece of it into one of two pinned
 * buffers while the other one travels. Memory that is page-locked already travels as it is. Ordered with the stream;
 * complete on return. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_TRANSFER_H
#define QUARRY_WORKER_BACKEND_CUDA_TRANSFER_H

#include <cuda_runtime_api.h>
#include <stddef.h>

#include "common/err.h"

struct cuda_transfer;

/* threads take part in copying, at most 8 of them. NULL with err set on failure. */
struct cuda_transfer *cuda_transfer_new(int threads, cudaStream_t stream, struct err *err);
void cuda_transfer_free(struct cuda_transfer *t); /* NULL is fine */

/* The host's array may be used again on return; the device's is there for what follows in the stream. */
cudaError_t cuda_upload(struct cuda_transfer *t, void *device, const void *host, size_t bytes);
/* The host's array is complete on return. */
cudaError_t cuda_download(struct cuda_transfer *t, void *host, const void *device, size_t bytes);

#endif
