/* gram_add of the reference backend. */
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
