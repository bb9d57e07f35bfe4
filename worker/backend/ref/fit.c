/* Scale and zero-point of every group: the specification of fit_groups.
 *
 * The loss F(s, z) = sum h (w - s (q - z))^2, q the nearest code, has many local minima: one per
 * assignment of weights to codes that its own least-squares (s, z) reproduces. Alternating
 * "nearest codes" and "least squares" walks down to one of them (F never rises). So: many starts
 * that cover scales and positions, one step each, the best of them walked to the end; then the same
 * again, finer, around the winner. The steps of the scale are the paper's: 64 fractions of the min-max
 * scale, then 1/2048 of it.
 *
 * Invariants:
 *  1. The result is judged by the definition of F with s and z rounded to float32, and min-max and
 *     the exact form of a constant group take part: it is never worse than either.
 *  2. Weights are centred on their weighted mean and measured in their weighted deviation, h in its
 *     sum: no magnitude is special.
 *  3. The group is sorted once; with prefix sums of h and h t the sums of a least-squares step need
 *     one binary search per code boundary instead of a pass over the weights.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/ref/ref.h"

enum {
	COARSE = 64,            /* fractions of the min-max scale */
	OUTER = 16,             /* geometric steps beyond them */
	FINE = 32,              /* steps of 1/2048 around the best */
	POSITIONS = 4,          /* per code step */
	POSITIONS_MAX = 16,     /* per scale */
	KEEP = 32,              /* starts that are walked to the end */
	PAIRS_MAX = 6000,       /* few weights: starts through two of them */
	STEPS_MAX = 100
};

/* Levels s (q - z) in units of t, seen from the mean: code q stands for a + s q. */
struct point { double s, a, loss; };

struct sample { double t, h; };

struct group_fit {
	const struct grid *grid;
	int levels;             /* 2^b */
	size_t n;
	const float *w;
	const double *h;
	double center, unit;    /* w = center + unit * t */
	double origin;          /* t of the weight 0 */
	struct sample *sorted;  /* (n), t ascending; h sums to 1 */
	double *sum_h, *sum_ht; /* (n+1) prefix sums */
	double sum_htt;
	double low, high;       /* what the levels should reach, in t */
	double largest;         /* min-max scale for that reach, in t */
	struct point kept[KEEP];
	size_t kept_count;
	float s, z;             /* best so far */
	double objective;
};

/* --- judging ----------------------------------------------------------------------------- */

static double code_of(double w, double s, double z, int levels)
{
	return fmin(fmax(nearbyint(w / s + z), 0), levels - 1);
}

static double objective_of(const struct group_fit *f, float s, float z)
{
	double sum = 0;

	for (size_t i = 0; i < f->n; i++) {
		double e = f->w[i] - (double)s * (code_of(f->w[i], s, z, f->levels) - z);

		sum += f->h[i] * e * e;
	}
	return sum;
}

/* The scale as stored: a positive finite float. */
static float storable_scale(double s)
{
	return (float)fmin(fmax(s, FLT_MIN), FLT_MAX);
}

static void offer(struct group_fit *f, double scale, double zero)
{
	float s = storable_scale(scale), z = (float)zero;
	double objective;

	if (!isfinite(z))
		return;
	objective = objective_of(f, s, z);
	if (objective < f->objective) {
		f->objective = objective;
		f->s = s;
		f->z = z;
	}
}

static double allowed_zero(const struct grid *grid, double z)
{
	const int levels = 1 << grid->bits;

	if (grid->symmetric)
		return levels / 2;
	if (grid->integer_zero)
		return fmin(fmax(nearbyint(z), 0), levels - 1);
	return z;
}

/* --- min-max and constants --------------------------------------------------------------- */

/* Reach of the levels of `grid` for weights in [low, high] around `origin`; the scale. */
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

/* One code away from zero reaches any single value exactly, where the grid has such a code. */
static void offer_constant(struct group_fit *f, double value)
{
	const int levels = f->levels;

	if (value == 0)
		offer(f, 1, allowed_zero(f->grid, 0));
	else if (f->grid->symmetric)
		offer(f, value > 0 ? value : -value / (levels / 2), levels / 2);
	else
		offer(f, fabs(value), value > 0 ? 0 : 1);
}

static void offer_minmax(struct group_fit *f)
{
	double low = f->w[0], high = f->w[0], s;

	for (size_t i = 1; i < f->n; i++) {
		low = fmin(low, f->w[i]);
		high = fmax(high, f->w[i]);
	}
	if (f->grid->integer_zero || f->grid->symmetric) {
		low = fmin(low, 0);
		high = fmax(high, 0);
	}
	if (low == high)
		offer_constant(f, low);
	s = storable_scale(minmax_scale(f->grid, low, high, 0));
	offer(f, s, allowed_zero(f->grid, -low / s));
}

/* --- least squares ------------------------------------------------------------------------- */

/* Number of samples below `t`. */
static size_t samples_below(const struct group_fit *f, double t)
{
	size_t low = 0, high = f->n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (f->sorted[mid].t < t)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* Sums over the group for the nearest codes of `p`; sum h = 1 and sum h t = t_sum. */
struct code_sums { double q, qq, t, tq; };

static struct code_sums sums_at(const struct group_fit *f, const struct point *p)
{
	struct code_sums sums = { .t = f->sum_ht[f->n] };

	for (int k = 1; k < f->levels; k++) {
		size_t i = samples_below(f, p->a + (k - 0.5) * p->s);
		double h = f->sum_h[f->n] - f->sum_h[i], ht = f->sum_ht[f->n] - f->sum_ht[i];

		if (i == f->n)
			break;
		sums.q += h;
		sums.qq += (2 * k - 1) * h;
		sums.tq += ht;
	}
	return sums;
}

/* The zero-point is free: the regression line of t on q. */
static void refit_free(const struct group_fit *f, const struct code_sums *c, struct point *p)
{
	const double total = f->sum_h[f->n];
	double det = total * c->qq - c->q * c->q;

	if (det > 1e-13 * total * c->qq) {
		double s = (total * c->tq - c->q * c->t) / det;

		if (s > 0)
			p->s = s;
	}
	p->a = (c->t - p->s * c->q) / total;
}

/* The zero-point is given: the line through it. */
static void refit_fixed(const struct group_fit *f, const struct code_sums *c, double z,
			struct point *p)
{
	const double total = f->sum_h[f->n], o = f->origin;
	double top = c->tq - o * c->q - z * (c->t - o * total);
	double bottom = c->qq - 2 * z * c->q + z * z * total;

	if (bottom > 0 && top > 0)
		p->s = top / bottom;
	p->a = o - p->s * z;
}

static double zero_at(const struct group_fit *f, const struct point *p)
{
	return allowed_zero(f->grid, (f->origin - p->a) / p->s);
}

/* One step down: nearest codes of p, then its best s (and z); p->loss is the loss of the result
 * with those codes, so never below what its nearest codes give. */
static void step(const struct group_fit *f, struct point *p)
{
	struct code_sums c = sums_at(f, p);

	if (f->grid->integer_zero || f->grid->symmetric)
		refit_fixed(f, &c, zero_at(f, p), p);
	else
		refit_free(f, &c, p);
	p->loss = f->sum_htt - 2 * (p->a * c.t + p->s * c.tq) + p->a * p->a * f->sum_h[f->n]
		+ 2 * p->a * p->s * c.q + p->s * p->s * c.qq;
}

static void walk(const struct group_fit *f, struct point *p)
{
	for (int i = 0; i < STEPS_MAX; i++) {
		struct point next = *p;

		step(f, &next);
		if (!(next.loss < p->loss))
			return;
		*p = next;
	}
}

/* --- starts -------------------------------------------------------------------------------- */

/* Keeps the KEEP best, one of each loss. */
static void keep(struct group_fit *f, const struct point *p)
{
	size_t at = f->kept_count;

	while (at > 0 && f->kept[at - 1].loss > p->loss)
		at--;
	if (at > 0 && p->loss - f->kept[at - 1].loss <= 1e-12 * p->loss)
		return;
	if (at == KEEP)
		return;
	if (f->kept_count < KEEP)
		f->kept_count++;
	memmove(f->kept + at + 1, f->kept + at, (f->kept_count - 1 - at) * sizeof(*p));
	f->kept[at] = *p;
}

static void start(struct group_fit *f, double s, double a)
{
	struct point p = { .s = s, .a = a };

	if (f->grid->integer_zero || f->grid->symmetric)
		p.a = f->origin - s * zero_at(f, &p);
	step(f, &p);
	keep(f, &p);
}

/* All positions of a ladder of step s that leave at most half a step free at either end. */
static void start_scale(struct group_fit *f, double s)
{
	double reach = (f->levels - 1) * s, width = f->high - f->low;
	double first = fmin(f->low, f->high - reach) - s / 2;
	double span = fabs(width - reach) + s;
	double stride = fmax(s / POSITIONS, span / POSITIONS_MAX);

	for (double at = 0; at <= span; at += stride)
		start(f, s, first + at);
}

/* Few weights can all lie close to some ladder that no grid of scales comes near: every ladder with
 * two weights on two of its codes is a start. */
static void start_pairs(struct group_fit *f)
{
	const double pairs = (double)f->n * (double)(f->n - 1) / 2;

	if (pairs * f->levels * (f->levels - 1) / 2 > PAIRS_MAX)
		return;
	for (size_t i = 0; i < f->n; i++)
		for (size_t j = i + 1; j < f->n; j++)
			for (int d = 1; d < f->levels && f->sorted[i].t < f->sorted[j].t; d++)
				for (int p = 0; p + d < f->levels; p++) {
					const double s = (f->sorted[j].t - f->sorted[i].t) / d;

					start(f, s, f->sorted[i].t - p * s);
				}
}

static void start_coarse(struct group_fit *f)
{
	const double smallest = 1.6 / f->levels;
	const double biggest = f->high - f->low; /* a few far weights may use few codes */

	for (int i = 1; i <= COARSE; i++)
		start_scale(f, f->largest * i / COARSE);
	if (smallest < f->largest / COARSE)
		for (int i = 0; i < OUTER; i++)
			start_scale(f, smallest * pow(f->largest / COARSE / smallest, (double)i / OUTER));
	if (biggest > f->largest)
		for (int i = 1; i <= OUTER; i++)
			start_scale(f, f->largest * pow(biggest / f->largest, (double)i / OUTER));
}

static void start_fine(struct group_fit *f, struct point best)
{
	const double center = best.a + best.s * (f->levels - 1) / 2;

	for (int i = -FINE / 2; i <= FINE / 2; i++) {
		double s = best.s + f->largest * i / 2048;

		for (int k = -POSITIONS; k <= POSITIONS && s > 0; k++)
			start(f, s, center - s * (f->levels - 1) / 2 + s * k / POSITIONS);
	}
}

static void walk_kept(struct group_fit *f)
{
	struct point walked[KEEP];
	size_t count = f->kept_count;

	memcpy(walked, f->kept, sizeof(walked));
	f->kept_count = 0;
	for (size_t i = 0; i < count; i++) {
		walk(f, &walked[i]);
		keep(f, &walked[i]);
	}
}

/* --- one group ----------------------------------------------------------------------------- */

static int by_t(const void *a, const void *b)
{
	const struct sample *x = a, *y = b;

	return (x->t > y->t) - (x->t < y->t);
}

/* false: all weights are equal. */
static bool prepare(struct group_fit *f)
{
	double total = 0, mean = 0, square = 0;

	for (size_t i = 0; i < f->n; i++)
		total += f->h[i];
	for (size_t i = 0; i < f->n; i++)
		mean += f->h[i] / total * f->w[i];
	for (size_t i = 0; i < f->n; i++)
		square += f->h[i] / total * (f->w[i] - mean) * (f->w[i] - mean);
	f->center = mean;
	f->unit = sqrt(square);
	if (!(f->unit > 0))
		return false;
	f->origin = -mean / f->unit;
	for (size_t i = 0; i < f->n; i++)
		f->sorted[i] = (struct sample){ (f->w[i] - mean) / f->unit, f->h[i] / total };
	qsort(f->sorted, f->n, sizeof(*f->sorted), by_t);
	f->sum_htt = 0;
	for (size_t i = 0; i < f->n; i++) {
		const double t = f->sorted[i].t, h = f->sorted[i].h;

		f->sum_h[i + 1] = f->sum_h[i] + h;
		f->sum_ht[i + 1] = f->sum_ht[i] + h * t;
		f->sum_htt += h * t * t;
	}
	f->low = f->sorted[0].t;
	f->high = f->sorted[f->n - 1].t;
	if (f->grid->integer_zero || f->grid->symmetric) {
		f->low = fmin(f->low, f->origin);
		f->high = fmax(f->high, f->origin);
	}
	f->largest = minmax_scale(f->grid, f->low, f->high, f->origin);
	return f->low < f->high;
}

static void search(struct group_fit *f)
{
	f->kept_count = 0;
	start_pairs(f);
	start_coarse(f);
	walk_kept(f);
	start_fine(f, f->kept[0]);
	walk_kept(f);
	for (size_t i = 0; i < f->kept_count && i < 4; i++)
		offer(f, f->unit * f->kept[i].s, zero_at(f, &f->kept[i]));
}

static void fit_one(struct group_fit *f, enum fit_method method)
{
	f->objective = INFINITY;
	offer_minmax(f);
	if (method == FIT_MINMAX)
		return;
	offer_constant(f, f->w[0]);
	if (prepare(f)) {
		offer_constant(f, f->center);
		search(f);
	}
}

int ref_fit_groups(struct backend *be, enum fit_method method, const struct grid *grid,
		   const float *w, size_t rows, size_t cols, const double *h, float *scales,
		   float *zeros, double *objective, struct err *err)
{
	const size_t n = grid->group, groups = cols / n;
	struct group_fit f = { .grid = grid, .levels = 1 << grid->bits, .n = n };
	int rc = 0;

	(void)be;
	f.sorted = mem_alloc(n, sizeof(*f.sorted));
	f.sum_h = mem_alloc(n + 1, sizeof(*f.sum_h));
	f.sum_ht = mem_alloc(n + 1, sizeof(*f.sum_ht));
	if (!f.sorted || !f.sum_h || !f.sum_ht)
		rc = err_set_nomem(err, "one sorted group");
	for (size_t i = 0; i < rows * groups && rc == 0; i++) {
		f.w = w + i * n;
		f.h = h + i % groups * n;
		fit_one(&f, method);
		if (!isfinite(f.objective))
			rc = err_set(err, ERR_NUMERIC, "group %zu of row %zu has no finite objective",
				     i % groups, i / groups);
		scales[i] = f.s;
		zeros[i] = f.z;
		if (objective)
			objective[i] = f.objective;
	}
	mem_free(f.sorted);
	mem_free(f.sum_h);
	mem_free(f.sum_ht);
	return rc;
}
