/* Progress and time left. Work is an estimate made at planning; speed is measured per kind on this job's own
 * finished tasks, so the estimate only has to be right within a kind. */
#include "server/engine_progress.h"

#include <string.h>

struct sums { double work, left, done_work, done_ms; };

static void add_row(struct query *q, struct job_progress *p, struct sums *s, double *holders)
{
	int64_t kind = query_int(q, 0), state = query_int(q, 1), count = query_int(q, 2);
	double work = query_real(q, 3), part = query_real(q, 4);

	if (kind <= 0 || kind >= KIND_COUNT || state <= 0 || state >= TASK_STATES)
		return;
	p->counts[kind][state] = count;
	s[kind].work += work;
	s[kind].left += state == TASK_DONE ? 0 : state == TASK_LEASED ? work - part : work;
	if (state == TASK_DONE) {
		s[kind].done_work += work;
		s[kind].done_ms += query_real(q, 5);
	}
	if (state == TASK_LEASED)
		*holders += (double)count;
}

/* Milliseconds per unit of work: of the kind, or of all kinds while this one has no finished task. */
static double pace(const struct sums *s, const struct sums *all)
{
	const struct sums *of = s->done_work > 0 ? s : all;

	return of->done_work > 0 ? of->done_ms / of->done_work : -1;
}

static double time_left(const struct sums *s, double holders)
{
	struct sums all = { 0 };
	double ms = 0;

	for (int k = 1; k < KIND_COUNT; k++) {
		all.done_work += s[k].done_work;
		all.done_ms += s[k].done_ms;
	}
	for (int k = 1; k < KIND_COUNT; k++) {
		double per_work = pace(&s[k], &all);

		if (s[k].left > 0 && per_work < 0)
			return -1;
		ms += s[k].left > 0 ? s[k].left * per_work : 0;
	}
	return ms / 1000 / (holders > 1 ? holders : 1);
}

int job_progress(struct store *db, const struct job_ref *job, struct job_progress *p, struct err *err)
{
	struct query *q = store_select(db, SQL_JOB_PROGRESS, err, sql_i(job->first_task),
				       sql_i(job->first_task + job->task_count - 1));
	struct sums sums[KIND_COUNT] = { 0 };
	double total = 0, left = 0, holders = 0;
	int more;

	memset(p, 0, sizeof(*p));
	while ((more = query_next(q, err)) == 1)
		add_row(q, p, sums, &holders);
	query_done(q);
	for (int k = 1; k < KIND_COUNT; k++) {
		total += sums[k].work;
		left += sums[k].left;
	}
	p->fraction = left > 0 && total > 0 ? 1 - left / total : 1;
	p->eta_seconds = job_state_final(job->state) ? -1 : time_left(sums, holders);
	return more < 0 ? -1 : 0;
}
