/* product_kinds.h - the ways there are to make a product float32-accurate, for product.c and for measuring them.
 *
 * Operations use product.h, which is CUDA_KIND_DEFAULT everywhere. Internal to worker/backend/cuda.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_PRODUCT_KINDS_H
#define QUARRY_WORKER_BACKEND_CUDA_PRODUCT_KINDS_H

#include "worker/backend/cuda/product.h"

enum cuda_kind {
	CUDA_F32,               /* float32 arithmetic, no tensor cores */
	CUDA_TF32,              /* one part of 11 bits */
	CUDA_TF32X3,            /* two, three products */
	CUDA_BF16,              /* one part of 8 bits */
	CUDA_BF16X3,            /* two, three products */
	CUDA_BF16X6,            /* three, six products */
	CUDA_F16,               /* one part of 11 bits */
	CUDA_F16X3,             /* two, three products */
	CUDA_KINDS
};

#define CUDA_KIND_DEFAULT CUDA_F16X3

/* "bf16x3" and so on. */
const char *cuda_kind_name(enum cuda_kind kind);
/* How many products on the tensor cores one of this kind takes; 0: float32 arithmetic. */
int cuda_kind_products(enum cuda_kind kind);

/* As cuda_split() and cuda_multiply(), of that kind; both operands must be of it. Operands of CUDA_F16 may be halves
 * of the caller's own, with scale NULL in both. */
struct cuda_operand cuda_split_as(struct cuda_frame *f, enum cuda_kind kind, const float *x, size_t n);
bool cuda_multiply_as(struct cuda_frame *f, enum cuda_kind kind, const struct cuda_product *p);

#endif
