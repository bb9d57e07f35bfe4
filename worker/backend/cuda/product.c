/* Products of split operands.
 *
 * One part of an operand has 8 bits (bfloat16) or 11 (half, tf32) of float32's 24, so that with two parts the worst
 * relative error of one term a b, the product of the low parts left out, is
 *
 *	bf16x3  3 * 2^-16 = 4.6e-5      tf32x3, f16x3  3 * 2^-22 = 7.2e-7      bf16x6  about 2^-23
 *
 * A column of one row, or one whose sum is one outlier, shows that error undiminished: two parts of bfloat16 do not keep
 * the bound of product.h, two of 11 bits do. Half and bfloat16 run at the same rate, tf32 at half of it, and six products
 * take twice as long as three: f16x3 is the default.
 *
 * What a half lacks is range. So the whole matrix is scaled by a power of two that puts its largest value at
 * 2^14 .. 2^15, and the low part is stored 2^11 times as large: values down to 2^-28 of the largest keep all 22 bits,
 * and what is smaller is off by at most 2^-50 of the largest. Scales stay on the device: cuBLAS reads the factors of
 * the products from there, and no split waits for the host.
 *
 * The products with low parts come first: they are small, and the sum is rounded least when it grows last.
 */
#include <limits.h>

#include "worker/backend/cuda/kernels_split.h"
#include "worker/backend/cuda/product_kinds.h"

enum { TERMS_MAX = 6, ALIGNMENT = 256 };

struct kind {
	const char *name;
	int parts;
	size_t element;         /* bytes of an element of a part */
	cudaDataType type;
	int compute, terms;
	struct { unsigned char a, b; } term[TERMS_MAX]; /* parts multiplied, 0 the high one */
};

static const struct kind kinds[CUDA_KINDS] = {
	[CUDA_F32] = { "f32", 1, 4, CUDA_R_32F, BLAS_COMPUTE_32F, 1, { { 0, 0 } } },
	[CUDA_TF32] = { "tf32", 1, 4, CUDA_R_32F, BLAS_COMPUTE_32F_FAST_TF32, 1, { { 0, 0 } } },
	[CUDA_TF32X3] = { "tf32x3", 2, 4, CUDA_R_32F, BLAS_COMPUTE_32F_FAST_TF32, 3, { { 1, 0 }, { 0, 1 }, { 0, 0 } } },
	[CUDA_BF16] = { "bf16", 1, 2, CUDA_R_16BF, BLAS_COMPUTE_32F, 1, { { 0, 0 } } },
	[CUDA_BF16X3] = { "bf16x3", 2, 2, CUDA_R_16BF, BLAS_COMPUTE_32F, 3, { { 1, 0 }, { 0, 1 }, { 0, 0 } } },
	[CUDA_BF16X6] = { "bf16x6", 3, 2, CUDA_R_16BF, BLAS_COMPUTE_32F, 6,
			  { { 2, 0 }, { 0, 2 }, { 1, 1 }, { 1, 0 }, { 0, 1 }, { 0, 0 } } },
	[CUDA_F16] = { "f16", 1, 2, CUDA_R_16F, BLAS_COMPUTE_32F, 1, { { 0, 0 } } },
	[CUDA_F16X3] = { "f16x3", 2, 2, CUDA_R_16F, BLAS_COMPUTE_32F, 3, { { 1, 0 }, { 0, 1 }, { 0, 0 } } },
};

const char *cuda_kind_name(enum cuda_kind kind)
{
	return kinds[kind].name;
}

int cuda_kind_products(enum cuda_kind kind)
{
	return kind == CUDA_F32 ? 0 : kinds[kind].terms;
}

/* --- splitting --------------------------------------------------------------------------------- */

static size_t aligned(size_t bytes)
{
	return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static cudaError_t split_half(struct cuda_frame *f, const float *x, size_t n, void *high, void *low, float *scale)
{
	const size_t mark = cuda_mark(f);
	uint32_t *largest = cuda_take(f, CUDA_SPLIT_BLOCKS * sizeof(*largest));
	cudaError_t status = cudaSuccess;

	if (largest)
		status = cuda_split_half_launch(f->cuda->stream, x, n, high, low, scale, largest);
	cuda_drop(f, mark);
	return status;
}

static cudaError_t split(struct cuda_frame *f, enum cuda_kind kind, const float *x, size_t n, void *const part[3],
			 float *scale)
{
	switch (kind) {
	case CUDA_TF32X3:
		return cuda_split_tf32_launch(f->cuda->stream, x, n, part[0], part[1]);
	case CUDA_BF16: case CUDA_BF16X3: case CUDA_BF16X6:
		return cuda_split_bf16_launch(f->cuda->stream, x, n, part[0], part[1], part[2]);
	case CUDA_F16: case CUDA_F16X3:
		return split_half(f, x, n, part[0], part[1], scale);
	case CUDA_F32: case CUDA_TF32: case CUDA_KINDS:
		break; /* used as they are */
	}
	return cudaSuccess;
}

static bool is_half(enum cuda_kind kind)
{
	return kinds[kind].type == CUDA_R_16F;
}

struct cuda_operand cuda_split_as(struct cuda_frame *f, enum cuda_kind kind, const float *x, size_t n)
{
	const struct kind *k = &kinds[kind];
	const size_t bytes = aligned(n * k->element);
	void *part[3] = { NULL };
	float *scale = NULL;
	char *memory;

	if (kind == CUDA_F32 || kind == CUDA_TF32)
		return (struct cuda_operand){ .high = x };
	memory = n > 0 ? cuda_take(f, (size_t)k->parts * bytes + (is_half(kind) ? sizeof(*scale) : 0)) : NULL;
	if (!memory)
		return (struct cuda_operand){ 0 };
	for (int i = 0; i < k->parts; i++)
		part[i] = memory + (size_t)i * bytes;
	if (is_half(kind))
		scale = (float *)(memory + (size_t)k->parts * bytes);
	cuda_try(f, split(f, kind, x, n, part, scale));
	return (struct cuda_operand){ part[0], part[1], part[2], scale };
}

struct cuda_operand cuda_split(struct cuda_frame *f, const float *x, size_t n)
{
	return cuda_split_as(f, CUDA_KIND_DEFAULT, x, n);
}

static const void *at(const void *part, size_t elements)
{
	return part ? (const char *)part + elements * kinds[CUDA_KIND_DEFAULT].element : NULL;
}

struct cuda_operand cuda_operand_at(struct cuda_operand operand, size_t elements)
{
	return (struct cuda_operand){ at(operand.high, elements), at(operand.low, elements),
				      at(operand.least, elements), operand.scale };
}

/* --- multiplying ------------------------------------------------------------------------------- */

/* A row-major c is the column-major c^T = (b side) (a side): a and b change places, and an operand is transposed when
 * its rows are not along k as c's row-major rows want them. */
struct layout { int b_turn, a_turn; size_t lda, ldb, ldc; };

static struct layout layout_of(const struct cuda_product *p)
{
	struct layout l = { BLAS_N, BLAS_N, p->lda, p->ldb, p->ldc };

	switch (p->form) {
	case CUDA_NT:
		l.b_turn = BLAS_T;
		break;
	case CUDA_NN:
		break;
	case CUDA_TN:
		l.a_turn = BLAS_T;
		break;
	}
	if (l.lda == 0)
		l.lda = p->form == CUDA_TN ? p->m : p->k;
	if (l.ldb == 0)
		l.ldb = p->form == CUDA_NT ? p->k : p->n;
	if (l.ldc == 0)
		l.ldc = p->n;
	return l;
}

static bool fits(struct cuda_frame *f, const struct cuda_product *p, const struct layout *l)
{
	if (p->m <= INT_MAX && p->n <= INT_MAX && p->k <= INT_MAX && l->lda <= INT_MAX && l->ldb <= INT_MAX &&
	    l->ldc <= INT_MAX && p->batch <= INT_MAX)
		return true;
	err_set(f->err, ERR_INVALID, "%s: %zu products of (%zu, %zu, %zu), rows %zu, %zu and %zu apart, are more than "
		"cuBLAS takes", f->what, p->batch, p->m, p->n, p->k, l->lda, l->ldb, l->ldc);
	cuda_fail(f);
	return false;
}

static const void *part_of(const struct cuda_operand *o, int part)
{
	return part == 0 ? o->high : part == 1 ? o->low : o->least;
}

/* One product of parts, or a batch of them. */
static int launch(const struct cuda_libraries *blas, const struct kind *k, const struct cuda_product *p,
		  const struct layout *l, const void *a, const void *b, const float *alpha, const float *beta)
{
	const int m = (int)p->m, n = (int)p->n, depth = (int)p->k;
	const int lda = (int)l->lda, ldb = (int)l->ldb, ldc = (int)l->ldc;

	if (p->batch <= 1)
		return blas->gemm(blas->blas, l->b_turn, l->a_turn, n, m, depth, alpha, b, k->type, ldb, a, k->type,
				  lda, beta, p->c, CUDA_R_32F, ldc, k->compute, BLAS_ALGORITHM_DEFAULT);
	return blas->gemm_batched(blas->blas, l->b_turn, l->a_turn, n, m, depth, alpha, b, k->type, ldb, p->b_stride,
				  a, k->type, lda, p->a_stride, beta, p->c, CUDA_R_32F, ldc, p->c_stride,
				  (int)p->batch, k->compute, BLAS_ALGORITHM_DEFAULT);
}

/* alpha of products with low parts, alpha of the last one, beta of the first one, beta of the others: all products of
 * the kind, the smallest ones first. */
static void launch_all(struct cuda_frame *f, const struct kind *k, const struct cuda_product *p, const struct layout *l,
		       const float *factors)
{
	for (int t = 0; t < k->terms && cuda_ok(f); t++) {
		const int a = k->term[t].a, b = k->term[t].b;

		cuda_try_library(f, "cuBLAS", launch(&f->cuda->libraries, k, p, l, part_of(&p->a, a), part_of(&p->b, b),
						     factors + (a + b == 0), factors + (t == 0 ? 2 : 3)));
	}
}

/* Factors that depend on the scales of the operands are computed on the device and read there. */
static void launch_scaled(struct cuda_frame *f, const struct kind *k, const struct cuda_product *p,
			  const struct layout *l)
{
	const struct cuda_libraries *blas = &f->cuda->libraries;
	const size_t mark = cuda_mark(f);
	float *factors = cuda_take(f, 4 * sizeof(*factors));

	if (factors && cuda_try(f, cuda_factors_launch(f->cuda->stream, p->alpha, p->beta, p->a.scale, p->b.scale,
						       factors)) &&
	    cuda_try_library(f, "cuBLAS", blas->factors_on(blas->blas, BLAS_FACTORS_DEVICE))) {
		launch_all(f, k, p, l, factors);
		cuda_try_library(f, "cuBLAS", blas->factors_on(blas->blas, BLAS_FACTORS_HOST));
	}
	cuda_drop(f, mark);
}

bool cuda_multiply_as(struct cuda_frame *f, enum cuda_kind kind, const struct cuda_product *p)
{
	const struct layout l = layout_of(p);
	const float factors[4] = { p->alpha, p->alpha, p->beta, 1 };

	if (!cuda_ok(f) || p->m == 0 || p->n == 0 || !fits(f, p, &l))
		return cuda_ok(f);
	if (p->a.scale)
		launch_scaled(f, &kinds[kind], p, &l);
	else
		launch_all(f, &kinds[kind], p, &l, factors);
	return cuda_ok(f);
}

bool cuda_multiply(struct cuda_frame *f, const struct cuda_product *p)
{
	return cuda_multiply_as(f, CUDA_KIND_DEFAULT, p);
}
