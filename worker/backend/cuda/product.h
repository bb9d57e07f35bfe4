/* product.h - float32-accurate matrix products on the tensor cores.
 *
 * An operand is split once into parts whose sum it is, and products of the parts are added up in float32 (Dekker's
 * splitting; Henry, Tang, Heinecke 2019 for bfloat16, Ootomo and Yokota 2022 for halves). Which parts, and why those,
 * stands in product.c; the kinds there are, in product_kinds.h.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_PRODUCT_H
#define QUARRY_WORKER_BACKEND_CUDA_PRODUCT_H

#include "worker/backend/cuda/frame.h"

/* A matrix ready to be multiplied; scratch of the frame, in the shape of the matrix. Parts that its kind does not have
 * are NULL; scale (one float on the device), if there, is what the parts are to be multiplied with. */
struct cuda_operand { const void *high, *low, *least; const float *scale; };

/* x: n float32 on the device, any shape. */
struct cuda_operand cuda_split(struct cuda_frame *f, const float *x, size_t n);
/* The operand that begins `elements` further on. */
struct cuda_operand cuda_operand_at(struct cuda_operand operand, size_t elements);

/* All row-major. c (m, n) = a b' + beta c and so on, with a reduction over k:
 *   CUDA_NT  a (m, k), b (n, k):  c = a b^T    y = x W^T
 *   CUDA_NN  a (m, k), b (k, n):  c = a b      dx = dy W
 *   CUDA_TN  a (k, m), b (k, n):  c = a^T b    dW = dy^T x */
enum cuda_form { CUDA_NT, CUDA_NN, CUDA_TN };

struct cuda_product {
	enum cuda_form form;
	size_t m, n, k;
	struct cuda_operand a, b;
	size_t lda, ldb, ldc;           /* elements from row to row; 0: dense */
	float *c;
	float alpha, beta;              /* beta 0: c is only written */
	size_t batch;                   /* 0 or 1: one product */
	long long a_stride, b_stride, c_stride; /* elements from one product of the batch to the next */
};

/* Whether it was launched. |d| <= 1e-6 * sqrt(sum a^2 * sum b^2) of the row and column, about what float32 itself does. */
bool cuda_multiply(struct cuda_frame *f, const struct cuda_product *p);

#endif
