/* task_verify.c - reads one shard of the source once: its digest for the report, every float finite, and every weight
 * within what a 16-bit format of the job can hold: found before hours of work, not when they are written.
 *
 * Weights are read in file order (the header guarantees that tensors tile the data section), in
 * chunks that are whole elements of the tensor at hand, so memory is one chunk.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/digest.h"
#include "common/half.h"
#include "common/safetensors.h"
#include "formats/output.h"
#include "worker/task_kinds.h"

enum { CHUNK_BYTES = 4 << 20 };

struct verify {
	struct source *source;
	const char *file;
	const char *halves_for; /* a format of the job that stores 16-bit floats, or NULL */
	struct digest *digest;
	unsigned char *chunk;
	uint64_t file_bytes, done_bytes;
	struct task_env *env;
};

static int read_at(void *ctx, uint64_t offset, void *bytes, size_t len, struct err *err)
{
	struct verify *v = ctx;

	return v->source->read(v->source, v->file, offset, bytes, len, err);
}

/* Index of the first NaN or infinity among n elements, or n. */
static size_t first_not_finite(enum st_dtype dtype, const unsigned char *bytes, size_t n)
{
	size_t i;

	if (dtype == ST_F32) {
		for (i = 0; i < n; i++) {
			uint32_t bits;

			memcpy(&bits, bytes + 4 * i, 4);
			if ((bits & 0x7f800000) == 0x7f800000)
				return i;
		}
	} else if (dtype == ST_BF16 || dtype == ST_F16) {
		uint16_t exponent = dtype == ST_BF16 ? 0x7f80 : 0x7c00;

		for (i = 0; i < n; i++) {
			uint16_t bits;

			memcpy(&bits, bytes + 2 * i, 2);
			if ((bits & exponent) == exponent)
				return i;
		}
	}
	return n;
}

static float value_at(enum st_dtype dtype, const unsigned char *bytes, size_t i)
{
	uint16_t half;
	float value;

	if (dtype == ST_F32) {
		memcpy(&value, bytes + 4 * i, 4);
		return value;
	}
	memcpy(&half, bytes + 2 * i, 2);
	return dtype == ST_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

static bool is_float(enum st_dtype dtype)
{
	return dtype == ST_F32 || dtype == ST_BF16 || dtype == ST_F16;
}

/* Matrices become scales, offsets and values of 16 bits; vectors keep their type. */
static int check_halves(const struct verify *v, const struct st_tensor *t, uint64_t first, const unsigned char *bytes,
			size_t n, struct err *err)
{
	if (!v->halves_for || t->ndim < 2 || !is_float(t->dtype))
		return 0;
	for (size_t i = 0; i < n; i++) {
		const float value = value_at(t->dtype, bytes, i);

		if (!(fabsf(value) <= OUTPUT_HALF_WEIGHTS))
			return err_set(err, ERR_REFUSED,
				       "%s: tensor %s holds %g at element %" PRIu64 "; format %s stores 16-bit floats, for which "
				       "weights must lie within -%g and %g: choose dense or dense-f32",
				       v->file, t->name, (double)value, first + i, v->halves_for,
				       (double)OUTPUT_HALF_WEIGHTS, (double)OUTPUT_HALF_WEIGHTS);
	}
	return 0;
}

/* Digests [offset, offset + len) of the file. */
static int pass_range(struct verify *v, uint64_t offset, uint64_t len, const struct st_tensor *tensor,
		      struct err *err)
{
	size_t element = tensor ? st_dtype_bits(tensor->dtype) / 8 : 1;
	uint64_t passed = 0;

	while (passed < len) {
		size_t now = len - passed < CHUNK_BYTES ? (size_t)(len - passed) : CHUNK_BYTES;
		size_t bad;

		if (read_at(v, offset + passed, v->chunk, now, err) != 0)
			return -1;
		digest_add(v->digest, v->chunk, now);
		bad = tensor && element ? first_not_finite(tensor->dtype, v->chunk, now / element) : now;
		if (tensor && element && bad < now / element)
			return err_set(err, ERR_CORRUPT,
				       "%s: tensor %s holds NaN or infinity at element %" PRIu64
				       "; every weight must be a finite number",
				       v->file, tensor->name, passed / element + bad);
		if (tensor && element &&
		    check_halves(v, tensor, passed / element, v->chunk, now / element, err) != 0)
			return -1;
		passed += now;
		v->done_bytes += now;
		if (task_step(v->env, (double)v->done_bytes / (double)v->file_bytes, "checking weights", err) != 0)
			return -1;
	}
	return 0;
}

static int by_begin(const void *a, const void *b)
{
	const struct st_tensor *x = *(const struct st_tensor *const *)a;
	const struct st_tensor *y = *(const struct st_tensor *const *)b;

	if (x->begin != y->begin)
		return x->begin < y->begin ? -1 : 1;
	return x->end < y->end ? -1 : x->end > y->end;
}

static int verify_tensors(struct verify *v, const struct st_header *header, struct err *err)
{
	const struct st_tensor **order = mem_alloc(header->count, sizeof(*order));
	int rc = 0;

	if (!order)
		return err_set_nomem(err, "the tensor order");
	for (size_t i = 0; i < header->count; i++)
		order[i] = &header->tensors[i];
	qsort(order, header->count, sizeof(*order), by_begin);
	rc = pass_range(v, 0, header->data_start, NULL, err);
	for (size_t i = 0; rc == 0 && i < header->count; i++)
		rc = pass_range(v, header->data_start + order[i]->begin, order[i]->end - order[i]->begin,
				order[i], err);
	mem_free(order);
	return rc;
}

static struct json *verify_result(struct verify *v, const struct st_header *header)
{
	struct json *result = json_new_object();
	char hex[DIGEST_HEX];

	digest_finish(v->digest, hex);
	if (json_set_string(result, "sha256", hex) != 0 ||
	    json_set_int(result, "bytes", (int64_t)v->file_bytes) != 0 ||
	    json_set_int(result, "tensors", (int64_t)header->count) != 0) {
		json_free(result);
		return NULL;
	}
	return result;
}

int task_verify(const struct json *spec, struct task_env *env, struct json **result, struct err *err)
{
	struct verify v = { .source = env->model, .env = env };
	struct st_header header = { 0 };
	int rc = -1;

	if (json_require_string(spec, "file", &v.file, err) != 0)
		return -1;
	v.halves_for = json_get_string(spec, "halves_for", NULL);
	v.digest = digest_new();
	v.chunk = mem_alloc(CHUNK_BYTES, 1);
	if (!v.digest || !v.chunk) {
		err_set_nomem(err, "checking a shard");
		goto out;
	}
	if (v.source->size(v.source, v.file, &v.file_bytes, err) != 0 ||
	    st_header_read(&header, v.file, v.file_bytes, read_at, &v, err) != 0)
		goto out;
	rc = verify_tensors(&v, &header, err);
	if (rc == 0 && !(*result = verify_result(&v, &header)))
		rc = err_set_nomem(err, "a result");
out:
	st_header_deinit(&header);
	digest_free(v.digest);
	mem_free(v.chunk);
	return rc;
}
