#include "worker/backend/cuda/copies.h"

#include "common/alloc.h"

struct buffer {
	struct buffer *next;
	void *memory;
	size_t bytes;
};

struct cuda_copies {
	cudaStream_t into, out;         /* towards the device, and away from it */
	cudaEvent_t computed;           /* what the copy that is being begun waits for */
	struct buffer *taken, *kept;
};

/* --- life -------------------------------------------------------------------------------------------- */

struct cuda_copies *cuda_copies_new(struct err *err)
{
	struct cuda_copies *c = mem_alloc(1, sizeof(*c));

	if (!c) {
		err_set_nomem(err, "the copies beside computing");
		return NULL;
	}
	if (cudaStreamCreateWithFlags(&c->into, cudaStreamNonBlocking) == cudaSuccess &&
	    cudaStreamCreateWithFlags(&c->out, cudaStreamNonBlocking) == cudaSuccess &&
	    cudaEventCreateWithFlags(&c->computed, cudaEventDisableTiming) == cudaSuccess)
		return c;
	err_set(err, ERR_NOMEM, "no streams for the copies beside computing");
	cuda_copies_free(c);
	return NULL;
}

static void free_buffers(struct buffer **list)
{
	while (*list) {
		struct buffer *b = *list;

		*list = b->next;
		cudaFreeHost(b->memory);
		mem_free(b);
	}
}

void cuda_copies_free(struct cuda_copies *c)
{
	if (!c)
		return;
	if (c->into)
		cudaStreamDestroy(c->into);
	if (c->out)
		cudaStreamDestroy(c->out);
	if (c->computed)
		cudaEventDestroy(c->computed);
	free_buffers(&c->taken);
	free_buffers(&c->kept);
	mem_free(c);
}

/* --- buffers ------------------------------------------------------------------------------------------- */

static struct buffer *move(struct buffer **at, struct buffer **list)
{
	struct buffer *b = *at;

	*at = b->next;
	b->next = *list;
	*list = b;
	return b;
}

/* Where the smallest kept one that is large enough hangs; NULL: there is none. */
static struct buffer **smallest(struct cuda_copies *c, size_t bytes)
{
	struct buffer **best = NULL;

	for (struct buffer **at = &c->kept; *at; at = &(*at)->next)
		if ((*at)->bytes >= bytes && (!best || (*at)->bytes < (*best)->bytes))
			best = at;
	return best;
}

cudaError_t cuda_copies_buffer(struct cuda_copies *c, size_t bytes, void **memory)
{
	struct buffer **kept = smallest(c, bytes), *b;
	cudaError_t status;

	if (kept) {
		*memory = move(kept, &c->taken)->memory;
		return cudaSuccess;
	}
	free_buffers(&c->kept);
	b = mem_alloc(1, sizeof(*b));
	if (!b)
		return cudaErrorMemoryAllocation;
	b->bytes = bytes ? bytes : 1;
	status = cudaMallocHost(&b->memory, b->bytes);
	if (status != cudaSuccess) {
		mem_free(b);
		return status;
	}
	b->next = c->taken;
	c->taken = b;
	*memory = b->memory;
	return cudaSuccess;
}

void cuda_copies_keep(struct cuda_copies *c, const void *memory)
{
	struct buffer **at = &c->taken;

	while (*at && (*at)->memory != memory)
		at = &(*at)->next;
	if (*at)
		move(at, &c->kept);
}

/* --- copies ---------------------------------------------------------------------------------------------- */

cudaError_t cuda_copies_begin(struct cuda_copies *c, cudaStream_t compute, void *to, const void *from, size_t bytes,
			      bool out)
{
	const cudaStream_t stream = out ? c->out : c->into;
	cudaError_t status = cudaEventRecord(c->computed, compute);

	if (status == cudaSuccess)
		status = cudaStreamWaitEvent(stream, c->computed, 0);
	if (status == cudaSuccess)
		status = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
	return status;
}

cudaError_t cuda_copies_wait(struct cuda_copies *c)
{
	const cudaError_t into = cudaStreamSynchronize(c->into), out = cudaStreamSynchronize(c->out);

	return into != cudaSuccess ? into : out;
}
