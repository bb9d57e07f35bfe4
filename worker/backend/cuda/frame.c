#include "worker/backend/cuda/frame.h"

#include "worker/backend/cuda/transfer.h"
#include "worker/backend/shape.h"

struct cuda_frame cuda_begin(struct backend *be, const char *what, struct err *err)
{
	return (struct cuda_frame){ .cuda = cuda_of(be), .what = what, .err = err };
}

bool cuda_try(struct cuda_frame *f, cudaError_t status)
{
	if (f->rc == 0 && status != cudaSuccess)
		f->rc = cuda_check(status, f->what, f->err);
	return f->rc == 0;
}

bool cuda_try_library(struct cuda_frame *f, const char *library, int status)
{
	if (f->rc != 0 || status == 0)
		return f->rc == 0;
	/* A kernel's own failure shows here too, and says more. */
	if (cuda_try(f, cudaPeekAtLastError()))
		f->rc = err_set(f->err, ERR_INTERNAL, "%s: %s failed with status %d", f->what, library, status);
	return false;
}

void cuda_fail(struct cuda_frame *f)
{
	f->rc = -1;
}

/* Device memory of its own, remembered with the ordinary array that it goes back to. */
static void *add(struct cuda_frame *f, void *host, size_t bytes)
{
	void *device = NULL;

	if (f->rc != 0 || bytes == 0)
		return NULL;
	if (f->count == CUDA_FRAME_ARRAYS) {
		f->rc = err_set(f->err, ERR_INTERNAL, "%s uses more than %d arrays", f->what, CUDA_FRAME_ARRAYS);
		return NULL;
	}
	if (!cuda_try(f, cudaMallocFromPoolAsync(&device, bytes, f->cuda->pool, f->cuda->stream)))
		return NULL;
	f->array[f->count].device = device;
	f->array[f->count].host = host;
	f->array[f->count++].bytes = bytes;
	return device;
}

/* The array's contents on the device; they go back to `host`, unless that is NULL, in the end. */
static void *bring(struct cuda_frame *f, const void *array, void *host, size_t bytes)
{
	void *device = add(f, host, bytes);

	if (device)
		cuda_try(f, cuda_upload(f->cuda->transfer, device, array, bytes));
	return f->rc == 0 ? device : NULL;
}

const void *cuda_in(struct cuda_frame *f, const void *array, size_t bytes)
{
	if (!array || f->rc != 0 || cuda_is_own(array))
		return f->rc == 0 ? array : NULL;
	return bring(f, array, NULL, bytes);
}

void *cuda_out(struct cuda_frame *f, void *array, size_t bytes)
{
	if (!array || f->rc != 0 || cuda_is_own(array))
		return f->rc == 0 ? array : NULL;
	return add(f, array, bytes);
}

void *cuda_inout(struct cuda_frame *f, void *array, size_t bytes)
{
	if (!array || f->rc != 0 || cuda_is_own(array))
		return f->rc == 0 ? array : NULL;
	return bring(f, array, array, bytes);
}

void *cuda_take(struct cuda_frame *f, size_t bytes)
{
	return add(f, NULL, bytes);
}

size_t cuda_mark(const struct cuda_frame *f)
{
	return f->count;
}

void cuda_drop(struct cuda_frame *f, size_t mark)
{
	while (f->count > mark)
		cudaFreeAsync(f->array[--f->count].device, f->cuda->stream);
}

int *cuda_bad(struct cuda_frame *f)
{
	if (!f->flagged && f->rc == 0)
		f->flagged = cuda_try(f, cudaMemsetAsync(f->cuda->bad, 0, sizeof(int), f->cuda->stream));
	return f->cuda->bad;
}

bool cuda_finite_so_far(struct cuda_frame *f)
{
	int bad = 0;

	if (f->rc != 0 || !f->flagged)
		return f->rc == 0;
	if (cuda_try(f, cuda_download(f->cuda->transfer, &bad, f->cuda->bad, sizeof(bad))) && bad != 0)
		f->rc = err_set_not_finite(f->err, f->what);
	return f->rc == 0;
}

int cuda_end(struct cuda_frame *f)
{
	cuda_try(f, cudaGetLastError());
	cuda_finite_so_far(f);
	for (size_t i = 0; i < f->count && f->rc == 0; i++)
		if (f->array[i].host)
			cuda_try(f, cuda_download(f->cuda->transfer, f->array[i].host, f->array[i].device,
						  f->array[i].bytes));
	cuda_try(f, cudaStreamSynchronize(f->cuda->stream));
	cuda_drop(f, 0);
	return f->rc;
}
