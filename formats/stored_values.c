/* stored_values.c - what the values of a decoded module say, and their common form: positive scales, groups in order. */
#include <math.h>
#include <string.h>

#include "formats/stored_parts.h"

enum { PARTS_MAX = 128 };

static bool in_order(const struct stored_module *m)
{
	if (m->groups == 0 || m->cols % m->groups != 0)
		return false;
	for (size_t k = 0; k < m->cols; k++)
		if (m->group_of[k] != k / (m->cols / m->groups))
			return false;
	return true;
}

/* s (q - z) = -s ((top - q) - (top - z)) */
static void mirror(struct stored_module *m, size_t row, size_t group)
{
	const size_t i = row * m->groups + group;
	const uint8_t top = (uint8_t)((1 << m->settings.bits) - 1);
	uint8_t *codes = m->codes + row * m->cols;

	for (size_t k = 0; k < m->cols; k++)
		if (m->group_of[k] == group)
			codes[k] = (uint8_t)(top - codes[k]);
	m->offsets[i] += m->scales[i] * top;
	m->scales[i] = -m->scales[i];
	m->zeros[i] = top - m->zeros[i];
}

/* Every weight of the group is the offset o: |o| (0 - -+1). */
static void flatten(struct stored_module *m, size_t row, size_t group)
{
	const size_t i = row * m->groups + group;
	const double offset = m->offsets[i];
	uint8_t *codes = m->codes + row * m->cols;

	for (size_t k = 0; k < m->cols; k++)
		if (m->group_of[k] == group)
			codes[k] = 0;
	m->scales[i] = offset == 0 ? 1 : fabs(offset);
	m->zeros[i] = offset == 0 ? 0 : offset > 0 ? -1 : 1;
}

void stored_tidy(struct stored_module *m, struct stored_facts *facts)
{
	facts->ordered = in_order(m);
	facts->positive = true;
	for (size_t r = 0; r < m->rows; r++)
		for (size_t g = 0; g < m->groups; g++) {
			const double s = m->scales[r * m->groups + g];

			if (s > 0)
				continue;
			facts->positive = false;
			if (s < 0)
				mirror(m, r, g);
			else
				flatten(m, r, g);
		}
}

/* --- joining groups ------------------------------------------------------------------------------ */

/* Whether runs of `p` neighbours are equal in every row, where groups stand `groups` in a row. */
static bool joinable(const struct stored_module *m, size_t groups, size_t stride, size_t p)
{
	for (size_t r = 0; r < m->rows; r++) {
		const double *s = m->scales + r * m->groups, *z = m->zeros + r * m->groups;

		for (size_t g = 0; g < groups; g++) {
			const size_t at = g * stride, first = g / p * p * stride;

			if (s[at] != s[first] || z[at] != z[first])
				return false;
		}
	}
	return true;
}

static size_t fewest_groups(const struct stored_module *m)
{
	size_t groups = m->groups, stride = 1;

	for (size_t p = 2; p <= groups; p++)
		while (groups % p == 0 && joinable(m, groups, stride, p)) {
			groups /= p;
			stride *= p;
		}
	return groups;
}

int stored_join(struct stored_module *m, size_t groups)
{
	const size_t before = m->groups, run = groups ? before / groups : 0;

	if (groups == before)
		return 0;
	if (groups == 0 || before % groups != 0 || !joinable(m, before, 1, run))
		return 1;
	for (size_t i = 0; i < m->rows * groups; i++) {
		m->scales[i] = m->scales[i * run];
		m->offsets[i] = m->offsets[i * run];
		m->zeros[i] = m->zeros[i * run];
	}
	m->groups = groups;
	for (size_t k = 0; k < m->cols; k++)
		m->group_of[k] = (uint32_t)(k / (m->cols / groups));
	return 0;
}

/* --- what the values say ------------------------------------------------------------------------- */

/* The smallest power of two n for which n z is an integer everywhere; 0 when none up to PARTS_MAX is. */
static unsigned parts_of(const struct stored_module *m)
{
	unsigned parts = 1;

	for (size_t i = 0; i < m->rows * m->groups; i++) {
		const double z = m->zeros[i];

		while (parts <= PARTS_MAX && z * parts != floor(z * parts))
			parts *= 2;
		if (parts > PARTS_MAX)
			return 0;
	}
	return parts;
}

static bool all_middle(const struct stored_module *m)
{
	const double middle = 1 << (m->settings.bits - 1);

	for (size_t i = 0; i < m->rows * m->groups; i++)
		if (m->zeros[i] != middle)
			return false;
	return true;
}

static int bits_of_codes(const struct stored_module *m)
{
	uint8_t all = 0;
	int bits = 1;

	for (size_t i = 0; i < m->rows * m->cols; i++)
		all |= m->codes[i];
	while (bits < 8 && all >> bits)
		bits++;
	return bits;
}

void stored_look(const struct stored_module *m, bool joins, struct stored_facts *facts)
{
	facts->symmetric = all_middle(m);
	facts->zero_parts = parts_of(m);
	facts->bits = bits_of_codes(m);
	facts->groups = joins && facts->ordered ? fewest_groups(m) : m->groups;
}
