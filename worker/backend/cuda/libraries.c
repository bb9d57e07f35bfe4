#include "worker/backend/cuda/libraries.h"

#include <dlfcn.h>
#include <string.h>

enum { WORKSPACE_BYTES = 64 << 20 };

static const char blas_name[] = "libcublas.so.13", solver_name[] = "libcusolver.so.12";

static void *open_file(const char *name, struct err *err)
{
	void *file = dlopen(name, RTLD_NOW | RTLD_LOCAL);

	if (!file)
		err_set(err, ERR_UNAVAILABLE, "the cuda backend needs %s of CUDA 13 where the loader finds it "
			"(LD_LIBRARY_PATH): %s", name, dlerror());
	return file;
}

/* Function pointers cannot be had from void * in standard C but by copying the bits. */
static int find(void *file, const char *name, void *function, struct err *err)
{
	void *address = dlsym(file, name);

	if (!address)
		return err_set(err, ERR_UNAVAILABLE, "the cuda backend needs %s, which this version of its library does "
			       "not have", name);
	memcpy(function, &address, sizeof(address));
	return 0;
}

static int open_blas(struct cuda_libraries *l, cudaStream_t stream, struct err *err)
{
	int (*create)(struct blas_context **) = NULL, (*set_stream)(struct blas_context *, cudaStream_t) = NULL;
	int (*set_workspace)(struct blas_context *, void *, size_t) = NULL;
	int (*version)(struct blas_context *, int *) = NULL;

	if (find(l->blas_file, "cublasCreate_v2", &create, err) != 0 ||
	    find(l->blas_file, "cublasSetStream_v2", &set_stream, err) != 0 ||
	    find(l->blas_file, "cublasSetWorkspace_v2", &set_workspace, err) != 0 ||
	    find(l->blas_file, "cublasGetVersion_v2", &version, err) != 0 ||
	    find(l->blas_file, "cublasSetPointerMode_v2", &l->factors_on, err) != 0 ||
	    find(l->blas_file, "cublasGemmEx", &l->gemm, err) != 0 ||
	    find(l->blas_file, "cublasGemmStridedBatchedEx", &l->gemm_batched, err) != 0)
		return -1;
	if (cudaMalloc(&l->workspace, WORKSPACE_BYTES) != cudaSuccess)
		return err_set_nomem(err, "the workspace of cuBLAS");
	if (create(&l->blas) != 0 || set_stream(l->blas, stream) != 0 ||
	    set_workspace(l->blas, l->workspace, WORKSPACE_BYTES) != 0 || version(l->blas, &l->blas_version) != 0)
		return err_set(err, ERR_UNAVAILABLE, "cuBLAS cannot be started on this GPU");
	return 0;
}

static int open_solver(struct cuda_libraries *l, cudaStream_t stream, struct err *err)
{
	int (*create)(struct solver_context **) = NULL, (*set_stream)(struct solver_context *, cudaStream_t) = NULL;
	int (*create_params)(struct solver_params **) = NULL, (*version)(int *) = NULL;

	if (find(l->solver_file, "cusolverDnCreate", &create, err) != 0 ||
	    find(l->solver_file, "cusolverDnSetStream", &set_stream, err) != 0 ||
	    find(l->solver_file, "cusolverDnCreateParams", &create_params, err) != 0 ||
	    find(l->solver_file, "cusolverGetVersion", &version, err) != 0 ||
	    find(l->solver_file, "cusolverDnXpotrf_bufferSize", &l->potrf_size, err) != 0 ||
	    find(l->solver_file, "cusolverDnXpotrf", &l->potrf, err) != 0)
		return -1;
	if (create(&l->solver) != 0 || set_stream(l->solver, stream) != 0 || create_params(&l->params) != 0 ||
	    version(&l->solver_version) != 0)
		return err_set(err, ERR_UNAVAILABLE, "cuSOLVER cannot be started on this GPU");
	return 0;
}

int cuda_libraries_open(struct cuda_libraries *l, cudaStream_t stream, struct err *err)
{
	*l = (struct cuda_libraries){ .blas_file = open_file(blas_name, err) };
	if (!l->blas_file)
		return -1;
	l->solver_file = open_file(solver_name, err);
	if (l->solver_file && open_blas(l, stream, err) == 0 && open_solver(l, stream, err) == 0)
		return 0;
	cuda_libraries_close(l);
	return -1;
}

/* Ends what was begun, if it was. */
static void destroy(void *file, const char *name, void *context)
{
	int (*function)(void *) = NULL;

	if (file && context && find(file, name, &function, NULL) == 0)
		function(context);
}

void cuda_libraries_close(struct cuda_libraries *l)
{
	destroy(l->blas_file, "cublasDestroy_v2", l->blas);
	destroy(l->solver_file, "cusolverDnDestroyParams", l->params);
	destroy(l->solver_file, "cusolverDnDestroy", l->solver);
	if (l->workspace)
		cudaFree(l->workspace);
	/* The files stay open: their own threads and handlers may outlive the contexts. */
	*l = (struct cuda_libraries){ 0 };
}
