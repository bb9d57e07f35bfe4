/* One round of refinement, row by row: one sweep over the codes, then least squares group after group.
 *
 * The state of a row is e = w - s (q - z) and r = A e, A = H + damp I, loss e^T r. Code q_j moving by d changes e_j
 * by -s d and the loss by -2 s d r_j + s^2 d^2 A_jj; in code units the best d is t = r_j / (s A_jj). After
 * a sweep of single moves most |t| are below 1/2 and nothing more happens, yet two correlated codes
 * may still win by moving together. So a code with |t| above refine_nearly moves as t says, and one other code
 * may move by 1 with it, whichever wins most; nothing moves when the two together do not win.
 */
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/backend/group_step.h"
#include "worker/backend/ref/ref.h"

struct row {
	const struct grid *grid;
	const float *w;
	const double *a;        /* (K,K) H + damp I */
	size_t cols, groups;
	const int32_t *perm;
	uint8_t *q;             /* (K) */
	float *s, *z;           /* (G) */
	double *e, *r;          /* (K) */
	double loss;
};

/* e, r and the loss from their definitions. */
static void measure(struct row *o)
{
	o->loss = 0;
	for (size_t c = 0; c < o->cols; c++) {
		const size_t g = c / o->grid->group;

		o->e[c] = o->w[c] - (double)o->s[g] * (o->q[c] - (double)o->z[g]);
	}
	for (size_t i = 0; i < o->cols; i++) {
		o->r[i] = 0;
		for (size_t j = 0; j < o->cols; j++)
			o->r[i] += o->a[i * o->cols + j] * o->e[j];
		o->loss += o->e[i] * o->r[i];
	}
}

/* e_j grows by d. */
static void change(struct row *o, size_t j, double d)
{
	o->e[j] += d;
	for (size_t i = 0; i < o->cols; i++)
		o->r[i] += d * o->a[j * o->cols + i];
}

static void fit_group(struct row *o, size_t g)
{
	const size_t first = g * o->grid->group, end = first + o->grid->group;
	const double s0 = o->s[g], z0 = o->z[g];
	struct group_sums m = { 0 };

	for (size_t i = first; i < end; i++) {
		m.rq += o->r[i] * o->q[i];
		m.r1 += o->r[i];
		for (size_t j = first; j < end; j++) {
			const double a = o->a[i * o->cols + j];

			m.qq += a * o->q[i] * o->q[j];
			m.q1 += a * o->q[j];
			m.oo += a;
		}
	}
	if (group_step(o->grid, &m, refine_least_step * o->loss, &o->s[g], &o->z[g]) == 0)
		return;
	for (size_t j = first; j < end; j++)
		change(o, j, s0 * (o->q[j] - z0) - (double)o->s[g] * (o->q[j] - (double)o->z[g]));
}

/* What code k wins by moving by 1 the way r points once e_j has grown by d; *step says which way. */
static double partner_gain(const struct row *o, size_t j, double d, size_t k, int *step)
{
	const double s = o->s[k / o->grid->group], r = o->r[k] + d * o->a[j * o->cols + k];

	*step = r > 0 ? 1 : -1;
	if (k == j || (*step > 0 ? o->q[k] == (1 << o->grid->bits) - 1 : o->q[k] == 0))
		return 0;
	return 2 * s * fabs(r) - s * s * o->a[k * o->cols + k];
}

/* The step of code j that t asks for, within the codes there are; 0: leave it. */
static int own_step(const struct row *o, size_t j, double t)
{
	const double top = (1 << o->grid->bits) - 1;
	double step = nearbyint(t);

	if (!(fabs(t) > refine_nearly))
		return 0;
	if (step == 0)
		step = t > 0 ? 1 : -1;
	return (int)(fmin(fmax(o->q[j] + step, 0), top) - o->q[j]);
}

static void move(struct row *o, size_t k, int step)
{
	o->q[k] = (uint8_t)(o->q[k] + step);
	change(o, k, -(double)o->s[k / o->grid->group] * step);
}

static void visit(struct row *o, size_t j)
{
	const double s = o->s[j / o->grid->group], own = s * s * o->a[j * o->cols + j];
	const int step = own_step(o, j, s * o->r[j] / own);
	double alone, best = 0;
	size_t partner = 0;
	int its_step = 0;

	if (step == 0)
		return;
	alone = 2 * s * step * o->r[j] - own * step * step;
	for (size_t k = 0; k < o->cols; k++) {
		int side;
		const double gain = partner_gain(o, j, -s * step, k, &side);

		if (gain > best) {
			best = gain;
			partner = k;
			its_step = side;
		}
	}
	if (!(alone + best > refine_least_move * own))
		return;
	move(o, j, step);
	if (best > 0)
		move(o, partner, its_step);
}

static bool usable(const struct row *o)
{
	for (size_t g = 0; g < o->groups; g++)
		if (!(o->s[g] > 0) || !isfinite(o->s[g]) || !isfinite(o->z[g]))
			return false;
	return true;
}

/* old: as s, z and q before, put back where the round did not win. */
static int refine_row(struct row *o, struct row *old, double *row_loss, struct err *err)
{
	if (usable(o))
		measure(o);
	if (!usable(o) || !isfinite(o->loss))
		return err_set(err, ERR_NUMERIC, "the loss to refine is not finite");
	memcpy(old->q, o->q, o->cols);
	memcpy(old->s, o->s, o->groups * sizeof(*o->s));
	memcpy(old->z, o->z, o->groups * sizeof(*o->z));
	old->loss = o->loss;
	for (size_t j = 0; j < o->cols; j++)
		visit(o, (size_t)o->perm[j]);
	for (size_t g = 0; g < o->groups; g++)
		fit_group(o, g);
	measure(o);
	if (!(o->loss < old->loss)) {
		memcpy(o->q, old->q, o->cols);
		memcpy(o->s, old->s, o->groups * sizeof(*o->s));
		memcpy(o->z, old->z, o->groups * sizeof(*o->z));
		o->loss = old->loss;
	}
	*row_loss = o->loss;
	return 0;
}

static double *damped(const double *h, size_t cols, double damp)
{
	size_t cells;
	double *a = size_mul(cols, cols, &cells) ? mem_alloc(cells, sizeof(*a)) : NULL;

	for (size_t i = 0; a && i < cells; i++)
		a[i] = h[i] + (i % (cols + 1) == 0 ? damp : 0);
	return a;
}

int ref_refine(struct backend *be, const struct grid *grid, const float *w, size_t rows, size_t cols,
	       const double *h, double damp, const int32_t *perm, uint8_t *codes, float *scales,
	       float *zeros, double *row_loss, struct err *err)
{
	const size_t groups = cols / grid->group;
	double *a = damped(h, cols, damp), *state = mem_alloc(cols, 2 * sizeof(*state));
	float *pairs = mem_alloc(groups, 2 * sizeof(*pairs));
	uint8_t *old_codes = mem_alloc(cols, 1);
	struct row old = { .q = old_codes, .s = pairs, .z = pairs ? pairs + groups : NULL };
	int rc = 0;

	(void)be;
	if (!a || !state || !pairs || !old_codes)
		rc = err_set_nomem(err, "one row to refine");
	for (size_t r = 0; r < rows && rc == 0; r++) {
		struct row o = { .grid = grid, .w = w + r * cols, .a = a, .cols = cols, .groups = groups,
				 .perm = perm, .q = codes + r * cols, .s = scales + r * groups,
				 .z = zeros + r * groups, .e = state, .r = state + cols };

		rc = refine_row(&o, &old, row_loss + r, err);
		if (rc != 0)
			err_prefix(err, "row %zu", r);
	}
	mem_free(a);
	mem_free(state);
	mem_free(pairs);
	mem_free(old_codes);
	return rc;
}
