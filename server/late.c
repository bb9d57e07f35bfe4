#include "server/late.h"

#include <math.h>

#include "server/plan_time.h"

const double late_slower = 0.67;
const double late_gain_seconds = 1;

/* --- rates -------------------------------------------------------------------- */

void late_rates(struct late_worker *w)
{
	double expected = 0, seconds = 0;

	for (int k = 1; k < KIND_COUNT; k++) {
		bool known = w->work[k] > 0 && w->seconds[k] > 0;

		w->rate[k] = known ? w->work[k] / w->seconds[k] : 0;
		expected += known && plan_is_product(k) ? w->work[k] / plan_default_rate[k] : 0;
		seconds += known && plan_is_product(k) ? w->seconds[k] : 0;
	}
	for (int k = 1; k < KIND_COUNT && seconds > 0; k++)
		if (w->rate[k] == 0 && plan_is_product(k))
			w->rate[k] = expected / seconds * plan_default_rate[k];
}

/* --- time --------------------------------------------------------------------- */

static double duration(const struct late_worker *w, const struct late_task *t)
{
	return plan_task_seconds + t->work / w->rate[t->kind];
}

double late_remaining(double work, double rate, double elapsed, double progress)
{
	if (progress >= 0.05 && progress < 1)
		return elapsed * (1 - progress) / progress;
	/* Past its time: as long again as it is late. Of unknown pace: as long again as it took so far. */
	return fabs((rate > 0 ? plan_task_seconds + work / rate : 0) - elapsed);
}

/* --- the choice --------------------------------------------------------------- */

static bool is_faster(const struct late_worker *other, const struct late_worker *w, int64_t kind)
{
	return w->rate[kind] > 0 && w->rate[kind] < late_slower * other->rate[kind];
}

bool late_has_faster(const struct late_view *v, int64_t kind)
{
	for (size_t i = 0; i < v->other_count; i++)
		if (is_faster(&v->others[i], &v->asking, kind))
			return true;
	return false;
}

/* Gives the task to the one of `fast` that is done with it first; when that is, or -1: nobody's rate is
 * known. */
static double give(const struct late_view *v, const size_t *fast, size_t count, double *free_at,
		   const struct late_task *t)
{
	double first = -1;
	size_t chosen = 0;

	for (size_t i = 0; i < count; i++) {
		const struct late_worker *w = &v->others[fast[i]];
		double end = w->rate[t->kind] > 0 ? free_at[i] + duration(w, t) : -1;

		if (end >= 0 && (first < 0 || end < first)) {
			first = end;
			chosen = i;
		}
	}
	if (first >= 0)
		free_at[chosen] = first;
	return first;
}

double late_drained(const struct late_view *v, int64_t kind)
{
	double free_at[LATE_WORKERS_MAX], last = 0;
	size_t fast[LATE_WORKERS_MAX], count = 0;

	for (size_t i = 0; i < v->other_count; i++)
		if (is_faster(&v->others[i], &v->asking, kind)) {
			free_at[count] = v->others[i].busy_seconds;
			fast[count++] = i;
		}
	if (count == 0 || v->more)
		return -1;
	for (size_t i = 0; i < v->ready_count; i++) {
		double end = give(v, fast, count, free_at, &v->ready[i]);

		if (end < 0)
			return -1;
		last = fmax(last, end);
	}
	return last;
}

bool late_leave(const struct late_view *v, const struct late_task *task, double drained)
{
	return drained >= 0 && duration(&v->asking, task) - late_gain_seconds > drained;
}
