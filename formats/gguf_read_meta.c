/* gguf_read_meta.c - values out of an open file. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "formats/gguf_read.h"

/* --- looking up ---------------------------------------------------------------------------------- */

const struct gr_tensor *gr_find(const struct gr_file *g, const char *name)
{
	for (size_t i = 0; i < g->tensor_count; i++)
		if (strcmp(g->tensors[i].name, name) == 0)
			return &g->tensors[i];
	return NULL;
}

/* `key` against a pair's: texts in the order of their bytes. */
static int compare_key(const void *key, const void *member)
{
	const struct gr_text *have = &((const struct gr_pair *)member)->key;
	const char *wanted = key;
	const size_t len = strlen(wanted);
	const int order = memcmp(wanted, have->at, len < have->len ? len : have->len);

	return order ? order : (len > have->len) - (len < have->len);
}

const struct gr_pair *gr_pair(const struct gr_file *g, const char *key)
{
	return g->pair_count ? bsearch(key, g->pairs, g->pair_count, sizeof(*g->pairs), compare_key) : NULL;
}

/* --- numbers ------------------------------------------------------------------------------------- */

static uint64_t little(const char *bytes, unsigned count)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < count; i++)
		value |= (uint64_t)(unsigned char)bytes[i] << 8 * i;
	return value;
}

static double as_float(const char *bytes)
{
	const uint32_t bits = (uint32_t)little(bytes, 4);
	float value;

	memcpy(&value, &bits, sizeof(value));
	return (double)value;
}

static double as_double(const char *bytes)
{
	const uint64_t bits = little(bytes, 8);
	double value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* Bytes of one number of this type, 0 when it is none; signed integers have `*is_signed`. */
static unsigned integer_bytes(enum gr_value type, bool *is_signed)
{
	*is_signed = false;
	switch (type) {
	case GR_I8:
		*is_signed = true;
		return 1;
	case GR_U8:
		return 1;
	case GR_I16:
		*is_signed = true;
		return 2;
	case GR_U16:
		return 2;
	case GR_I32:
		*is_signed = true;
		return 4;
	case GR_U32:
		return 4;
	case GR_I64:
		*is_signed = true;
		return 8;
	case GR_U64:
		return 8;
	case GR_F32:
	case GR_F64:
	case GR_BOOL:
	case GR_STRING:
	case GR_ARRAY:
	case GR_VALUES:
		break;
	}
	return 0;
}

static int64_t sign_extended(uint64_t value, unsigned bytes)
{
	const unsigned unused = 64 - 8 * bytes;

	return (int64_t)(value << unused) >> unused;
}

/* One number; its length, or 0 when the type is no number. */
static unsigned number_of(enum gr_value type, const char *bytes, double *out)
{
	bool is_signed;
	unsigned count = integer_bytes(type, &is_signed);

	if (type == GR_F32) {
		*out = as_float(bytes);
		return 4;
	}
	if (type == GR_F64) {
		*out = as_double(bytes);
		return 8;
	}
	if (count > 0)
		*out = is_signed ? (double)sign_extended(little(bytes, count), count) : (double)little(bytes, count);
	return count;
}

/* --- single values ------------------------------------------------------------------------------- */

static const struct gr_pair *single(const struct gr_file *g, const char *key)
{
	const struct gr_pair *p = gr_pair(g, key);

	return p && !p->is_array ? p : NULL;
}

bool gr_u64(const struct gr_file *g, const char *key, uint64_t *out)
{
	const struct gr_pair *p = single(g, key);
	bool is_signed;
	unsigned bytes = p ? integer_bytes(p->type, &is_signed) : 0;

	if (bytes == 0)
		return false;
	*out = little(g->head.data + p->at, bytes);
	return !is_signed || sign_extended(*out, bytes) >= 0;
}

bool gr_number(const struct gr_file *g, const char *key, double *out)
{
	const struct gr_pair *p = single(g, key);

	return p && number_of(p->type, g->head.data + p->at, out) > 0;
}

bool gr_bool(const struct gr_file *g, const char *key, bool *out)
{
	const struct gr_pair *p = single(g, key);

	if (!p || p->type != GR_BOOL)
		return false;
	*out = g->head.data[p->at] != 0;
	return true;
}

bool gr_string(const struct gr_file *g, const char *key, struct gr_text *out)
{
	const struct gr_pair *p = single(g, key);
	size_t at = 0;

	return p && gr_next_string(g, p, &at, out);
}

/* --- arrays -------------------------------------------------------------------------------------- */

bool gr_next_string(const struct gr_file *g, const struct gr_pair *p, size_t *at, struct gr_text *out)
{
	const char *bytes = g->head.data + p->at + *at;

	if (p->type != GR_STRING || *at >= p->len)
		return false;
	out->len = (size_t)little(bytes, 8);
	out->at = bytes + 8;
	*at += 8 + out->len;
	return true;
}

bool gr_next_number(const struct gr_file *g, const struct gr_pair *p, size_t *at, double *out)
{
	unsigned bytes;

	if (*at >= p->len)
		return false;
	bytes = number_of(p->type, g->head.data + p->at + *at, out);
	*at += bytes;
	return bytes > 0;
}
