/* Loops that the compiler turns into vector code, compiled once per level (levels.h).
 *
 * Accumulators are arrays of one vector's (or a few vectors') length that live in registers.
 * Rounding adds and subtracts 1.5 * 2^(mantissa bits), which rounds half to even for any argument that
 * has been clamped to the codes before.
 */
#include "worker/backend/cpu/kernels_fit.h"

#include <float.h>
#include <string.h>

#include "worker/backend/cpu/levels.h"

enum { DOUBLE_LANES = 16, RUN = 256 };

static const float round_float = 12582912.0f;           /* 1.5 * 2^23 */
static const double round_double = 6755399441055744.0;  /* 1.5 * 2^52 */

struct lane_sums {
	float e2[FIT_LANES], e[FIT_LANES], eq[FIT_LANES], q[FIT_LANES], qq[FIT_LANES];
};

/* out += the sums of points first .. last-1 for x = t * inverse + offset. */
static inline void add_run(const float *t, const float *h, size_t first, size_t last,
			   const float inverse[FIT_LANES], const float offset[FIT_LANES],
			   float bottom, float top, struct lane_sums *out)
{
	float e2[FIT_LANES] = { 0 }, se[FIT_LANES] = { 0 }, eq[FIT_LANES] = { 0 };
	float sq[FIT_LANES] = { 0 }, qq[FIT_LANES] = { 0 }, inv[FIT_LANES], off[FIT_LANES];

	memcpy(inv, inverse, sizeof(inv));
	memcpy(off, offset, sizeof(off));
	for (size_t i = first; i < last; i++) {
		const float ti = t[i], hi = h[i];

		for (int l = 0; l < FIT_LANES; l++) {
			float x = ti * inv[l] + off[l], q, e, he, hq;

			q = x < bottom ? bottom : x;
			q = q > top ? top : q;
			q = (q + round_float) - round_float;
			e = x - q;
			he = hi * e;
			hq = hi * q;
			e2[l] += he * e;
			se[l] += he;
			eq[l] += he * q;
			sq[l] += hq;
			qq[l] += hq * q;
		}
	}
	for (int l = 0; l < FIT_LANES; l++) {
		out->e2[l] += e2[l];
		out->e[l] += se[l];
		out->eq[l] += eq[l];
		out->q[l] += sq[l];
		out->qq[l] += qq[l];
	}
}

/* A step at most halves or doubles the scale: a start may be far from its codes' best line. */
static inline float bounded(float change)
{
	change = change < -0.5f ? -0.5f : change;
	return change > 1.0f ? 1.0f : change;
}

/* In code units: errors become e - ds q + dz, so s grows by 1 + ds and z to (z + dz) / (1 + ds). */
static void refit_free(const struct lane_sums *restrict c, float total,
		       struct fit_lanes *restrict lanes)
{
	for (int l = 0; l < FIT_LANES; l++) {
		const float mean = c->q[l] / total, s = lanes->s[l];
		const float spread = c->qq[l] - c->q[l] * mean;
		const float slope = bounded((c->eq[l] - c->e[l] * mean) / (spread + FLT_MIN));
		const float ds = spread > 1e-6f * c->qq[l] ? slope : 0.0f;
		const float dz = ds * mean - c->e[l] / total;
		const float loss = c->e2[l] + ds * (ds * c->qq[l] - 2.0f * c->eq[l])
			+ dz * (dz * total + 2.0f * (c->e[l] - ds * c->q[l]));

		lanes->loss[l] = s * s * loss;
		lanes->s[l] = s * (1.0f + ds);
		lanes->z[l] = (lanes->z[l] + dz) / (1.0f + ds);
	}
}

static void refit_fixed(const struct lane_sums *restrict c, float total,
			struct fit_lanes *restrict lanes)
{
	for (int l = 0; l < FIT_LANES; l++) {
		const float z = lanes->z[l], s = lanes->s[l];
		const float along = c->eq[l] - z * c->e[l];
		const float length = c->qq[l] - z * (2.0f * c->q[l] - z * total);
		const float slope = bounded(along / (length + FLT_MIN));
		const float ds = length > 1e-6f * total ? slope : 0.0f;

		lanes->loss[l] = s * s * (c->e2[l] + ds * (ds * length - 2.0f * along));
		lanes->s[l] = s * (1.0f + ds);
	}
}

static void step(const struct fit_points *points, const struct fit_rule *rule,
		 struct fit_lanes *lanes)
{
	struct lane_sums sums = { 0 };
	float inverse[FIT_LANES], offset[FIT_LANES];

	for (int l = 0; l < FIT_LANES; l++) {
		inverse[l] = 1.0f / lanes->s[l];
		offset[l] = lanes->z[l] + rule->shift * inverse[l];
	}
	for (size_t i = 0; i < points->n; i += RUN)
		add_run(points->t, points->h, i, i + RUN < points->n ? i + RUN : points->n, inverse,
			offset, rule->bottom, rule->top, &sums);
	if (rule->fixed)
		refit_fixed(&sums, points->total, lanes);
	else
		refit_free(&sums, points->total, lanes);
}

static double sum_of(const double acc[DOUBLE_LANES])
{
	double s[DOUBLE_LANES];

	memcpy(s, acc, sizeof(s));
	for (int width = DOUBLE_LANES / 2; width > 0; width /= 2)
		for (int l = 0; l < width; l++)
			s[l] += s[l + width];
	return s[0];
}

static inline double nearest_code(double w, double inverse, double z, double top)
{
	double q = w * inverse + z;

	q = q < 0.0 ? 0.0 : q;
	q = q > top ? top : q;
	return (q + round_double) - round_double;
}

static void sums(const float *w, const double *h, size_t n, double s, double z, int levels,
		 struct fit_sums *out)
{
	double e2[DOUBLE_LANES] = { 0 }, se[DOUBLE_LANES] = { 0 }, eq[DOUBLE_LANES] = { 0 };
	double sq[DOUBLE_LANES] = { 0 }, qq[DOUBLE_LANES] = { 0 };
	const double inverse = 1.0 / s, top = levels - 1;
	float wt[DOUBLE_LANES];
	double ht[DOUBLE_LANES];

	for (size_t i = 0; i < n; i += DOUBLE_LANES) {
		const float *wi = w + i;
		const double *hi = h + i;

		if (n - i < DOUBLE_LANES) {
			memset(wt, 0, sizeof(wt));
			memset(ht, 0, sizeof(ht));
			memcpy(wt, wi, (n - i) * sizeof(*wt));
			memcpy(ht, hi, (n - i) * sizeof(*ht));
			wi = wt;
			hi = ht;
		}
		for (int l = 0; l < DOUBLE_LANES; l++) {
			double q = nearest_code(wi[l], inverse, z, top), e = wi[l] - s * (q - z);
			double he = hi[l] * e, hq = hi[l] * q;

			e2[l] += he * e;
			se[l] += he;
			eq[l] += he * q;
			sq[l] += hq;
			qq[l] += hq * q;
		}
	}
	*out = (struct fit_sums){ sum_of(e2), sum_of(se), sum_of(eq), sum_of(sq), sum_of(qq) };
}

static void round_codes(const float *w, size_t n, double s, double z, int levels, uint8_t *codes)
{
	const double inverse = 1.0 / s, top = levels - 1;

	for (size_t i = 0; i < n; i++) {
		const double q = nearest_code(w[i], inverse, z, top);

		codes[i] = (uint8_t)(int)(q > 0.0 ? q : 0.0);
	}
}

/* Partial sums of one run of DOUBLE_LANES weights (or fewer, at the end). */
static inline void add_moments(const float *w, const double *h, size_t n,
			       double total[DOUBLE_LANES], double first[DOUBLE_LANES])
{
	for (size_t l = 0; l < n; l++) {
		total[l] += h[l];
		first[l] += h[l] * w[l];
	}
}

static inline void add_square(const float *w, const double *h, size_t n, double center,
			      double square[DOUBLE_LANES])
{
	for (size_t l = 0; l < n; l++)
		square[l] += h[l] * (w[l] - center) * (w[l] - center);
}

static inline void widen(const float *w, size_t n, float low[DOUBLE_LANES], float high[DOUBLE_LANES])
{
	for (size_t l = 0; l < n; l++) {
		low[l] = w[l] < low[l] ? w[l] : low[l];
		high[l] = w[l] > high[l] ? w[l] : high[l];
	}
}

static void moments(const float *w, const double *h, size_t n, struct fit_moments *out)
{
	const size_t whole = n / DOUBLE_LANES * DOUBLE_LANES;
	double total[DOUBLE_LANES] = { 0 }, first[DOUBLE_LANES] = { 0 };
	double second[DOUBLE_LANES] = { 0 };
	float low[DOUBLE_LANES], high[DOUBLE_LANES];

	for (int l = 0; l < DOUBLE_LANES; l++)
		low[l] = high[l] = w[0];
	for (size_t i = 0; i < whole; i += DOUBLE_LANES) {
		widen(w + i, DOUBLE_LANES, low, high);
		add_moments(w + i, h + i, DOUBLE_LANES, total, first);
	}
	widen(w + whole, n - whole, low, high);
	add_moments(w + whole, h + whole, n - whole, total, first);
	out->total = sum_of(total);
	out->mean = sum_of(first) / out->total;
	for (size_t i = 0; i < whole; i += DOUBLE_LANES)
		add_square(w + i, h + i, DOUBLE_LANES, out->mean, second);
	add_square(w + whole, h + whole, n - whole, out->mean, second);
	out->square = sum_of(second) / out->total;
	out->low = low[0];
	out->high = high[0];
	for (int l = 1; l < DOUBLE_LANES; l++) {
		out->low = low[l] < out->low ? low[l] : out->low;
		out->high = high[l] > out->high ? high[l] : out->high;
	}
}

static void normalize(const float *w, const double *h, size_t n, double center,
		      double inverse_unit, double inverse_total, float *t, float *out_h)
{
	for (size_t i = 0; i < n; i++) {
		t[i] = (float)((w[i] - center) * inverse_unit);
		out_h[i] = (float)(h[i] * inverse_total);
	}
}

const struct fit_kernels KERNEL_TABLE(fit_kernels) = {
	.step = step,
	.sums = sums,
	.round = round_codes,
	.moments = moments,
	.normalize = normalize,
};
