/* Opening, closing, errors and the table of the cuda backend. */
#include "worker/backend/cuda/cuda.h"

#include <stdio.h>

#include "common/alloc.h"
#include "worker/backend/cuda/copies.h"
#include "worker/backend/cuda/transfer.h"

/* Enough for the products to run at full speed; few enough that a shard of hidden states has several pieces, one travelling
 * while another is computed. */
enum { PIECE_TOKENS = 4096 };

static enum err_code code_of(cudaError_t status)
{
	switch (status) {
	case cudaErrorMemoryAllocation:
		return ERR_NOMEM;
	case cudaErrorNoDevice: case cudaErrorInsufficientDriver: case cudaErrorDevicesUnavailable:
	case cudaErrorDeviceUninitialized: case cudaErrorECCUncorrectable: case cudaErrorIllegalAddress:
	case cudaErrorLaunchFailure: case cudaErrorHardwareStackError: case cudaErrorLaunchTimeout:
	case cudaErrorInitializationError: case cudaErrorMpsConnectionFailed: case cudaErrorSystemNotReady:
		return ERR_UNAVAILABLE;
	default:
		return ERR_INTERNAL;
	}
}

int cuda_check(cudaError_t status, const char *what, struct err *err)
{
	if (status == cudaSuccess)
		return 0;
	cudaGetLastError(); /* what can be forgotten is: the next call starts clean */
	return err_set(err, code_of(status), "%s: CUDA: %s", what, cudaGetErrorString(status));
}

static void cuda_close(struct backend *be)
{
	struct cuda_backend *cuda = cuda_of(be);

	if (!cuda)
		return;
	cuda_libraries_close(&cuda->libraries);
	cuda_transfer_free(cuda->transfer);
	cuda_copies_free(cuda->copies);
	if (cuda->bad)
		cudaFree(cuda->bad);
	if (cuda->pool)
		cudaMemPoolDestroy(cuda->pool);
	if (cuda->stream)
		cudaStreamDestroy(cuda->stream);
	mem_free(cuda);
}

/* The device must exist and run the code that was built. */
static int choose_device(struct cuda_backend *cuda, int device, struct err *err)
{
	int count = 0;

	if (cuda_check(cudaGetDeviceCount(&count), "the cuda backend needs an NVIDIA GPU and its driver", err) != 0)
		return -1;
	if (device < 0 || device >= count)
		return err_set(err, ERR_INVALID, "there is no GPU number %d; this machine has %d, counted from 0", device,
			       count);
	cuda->device = device;
	return cuda_check(cudaSetDevice(device), "choosing the GPU", err);
}

static int make_pool(struct cuda_backend *cuda, uint64_t limit, struct err *err)
{
	struct cudaMemPoolProps props = {
		.allocType = cudaMemAllocationTypePinned, .handleTypes = cudaMemHandleTypeNone,
		.location = { cudaMemLocationTypeDevice, cuda->device }, .maxSize = limit,
	};
	uint64_t keep = UINT64_MAX;
	cudaError_t status = cudaMemPoolCreate(&cuda->pool, &props);

	if (status == cudaSuccess)
		status = cudaMemPoolSetAttribute(cuda->pool, cudaMemPoolAttrReleaseThreshold, &keep);
	if (status == cudaSuccess)
		status = cudaMalloc((void **)&cuda->bad, sizeof(*cuda->bad));
	return cuda_check(status, "the memory of the GPU", err);
}

/* What determines the bits: the model of GPU, the libraries, this program's kernels (its version). */
static int name_identity(struct cuda_backend *cuda, struct err *err)
{
	struct cudaDeviceProp p;
	int runtime = 0;
	cudaError_t status = cudaGetDeviceProperties(&p, cuda->device);

	if (status == cudaSuccess)
		status = cudaRuntimeGetVersion(&runtime);
	if (cuda_check(status, "asking the GPU what it is", err) != 0)
		return -1;
	snprintf(cuda->identity, sizeof(cuda->identity), "cuda %d.%d %.64s sm_%d%d cublas-%d cusolver-%d", runtime / 1000,
		 runtime % 1000 / 10, p.name, p.major, p.minor, cuda->libraries.blas_version,
		 cuda->libraries.solver_version);
	return 0;
}

static struct backend *cuda_open(const struct backend_options *options, struct err *err)
{
	struct cuda_backend *cuda = mem_alloc(1, sizeof(*cuda));

	if (!cuda) {
		err_set_nomem(err, "the cuda backend");
		return NULL;
	}
	cuda->base.ops = &cuda_ops;
	if (choose_device(cuda, options->device, err) != 0 ||
	    cuda_check(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking), "a stream", err) != 0 ||
	    make_pool(cuda, options->device_memory, err) != 0 ||
	    cuda_libraries_open(&cuda->libraries, cuda->stream, err) != 0)
		goto fail;
	cuda->transfer = cuda_transfer_new(options->threads, cuda->stream, err);
	cuda->copies = cuda->transfer ? cuda_copies_new(err) : NULL;
	if (!cuda->copies || name_identity(cuda, err) != 0)
		goto fail;
	return &cuda->base;
fail:
	cuda_close(&cuda->base);
	return NULL;
}

static const char *cuda_identity(struct backend *be)
{
	return cuda_of(be)->identity;
}

const struct backend_ops cuda_ops = {
	.name = "cuda",
	.own_memory = true,
	.piece_tokens = PIECE_TOKENS,
	.open = cuda_open,
	.close = cuda_close,
	.identity = cuda_identity,
	.describe = cuda_describe,
	.memory_take = cuda_memory_take,
	.memory_give = cuda_memory_give,
	.memory_copy = cuda_memory_copy,
	.buffer_take = cuda_buffer_take,
	.buffer_give = cuda_buffer_give,
	.memory_begin = cuda_memory_begin,
	.memory_wait = cuda_memory_wait,
	.rms_norm = cuda_rms_norm,
	.block_forward = cuda_block_forward,
	.head_tile = cuda_head_tile,
	.head_kl_tile = cuda_head_kl_tile,
	.gram_add = cuda_gram_add,
	.gram_mean = cuda_gram_mean,
	.rms_norm_backward = cuda_rms_norm_backward,
	.block_backward = cuda_block_backward,
	.squared_error = cuda_squared_error,
	.grid_values = cuda_grid_values,
	.grid_gradients = cuda_grid_gradients,
	.adam_step = cuda_adam_step,
	.factor = cuda_factor,
	.fit_groups = cuda_fit_groups,
	.round_nearest = cuda_round_nearest,
	.round_ldlq = cuda_round_ldlq,
	.refine = cuda_refine,
	.proxy_loss = cuda_proxy_loss,
};
