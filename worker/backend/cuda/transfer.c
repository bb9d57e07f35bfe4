#include "worker/backend/cuda/transfer.h"

#include <stdbool.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/pool.h"

enum { BUFFERS = 2, BUFFER_BYTES = 16 << 20, SHARE_BYTES = 1 << 20, THREADS_MAX = 8 };

struct cuda_transfer {
	cudaStream_t stream;
	struct pool *pool;
	void *buffer[BUFFERS];
	cudaEvent_t moved[BUFFERS];     /* the device has read, or written, the buffer */
};

/* One copy of ordinary memory, cut into shares. */
struct copy { char *to; const char *from; size_t bytes; };

static void copy_share(void *ctx, size_t item, int worker)
{
	const struct copy *c = ctx;
	const size_t at = item * SHARE_BYTES, rest = c->bytes - at;

	(void)worker;
	memcpy(c->to + at, c->from + at, rest < SHARE_BYTES ? rest : SHARE_BYTES);
}

static void copy_all(struct cuda_transfer *t, void *to, const void *from, size_t bytes)
{
	struct copy c = { to, from, bytes };

	pool_run(t->pool, (bytes + SHARE_BYTES - 1) / SHARE_BYTES, copy_share, &c);
}

struct cuda_transfer *cuda_transfer_new(int threads, cudaStream_t stream, struct err *err)
{
	struct cuda_transfer *t = mem_alloc(1, sizeof(*t));

	if (!t) {
		err_set_nomem(err, "the transfers to the GPU");
		return NULL;
	}
	t->stream = stream;
	t->pool = pool_new(threads < THREADS_MAX ? threads : THREADS_MAX, err);
	if (!t->pool)
		goto fail;
	for (int i = 0; i < BUFFERS; i++)
		if (cudaMallocHost(&t->buffer[i], BUFFER_BYTES) != cudaSuccess ||
		    cudaEventCreateWithFlags(&t->moved[i], cudaEventDisableTiming) != cudaSuccess) {
			err_set(err, ERR_NOMEM, "no pinned memory for the transfers to the GPU");
			goto fail;
		}
	return t;
fail:
	cuda_transfer_free(t);
	return NULL;
}

void cuda_transfer_free(struct cuda_transfer *t)
{
	if (!t)
		return;
	for (int i = 0; i < BUFFERS; i++) {
		if (t->buffer[i])
			cudaFreeHost(t->buffer[i]);
		if (t->moved[i])
			cudaEventDestroy(t->moved[i]);
	}
	pool_free(t->pool);
	mem_free(t);
}

static size_t piece_of(size_t bytes, size_t at)
{
	return bytes - at < BUFFER_BYTES ? bytes - at : BUFFER_BYTES;
}

/* The device's copy engine reaches page-locked memory by itself. */
static bool is_locked(const void *host)
{
	struct cudaPointerAttributes a;

	return cudaPointerGetAttributes(&a, host) == cudaSuccess && a.type == cudaMemoryTypeHost;
}

static cudaError_t copy_locked(struct cuda_transfer *t, void *to, const void *from, size_t bytes,
			       enum cudaMemcpyKind kind)
{
	cudaError_t status = cudaMemcpyAsync(to, from, bytes, kind, t->stream);

	return status == cudaSuccess ? cudaStreamSynchronize(t->stream) : status;
}

cudaError_t cuda_upload(struct cuda_transfer *t, void *device, const void *host, size_t bytes)
{
	cudaError_t status = cudaSuccess;
	int i = 0;

	if (is_locked(host))
		return copy_locked(t, device, host, bytes, cudaMemcpyHostToDevice);
	for (size_t at = 0; at < bytes && status == cudaSuccess; at += BUFFER_BYTES, i = 1 - i) {
		const size_t piece = piece_of(bytes, at);

		status = cudaEventSynchronize(t->moved[i]);
		if (status != cudaSuccess)
			break;
		copy_all(t, t->buffer[i], (const char *)host + at, piece);
		status = cudaMemcpyAsync((char *)device + at, t->buffer[i], piece, cudaMemcpyHostToDevice, t->stream);
		if (status == cudaSuccess)
			status = cudaEventRecord(t->moved[i], t->stream);
	}
	return status;
}

static cudaError_t fetch_piece(struct cuda_transfer *t, int i, const char *device, size_t bytes)
{
	cudaError_t status = cudaMemcpyAsync(t->buffer[i], device, bytes, cudaMemcpyDeviceToHost, t->stream);

	return status == cudaSuccess ? cudaEventRecord(t->moved[i], t->stream) : status;
}

cudaError_t cuda_download(struct cuda_transfer *t, void *host, const void *device, size_t bytes)
{
	cudaError_t status = cudaSuccess;
	size_t asked = 0;
	int next = 0, i = 0;

	if (is_locked(host))
		return copy_locked(t, host, device, bytes, cudaMemcpyDeviceToHost);
	for (; next < BUFFERS && asked < bytes && status == cudaSuccess; next++, asked += BUFFER_BYTES)
		status = fetch_piece(t, next, (const char *)device + asked, piece_of(bytes, asked));
	for (size_t at = 0; at < bytes && status == cudaSuccess; at += BUFFER_BYTES, i = 1 - i) {
		status = cudaEventSynchronize(t->moved[i]);
		if (status != cudaSuccess)
			break;
		copy_all(t, (char *)host + at, t->buffer[i], piece_of(bytes, at));
		if (asked < bytes) {
			status = fetch_piece(t, i, (const char *)device + asked, piece_of(bytes, asked));
			asked += BUFFER_BYTES;
		}
	}
	return status;
}
