/* kernels_gram.h - device code of gram.c, which says how its parts work together.
 *
 * Every array is on the device; a pass has at most GRAM_PASS_MAX rows. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_KERNELS_GRAM_H
#define QUARRY_WORKER_BACKEND_CUDA_KERNELS_GRAM_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
	GRAM_RUN = 1024,                /* rows multiplied before their sum goes into double */
	GRAM_PASS_MAX = 16 * GRAM_RUN,
	GRAM_CHUNK = 128,               /* rows that one thread looks through for the largest value of a column */
	GRAM_COPIES = 4                 /* high, low, high, high */
};

/* The rows of a pass and the two halves that they are cut into, column by column scaled. */
struct gram_rows {
	const float *x;                 /* (rows, cols) */
	size_t rows, cols;
	uint32_t *largest;              /* (ceil(rows / GRAM_CHUNK), cols): scratch */
	float *power;                   /* (cols): what each column is multiplied with, a power of two */
	double *back;                   /* (cols): 1 / power */
	uint16_t *halves;               /* (rows * GRAM_COPIES, cols): of each run its high, low, high, high parts */
};
cudaError_t cuda_gram_split_launch(cudaStream_t stream, const struct gram_rows *g);

/* h (cols, cols) += the sum over `runs` of products (m, n), apart (m * n), of scaled columns: those of rows first .. and
 * columns first .. of h, on and below the diagonal; and the mirror image. bad: set where the diagonal is not finite. */
struct gram_fold {
	const float *products;
	int runs;
	size_t m, n, first, cols;
	const double *back;
	double *h;
	int *bad;
};
cudaError_t cuda_gram_fold_launch(cudaStream_t stream, const struct gram_fold *g);

/* h (cols, cols) = h / rows; diagonal (cols) is what then stands on its diagonal. bad: set where that is not finite. */
cudaError_t cuda_gram_mean_launch(cudaStream_t stream, double *h, size_t cols, double rows, double *diagonal, int *bad);

#ifdef __cplusplus
}
#endif

#endif
