/* The search for (s, z) of one group: see fit_group.h and ref/fit.c. */
#include "worker/backend/cpu/fit_group.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum {
	SCALES = 24,            /* geometric, from above the min-max scale down */
	SCALES_WIDE = 40,       /* at more than 6 bits */
	SCALES_INTEGER = 48,    /* where the zero-point gives little or no freedom to trade */
	SCALES_SYMMETRIC = 128,
	OUTER = 16,             /* geometric, up from there, where few weights are far out */
	POSITIONS = 3,          /* per code step */
	POSITIONS_MAX = 10,     /* per scale */
	WALK = 4,               /* steps of the kept ones between rounds */
	CENTERS = 3,            /* candidates that the first finer round surrounds */
	PAIRS_MAX = 6000,       /* few weights: starts through two of them */
	POLISHED = 2,           /* candidates judged in double */
	POLISH_STEPS = 4,
	BINS_PER_STEP = 32,
	FAR = 5                 /* weighted deviations from the mean, zero included where z is bound */
};

/* A finer round around the best: scales within +-range of it, ladders shifted by up to +-shift codes. */
struct round { double range, shift; int scales, shifts; };

struct candidate { float s, z, loss; };

struct search {
	const struct fit_kernels *k;
	const struct grid *grid;
	const float *w;
	const double *h;
	size_t n;
	int levels;
	struct fit_moments m;
	double unit, origin;            /* t of the weight 0 */
	double low, high, largest;      /* reach of the levels in t, its min-max scale */
	struct fit_rule rule;
	struct fit_points points;       /* what steps run on */
	struct fit_lanes lanes;
	int filled;
	struct candidate kept[FIT_KEEP]; /* by loss */
	int kept_count;
	struct fit_result best;
};

/* --- judging ------------------------------------------------------------------------------- */

static float storable_scale(double s)
{
	return (float)fmin(fmax(s, FLT_MIN), FLT_MAX);
}

static double allowed_zero(const struct search *f, double z)
{
	if (f->grid->symmetric)
		return f->levels / 2;
	if (f->grid->integer_zero)
		return fmin(fmax(nearbyint(z), 0), f->levels - 1);
	return z;
}

/* Tries (scale, zero) as stored; sums of it in *out. */
static bool offer(struct search *f, double scale, double zero, struct fit_sums *out)
{
	const float s = storable_scale(scale), z = (float)zero;
	struct fit_sums sums;

	if (!isfinite(z))
		return false;
	if (!out)
		out = &sums;
	f->k->sums(f->w, f->h, f->n, s, z, f->levels, out);
	if (!(out->e2 < f->best.objective))
		return false;
	f->best = (struct fit_result){ s, z, out->e2 };
	return true;
}

/* Offers the best line through the weights for the codes whose sums are given, and goes on from
 * there while that helps. */
static void polish(struct search *f, double scale, double zero)
{
	struct fit_sums c;
	bool better = offer(f, scale, zero, &c);

	for (int i = 0; i < POLISH_STEPS && (better || i == 0) && isfinite(c.e2); i++) {
		const double s = storable_scale(scale), z = (float)zero;
		double spread, along;

		if (f->rule.fixed) {
			along = c.eq - z * c.e;
			spread = c.qq - z * (2 * c.q - z * f->m.total);
		} else {
			along = c.eq - c.e * c.q / f->m.total;
			spread = c.qq - c.q * c.q / f->m.total;
		}
		if (!(spread > 1e-12 * c.qq))
			return;
		scale = s + along / spread;
		if (!f->rule.fixed)
			zero = (s * z - (c.e - (scale - s) * c.q) / f->m.total) / scale;
		if (!(scale > 0))
			return;
		better = offer(f, scale, zero, &c);
	}
}

/* --- min-max and constants: as in ref/fit.c -------------------------------------------------- */

static double minmax_scale(const struct grid *grid, double low, double high, double origin)
{
	const int levels = 1 << grid->bits, below = levels / 2, above = levels - 1 - below;
	double s;

	if (!grid->symmetric)
		return (high - low) / (levels - 1);
	s = (origin - low) / below;
	if (above > 0)
		s = fmax(s, (high - origin) / above);
	return s > 0 ? s : high - origin;
}

static void offer_constant(struct search *f, double value)
{
	if (value == 0)
		offer(f, 1, allowed_zero(f, 0), NULL);
	else if (f->grid->symmetric)
		offer(f, value > 0 ? value : -value / (f->levels / 2), f->levels / 2, NULL);
	else
		offer(f, fabs(value), value > 0 ? 0 : 1, NULL);
}

static void offer_minmax(struct search *f)
{
	double low = f->m.low, high = f->m.high, s;

	if (f->rule.fixed) {
		low = fmin(low, 0);
		high = fmax(high, 0);
	}
	if (low == high)
		offer_constant(f, low);
	s = storable_scale(minmax_scale(f->grid, low, high, 0));
	offer(f, s, allowed_zero(f, -low / s), NULL);
}

/* --- starts ---------------------------------------------------------------------------------- */

/* Keeps the best, one of each loss. */
static void keep(struct search *f, struct candidate c)
{
	int at = f->kept_count;

	if (at == FIT_KEEP && !(c.loss < f->kept[at - 1].loss))
		return;
	while (at > 0 && f->kept[at - 1].loss > c.loss)
		at--;
	if (at > 0 && c.loss - f->kept[at - 1].loss <= 2e-6f * c.loss)
		return;
	if (f->kept_count < FIT_KEEP)
		f->kept_count++;
	memmove(f->kept + at + 1, f->kept + at, (size_t)(f->kept_count - 1 - at) * sizeof(c));
	f->kept[at] = c;
}

/* Steps the lanes filled so far; `times` steps, then they compete for a place. */
static void flush(struct search *f, int times)
{
	if (f->filled == 0)
		return;
	for (int l = f->filled; l < FIT_LANES; l++) {
		f->lanes.s[l] = f->lanes.s[0];
		f->lanes.z[l] = f->lanes.z[0];
	}
	for (int i = 0; i < times; i++)
		f->k->step(&f->points, &f->rule, &f->lanes);
	for (int l = 0; l < f->filled; l++)
		if (f->lanes.s[l] > 0 && f->lanes.loss[l] >= 0)
			keep(f, (struct candidate){ f->lanes.s[l], f->lanes.z[l], f->lanes.loss[l] });
	f->filled = 0;
}

/* A start with code 0 at a: s > 0, both in t. */
static void start(struct search *f, double s, double a)
{
	const double half = f->levels / 2;
	float fs, fz;

	if (f->rule.fixed)
		fz = (float)(allowed_zero(f, (f->origin - a) / s) - half);
	else
		fz = (float)(-a / s - half);
	fs = (float)s;
	if (f->filled > 0 && f->lanes.s[f->filled - 1] == fs && f->lanes.z[f->filled - 1] == fz)
		return;
	f->lanes.s[f->filled] = fs;
	f->lanes.z[f->filled] = fz;
	if (++f->filled == FIT_LANES)
		flush(f, 1);
}

/* Positions of a ladder of step s that leave at most half a step free at either end. */
static void start_scale(struct search *f, double s)
{
	const double reach = (f->levels - 1) * s, width = f->high - f->low;
	const double first = fmin(f->low, f->high - reach) - s / 2;
	const double span = fabs(width - reach) + s;
	const double stride = fmax(s / POSITIONS, span / POSITIONS_MAX);

	for (double at = 0; at <= span; at += stride)
		start(f, s, first + at);
}

/* Every ladder with two weights on two of its codes, when that is few. */
static void start_pairs(struct search *f)
{
	const double pairs = (double)f->n * (double)(f->n - 1) / 2;

	if (pairs * f->levels * (f->levels - 1) / 2 > PAIRS_MAX)
		return;
	for (size_t i = 0; i < f->n; i++)
		for (size_t j = 0; j < f->n; j++)
			for (int d = 1; d < f->levels && f->points.t[i] < f->points.t[j]; d++)
				for (int p = 0; p + d < f->levels; p++) {
					const double s = ((double)f->points.t[j] - f->points.t[i]) / d;

					start(f, s, f->points.t[i] - p * s);
				}
}

/* How far above the min-max scale to begin: few weights may happen to lie on a wider ladder. */
static double top_scale(const struct search *f)
{
	if (f->rule.fixed)
		return f->n <= 32 ? 2 : 1.45;
	if (f->grid->bits > 6)
		return 1.05;
	return f->n <= 32 ? 1.7 : 1.2;
}

static void start_coarse(struct search *f)
{
	const int scales = f->grid->symmetric ? SCALES_SYMMETRIC
		: f->rule.fixed ? SCALES_INTEGER
		: f->grid->bits > 6 ? SCALES_WIDE : SCALES;
	const double smallest = fmin(1.6 / f->levels, f->largest / 2);
	const double top = f->largest * top_scale(f);
	const double ratio = pow(top / smallest, 1.0 / (scales - 1));
	const double reach = f->high - f->low;
	double s = top;

	for (int i = 0; i < scales; i++, s /= ratio)
		start_scale(f, s);
	if (fmax(-f->low, f->high) > FAR)
		for (int i = 1; i <= OUTER; i++)
			start_scale(f, f->largest * pow(reach / f->largest, (double)i / OUTER));
	flush(f, 1);
}

static void start_round(struct search *f, const struct round *r, struct candidate best)
{
	const double half = (f->levels - 1) / 2.0, z = best.z + f->levels / 2;
	const double middle = best.s * (half - z) - f->rule.shift;

	for (int i = -r->scales; i <= r->scales; i++) {
		const double s = best.s * (1 + r->range * i / r->scales);

		for (int j = -r->shifts; j <= r->shifts; j++)
			start(f, s, middle - s * half + s * r->shift * j / fmax(r->shifts, 1));
	}
	flush(f, 1);
}

/* More steps for the kept ones. */
static void walk(struct search *f, int times)
{
	const int count = f->kept_count;

	for (int i = 0; i < count; i++) {
		f->lanes.s[i] = f->kept[i].s;
		f->lanes.z[i] = f->kept[i].z;
	}
	f->filled = count;
	f->kept_count = 0;
	flush(f, times);
}

/* --- bins ------------------------------------------------------------------------------------ */

/* Bins as wide as a fraction of the smallest step that is tried; false when that saves nothing. */
static bool make_bins(const struct search *f, struct fit_scratch *scratch, struct fit_points *out)
{
	const double width = 1.6 / f->levels / BINS_PER_STEP;
	const double low = (f->m.low - f->m.mean) / f->unit, high = (f->m.high - f->m.mean) / f->unit;
	const double count = floor((high - low) / width) + 1;
	const float inverse = (float)(1 / width), first = (float)low;
	size_t bins, used = 0;

	if (!(count * 2 <= (double)f->n) || f->n < FIT_BINS_MIN)
		return false;
	bins = (size_t)count + 1;
	memset(scratch->bin_t, 0, bins * sizeof(float));
	memset(scratch->bin_h, 0, bins * sizeof(float));
	for (size_t i = 0; i < f->n; i++) {
		const float at = (scratch->t[i] - first) * inverse;
		const size_t b = at > 0 ? (size_t)at : 0, bin = b < bins ? b : bins - 1;

		scratch->bin_h[bin] += scratch->h[i];
		scratch->bin_t[bin] += scratch->h[i] * scratch->t[i];
	}
	for (size_t b = 0; b < bins; b++) {
		if (!(scratch->bin_h[b] > 0))
			continue;
		scratch->bin_t[used] = scratch->bin_t[b] / scratch->bin_h[b];
		scratch->bin_h[used++] = scratch->bin_h[b];
	}
	*out = (struct fit_points){ scratch->bin_t, scratch->bin_h, used, 1 };
	return true;
}

/* --- one group --------------------------------------------------------------------------------- */

/* false: nothing to search, all weights are equal (or as good as). */
static bool prepare(struct search *f, struct fit_scratch *scratch)
{
	f->unit = sqrt(f->m.square);
	if (!(f->unit > 0) || !isfinite(1 / f->unit))
		return false;
	f->origin = -f->m.mean / f->unit;
	f->rule.shift = f->rule.fixed ? (float)(f->m.mean / f->unit) : 0;
	f->low = (f->m.low - f->m.mean) / f->unit;
	f->high = (f->m.high - f->m.mean) / f->unit;
	if (f->rule.fixed) {
		f->low = fmin(f->low, f->origin);
		f->high = fmax(f->high, f->origin);
	}
	f->largest = minmax_scale(f->grid, f->low, f->high, f->origin);
	f->k->normalize(f->w, f->h, f->n, f->m.mean, 1 / f->unit, 1 / f->m.total, scratch->t,
			scratch->h);
	return f->low < f->high;
}

/* Rounds shrink from the spacing of the coarse scales (or one code at the end of the ladder) until the
 * ladder's end moves by a fraction of a code; then whole-code shifts, which a walk never makes. */
static void refine(struct search *f)
{
	struct round r = { .scales = f->grid->bits > 6 ? 9 : 5, .shifts = 2 };
	struct candidate top[CENTERS];
	int centers = f->kept_count < CENTERS ? f->kept_count : CENTERS;

	if (f->rule.fixed)
		r = (struct round){ .scales = 16, .shifts = f->grid->symmetric ? 0 : 1, .shift = 1 };
	for (r.range = fmax(1.0 / f->levels, 0.07);; r.range /= 4) {
		const double moved = r.range * f->levels;

		if (!f->rule.fixed)
			r.shift = fmin(1, 0.4 * moved);
		memcpy(top, f->kept, sizeof(top));
		for (int i = 0; i < centers; i++)
			start_round(f, &r, top[i]);
		walk(f, 1);
		centers = 1;
		if (moved < 0.3)
			break;
	}
	if (f->grid->bits <= 2)
		return;
	r.range = 0.5 / f->levels;
	r.shift = f->rule.fixed ? 1 : 2;
	start_round(f, &r, f->kept[0]);
	walk(f, 1);
}

static void search(struct search *f, struct fit_scratch *scratch)
{
	const struct fit_points whole = { scratch->t, scratch->h, f->n, 1 };
	const double half = f->levels / 2;

	if (!make_bins(f, scratch, &f->points))
		f->points = whole;
	start_pairs(f);
	start_coarse(f);
	walk(f, WALK);
	if (f->kept_count == 0)
		return;
	refine(f);
	f->points = whole;
	walk(f, WALK);
	for (int i = 0; i < f->kept_count && i < POLISHED; i++) {
		const double s = f->kept[i].s * f->unit, z = f->kept[i].z + half;

		polish(f, s, f->rule.fixed ? z : z - f->m.mean / s);
	}
}

struct fit_result fit_group(const struct fit_kernels *k, const struct grid *grid,
			    enum fit_method method, const float *w, const double *h, size_t n,
			    struct fit_scratch *scratch)
{
	struct search f = {
		.k = k, .grid = grid, .w = w, .h = h, .n = n, .levels = 1 << grid->bits,
		.best = { .s = 1, .z = 0, .objective = INFINITY },
	};

	f.rule.fixed = grid->integer_zero || grid->symmetric;
	f.rule.bottom = (float)(-f.levels / 2);
	f.rule.top = (float)(f.levels / 2 - 1);
	k->moments(w, h, n, &f.m);
	offer_minmax(&f);
	if (method == FIT_MINMAX)
		return f.best;
	offer_constant(&f, w[0]);
	if (prepare(&f, scratch)) {
		offer_constant(&f, f.m.mean);
		search(&f, scratch);
	}
	return f.best;
}
