/* libraries.h - cuBLAS and cuSOLVER, opened at run time.
 *
 * The few functions in use are declared here after NVIDIA's published interfaces (cuBLAS and cuSOLVER 13 library
 * documentation), so that building needs nvcc and the runtime alone, and a program built with CUDA starts on a machine that
 * has none of it. Status 0 is success everywhere. Matrices are column-major: a row-major (rows, cols) array with leading
 * dimension cols is the transposed (cols, rows) one.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_LIBRARIES_H
#define QUARRY_WORKER_BACKEND_CUDA_LIBRARIES_H

#include <cuda_runtime_api.h>
#include <library_types.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum { BLAS_N = 0, BLAS_T = 1 };                /* cublasOperation_t */
enum { BLAS_LOWER = 0, BLAS_UPPER = 1 };        /* cublasFillMode_t */
enum {                                          /* cublasComputeType_t */
	BLAS_COMPUTE_32F = 68, BLAS_COMPUTE_32F_PEDANTIC = 69, BLAS_COMPUTE_32F_FAST_TF32 = 77,
	BLAS_COMPUTE_64F = 70
};
enum { BLAS_ALGORITHM_DEFAULT = -1 };           /* cublasGemmAlgo_t */
enum { BLAS_FACTORS_HOST = 0, BLAS_FACTORS_DEVICE = 1 }; /* cublasPointerMode_t: where alpha and beta lie */

struct blas_context;
struct solver_context;
struct solver_params;

struct cuda_libraries {
	void *blas_file, *solver_file;          /* dlopen() */
	struct blas_context *blas;
	struct solver_context *solver;
	void *workspace;                        /* of cuBLAS, on the device: fixed, so that results are */
	int blas_version, solver_version;

	int (*factors_on)(struct blas_context *, int mode); /* BLAS_FACTORS_HOST but while product.c is at work */
	int (*gemm)(struct blas_context *, int transa, int transb, int m, int n, int k, const void *alpha,
		    const void *a, cudaDataType a_type, int lda, const void *b, cudaDataType b_type, int ldb,
		    const void *beta, void *c, cudaDataType c_type, int ldc, int compute, int algorithm);
	int (*gemm_batched)(struct blas_context *, int transa, int transb, int m, int n, int k, const void *alpha,
			    const void *a, cudaDataType a_type, int lda, long long a_stride, const void *b,
			    cudaDataType b_type, int ldb, long long b_stride, const void *beta, void *c,
			    cudaDataType c_type, int ldc, long long c_stride, int batch, int compute,
			    int algorithm);
	int (*potrf_size)(struct solver_context *, struct solver_params *, int uplo, int64_t n, cudaDataType a_type,
			  const void *a, int64_t lda, cudaDataType compute, size_t *device_bytes, size_t *host_bytes);
	int (*potrf)(struct solver_context *, struct solver_params *, int uplo, int64_t n, cudaDataType a_type, void *a,
		     int64_t lda, cudaDataType compute, void *device_work, size_t device_bytes, void *host_work,
		     size_t host_bytes, int *info);
	struct solver_params *params;
};

/* Opens both and binds them to the stream. -1 with err set, naming the file that is missing; then nothing is held. */
int cuda_libraries_open(struct cuda_libraries *l, cudaStream_t stream, struct err *err);
void cuda_libraries_close(struct cuda_libraries *l);

#endif
