#include "formats/read_parts.h"

#include <ctype.h>
#include <math.h>
#include <regex.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/utf8.h"

enum { NAME_MAX_BYTES = 1024, PATTERN_MAX = 4096, GROUPS_MAX = 1 << 30 };

/* --- tensors ------------------------------------------------------------------------------------- */

void read_tensor_free(struct stored_tensor *t)
{
	mem_free(t->bytes);
	*t = (struct stored_tensor){ 0 };
}

static int check_tensor(const struct stored_tensor *t, const char *name, struct wanted want, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];
	uint64_t bits = st_dtype_bits(t->dtype);

	if (!(want.dtypes >> t->dtype & 1))
		return err_set(err, ERR_CORRUPT, "tensor %s has type %s, which its format does not store there",
			       utf8_show(shown, name), st_dtype_name(t->dtype));
	if (t->ndim != want.ndim)
		return err_set(err, ERR_CORRUPT, "tensor %s has %u dimensions; its format gives it %u",
			       utf8_show(shown, name), t->ndim, want.ndim);
	for (unsigned d = 0; d < t->ndim; d++)
		if (t->shape[d] == 0 || !u64_mul(bits, t->shape[d], &bits))
			return err_set(err, ERR_CORRUPT, "tensor %s has a dimension of %llu", utf8_show(shown, name),
				       (unsigned long long)t->shape[d]);
	if (bits / 8 != t->len)
		return err_set(err, ERR_CORRUPT, "tensor %s has %zu bytes; its shape needs %llu", utf8_show(shown, name), t->len,
			       (unsigned long long)(bits / 8));
	return 0;
}

int read_tensor(struct stored_source source, const char *module, struct wanted want, struct stored_tensor *out,
		struct err *err)
{
	char name[NAME_MAX_BYTES], shown[UTF8_SHOWN_MAX];
	int rc;

	*out = (struct stored_tensor){ 0 };
	if (snprintf(name, sizeof(name), "%s%s", module, want.suffix) >= (int)sizeof(name))
		return err_set(err, ERR_CORRUPT, "module %s has too long a name", utf8_show(shown, module));
	rc = source.read(source.ctx, name, out, err);
	if (rc == 1 && !want.optional)
		return err_set(err, ERR_CORRUPT, "tensor %s is missing", utf8_show(shown, name));
	if (rc == 0 && check_tensor(out, name, want, err) != 0) {
		read_tensor_free(out);
		return -1;
	}
	return rc;
}

int read_expect_shape(const struct stored_tensor *t, const char *module, const char *suffix, uint64_t rows,
		      uint64_t cols, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	if (t->shape[0] == rows && (t->ndim < 2 || t->shape[1] == cols))
		return 0;
	return err_set(err, ERR_CORRUPT, "tensor %s%s has shape [%llu, %llu]; the module's other tensors and settings ask for "
		       "[%llu, %llu]", utf8_show(shown, module), suffix, (unsigned long long)t->shape[0],
		       (unsigned long long)t->shape[1], (unsigned long long)rows, (unsigned long long)cols);
}

/* --- sizes --------------------------------------------------------------------------------------- */

int read_groups(const struct stored_settings *s, const char *module, uint64_t cols, uint64_t *groups, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	if (s->group_size == -1)
		*groups = 1;
	else if (s->group_size > 0 && cols % (uint64_t)s->group_size == 0)
		*groups = cols / (uint64_t)s->group_size;
	else
		return err_set(err, ERR_CORRUPT, "%s has %llu input channels, which groups of %lld do not divide",
			       utf8_show(shown, module), (unsigned long long)cols, (long long)s->group_size);
	return 0;
}

int read_codes_in(const char *module, uint64_t words, int bits, uint64_t *codes, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	if (u64_mul(words, 32, codes) && *codes % (uint64_t)bits == 0) {
		*codes /= (uint64_t)bits;
		return 0;
	}
	return err_set(err, ERR_CORRUPT, "%s is stored in %llu words, which codes of %d bits do not fill",
		       utf8_show(shown, module), (unsigned long long)words, bits);
}

int read_room(struct stored_module *m, const char *module, uint64_t rows, uint64_t cols, uint64_t groups,
	      struct err *err)
{
	char shown[UTF8_SHOWN_MAX];
	size_t codes, pairs;

	if (rows > SIZE_MAX || cols > SIZE_MAX || groups == 0 || groups > GROUPS_MAX || cols % groups != 0 ||
	    !size_mul((size_t)rows, (size_t)cols, &codes) || !size_mul((size_t)rows, (size_t)groups, &pairs))
		return err_set(err, ERR_CORRUPT, "%s has impossible sizes: %llu x %llu in %llu groups", utf8_show(shown, module),
			       (unsigned long long)rows, (unsigned long long)cols, (unsigned long long)groups);
	m->rows = (size_t)rows;
	m->cols = (size_t)cols;
	m->groups = (size_t)groups;
	m->codes = mem_alloc(codes, 1);
	m->group_of = mem_alloc(m->cols, sizeof(*m->group_of));
	m->scales = mem_alloc(pairs, sizeof(*m->scales));
	m->zeros = mem_alloc(pairs, sizeof(*m->zeros));
	m->offsets = mem_alloc(pairs, sizeof(*m->offsets));
	if (!m->codes || !m->group_of || !m->scales || !m->zeros || !m->offsets)
		return err_set_nomem(err, "a stored module");
	for (size_t k = 0; k < m->cols; k++)
		m->group_of[k] = (uint32_t)(k / (m->cols / m->groups));
	return 0;
}

/* --- groups and scales --------------------------------------------------------------------------- */

int read_group_map(struct stored_source source, const char *module, const char *suffix, struct stored_module *m,
		   struct err *err)
{
	struct stored_tensor t;
	char shown[UTF8_SHOWN_MAX];
	int rc = read_tensor(source, module, (struct wanted){ suffix, READ_I32, 1, true }, &t, err);

	if (rc != 0)
		return rc < 0 ? -1 : 0;
	rc = read_expect_shape(&t, module, suffix, m->cols, 0, err);
	for (size_t k = 0; rc == 0 && k < m->cols; k++) {
		m->group_of[k] = read_field(t.bytes, k, 1, 0, 32);
		if (m->group_of[k] >= m->groups)
			rc = err_set(err, ERR_CORRUPT, "tensor %s%s puts column %zu into group %d of %zu",
				     utf8_show(shown, module), suffix, k, (int)m->group_of[k], m->groups);
	}
	read_tensor_free(&t);
	return rc;
}

int read_scales(const struct stored_tensor *t, const char *module, bool transposed, struct stored_module *m,
		struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	for (size_t n = 0; n < m->rows; n++)
		for (size_t g = 0; g < m->groups; g++) {
			const double s = read_number(t, transposed ? g * m->rows + n : n * m->groups + g);

			if (!isfinite(s))
				return err_set(err, ERR_CORRUPT, "%s: the scale of row %zu, group %zu is not finite",
					       utf8_show(shown, module), n, g);
			m->scales[n * m->groups + g] = s;
		}
	return 0;
}

void read_offsets_from_zeros(struct stored_module *m)
{
	for (size_t i = 0; i < m->rows * m->groups; i++)
		m->offsets[i] = -(m->scales[i] * m->zeros[i]);
}

/* --- numbers ------------------------------------------------------------------------------------- */

static uint32_t word_at(const void *words, size_t i)
{
	const uint8_t *b = (const uint8_t *)words + 4 * i;

	return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

uint32_t read_field(const void *words, size_t first, size_t stride, uint64_t bit, int bits)
{
	const size_t word = first + (size_t)(bit / 32) * stride;
	const unsigned low = bit % 32;
	uint64_t value = word_at(words, word);

	if (low + (unsigned)bits > 32)
		value |= (uint64_t)word_at(words, word + stride) << 32;
	return (uint32_t)(value >> low & (((uint64_t)1 << bits) - 1));
}

/* Sign, `exponent` bits of exponent, `fraction` bits of fraction. */
static double small_float(uint32_t bits, int exponent, int fraction)
{
	const int top = (1 << exponent) - 1, e = (int)(bits >> fraction) & top, bias = top >> 1;
	const uint32_t m = bits & ((1u << fraction) - 1);
	double value = e == 0 ? ldexp(m, 1 - bias - fraction) : ldexp((double)(m | 1u << fraction), e - bias - fraction);

	if (e == top)
		value = m ? NAN : INFINITY;
	return bits >> (exponent + fraction) & 1 ? -value : value;
}

double read_number(const struct stored_tensor *t, size_t i)
{
	const uint8_t *b = t->bytes;

	if (t->dtype == ST_F32)
		return small_float(word_at(b, i), 8, 23);
	b += 2 * i;
	return small_float((uint32_t)b[0] | (uint32_t)b[1] << 8, t->dtype == ST_F16 ? 5 : 8, t->dtype == ST_F16 ? 10 : 7);
}

/* --- patterns ------------------------------------------------------------------------------------ */

/* Python's regular expressions and POSIX's agree on literals, sets, groups and greedy counts. */
static bool posix_reads_alike(const char *p)
{
	for (; *p; p++) {
		if (*p == '\\' && (p[1] == '\0' || isalnum((unsigned char)p[1])))
			return false;
		if (*p == '\\') {
			p++;
			continue;
		}
		if (*p == '(' && p[1] == '?')
			return false;
		if (strchr("*+?}", *p) && (p[1] == '?' || p[1] == '+'))
			return false;
		if (*p == '[') /* sets may hold backslashes, which differ */
			for (; *p && *p != ']'; p++)
				if (*p == '\\')
					return false;
		if (!*p)
			return false;
	}
	return true;
}

int read_matches(const char *pattern, const char *text, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];
	regmatch_t found;
	regex_t re;
	int rc;

	if (strlen(pattern) > PATTERN_MAX || !posix_reads_alike(pattern) || regcomp(&re, pattern, REG_EXTENDED) != 0)
		return err_set(err, ERR_UNSUPPORTED, "config.json names modules by the pattern '%s', which this reader does not "
			       "understand", utf8_show(shown, pattern));
	rc = regexec(&re, text, 1, &found, 0);
	regfree(&re);
	return rc == 0 && found.rm_so == 0;
}
