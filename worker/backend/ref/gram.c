/* gram_add and gram_mean of the reference backend. */
#include <math.h>

#include "worker/backend/ref/ref.h"
#include "worker/backend/shape.h"

int ref_gram_add(struct backend *be, const float *x, size_t rows, size_t cols, double *h,
		 struct err *err)
{
	bool finite = true;

	(void)be;
	if (matrix_shape_check("gram_add", rows, cols, err) != 0)
		return -1;
	for (size_t r = 0; r < rows; r++) {
		const float *row = x + r * cols;

		for (size_t i = 0; i < cols; i++) {
			const double xi = row[i];

			for (size_t j = 0; j <= i; j++)
				h[i * cols + j] += xi * row[j];
		}
	}
	for (size_t i = 0; i < cols; i++) {
		for (size_t j = 0; j < i; j++)
			h[j * cols + i] = h[i * cols + j];
		finite = finite && isfinite(h[i * cols + i]);
	}
	return finite ? 0 : err_set_not_finite(err, "gram_add");
}

int ref_gram_mean(struct backend *be, double *h, size_t cols, uint64_t rows, double *diagonal,
		  struct err *err)
{
	bool finite = true;

	(void)be;
	if (gram_mean_check(cols, rows, err) != 0)
		return -1;
	for (size_t i = 0; i < cols * cols; i++)
		h[i] /= (double)rows;
	for (size_t i = 0; i < cols; i++) {
		diagonal[i] = h[i * cols + i];
		finite = finite && isfinite(diagonal[i]);
	}
	return finite ? 0 : err_set_not_finite(err, "gram_mean");
}
