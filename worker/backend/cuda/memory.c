/* Memory of the device: from one bounded pool, in the order of the stream. Copies to it and from it. */
#include "worker/backend/cuda/copies.h"
#include "worker/backend/cuda/cuda.h"
#include "worker/backend/cuda/transfer.h"

void *cuda_memory_take(struct backend *be, size_t bytes, const char *what, struct err *err)
{
	struct cuda_backend *cuda = cuda_of(be);
	void *memory = NULL;
	cudaError_t status = cudaMallocFromPoolAsync(&memory, bytes ? bytes : 1, cuda->pool, cuda->stream);

	if (status == cudaSuccess)
		return memory;
	cuda_check(status, what, err);
	return NULL;
}

void cuda_memory_give(struct backend *be, void *memory)
{
	if (memory)
		cudaFreeAsync(memory, cuda_of(be)->stream);
}

bool cuda_is_own(const void *memory)
{
	struct cudaPointerAttributes a;

	return cudaPointerGetAttributes(&a, memory) == cudaSuccess && a.type == cudaMemoryTypeDevice;
}

/* --- copies ------------------------------------------------------------------------------------------ */

int cuda_memory_copy(struct backend *be, void *to, const void *from, size_t bytes, struct err *err)
{
	struct cuda_backend *cuda = cuda_of(be);
	const bool into = cuda_is_own(to), out = cuda_is_own(from);
	cudaError_t status;

	if (bytes == 0)
		return 0;
	if (into && !out)
		status = cuda_upload(cuda->transfer, to, from, bytes);
	else if (out && !into)
		status = cuda_download(cuda->transfer, to, from, bytes);
	else
		status = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, cuda->stream);
	if (status == cudaSuccess)
		status = cudaStreamSynchronize(cuda->stream);
	return cuda_check(status, "copying memory", err);
}

void *cuda_buffer_take(struct backend *be, size_t bytes, const char *what, struct err *err)
{
	void *memory = NULL;

	return cuda_check(cuda_copies_buffer(cuda_of(be)->copies, bytes, &memory), what, err) == 0 ? memory : NULL;
}

void cuda_buffer_give(struct backend *be, void *buffer)
{
	if (buffer)
		cuda_copies_keep(cuda_of(be)->copies, buffer);
}

int cuda_memory_begin(struct backend *be, void *to, const void *from, size_t bytes, struct err *err)
{
	struct cuda_backend *cuda = cuda_of(be);

	if (bytes == 0)
		return 0;
	return cuda_check(cuda_copies_begin(cuda->copies, cuda->stream, to, from, bytes, !cuda_is_own(to)),
			  "copying memory", err);
}

int cuda_memory_wait(struct backend *be, struct err *err)
{
	return cuda_check(cuda_copies_wait(cuda_of(be)->copies), "copying memory", err);
}
