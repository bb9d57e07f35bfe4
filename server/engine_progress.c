/* Progress and time left. Work is an estimate made at planning; speed is measured per kind on this job's own
 * finished tasks, so the estimate only has to be right within a kind. A kind that has none yet is as fast as a forecast
 * would have it, for the workers that are there and what they did of this job. */
#include "server/engine_progress.h"

#include "server/engine_forecast.h"

static void add_row(struct query *q, struct job_progress *p)
{
	int64_t kind = query_int(q, 0), state = query_int(q, 1), count = query_int(q, 2);
	double work = query_real(q, 3), part = query_real(q, 4);

	if (kind <= 0 || kind >= KIND_COUNT || state <= 0 || state >= TASK_STATES)
		return;
	p->counts[kind][state] = count;
	p->work[kind] += work;
	p->left[kind] += state == TASK_DONE ? 0 : state == TASK_LEASED ? work - part : work;
	if (state == TASK_DONE) {
		p->done_work[kind] += work;
		p->done_ms[kind] += query_real(q, 5);
	}
	if (state == TASK_LEASED)
		p->holders += (double)count;
}

int job_progress(struct store *db, const struct job_ref *job, struct job_progress *p, struct err *err)
{
	struct query *q = store_select(db, SQL_JOB_PROGRESS, err, sql_i(job->first_task),
				       sql_i(job->first_task + job->task_count - 1));
	double total = 0, left = 0;
	int more;

	*p = (struct job_progress){ 0 };
	while ((more = query_next(q, err)) == 1)
		add_row(q, p);
	query_done(q);
	for (int k = 1; k < KIND_COUNT; k++) {
		total += p->work[k];
		left += p->left[k];
	}
	p->fraction = left > 0 && total > 0 ? 1 - left / total : 1;
	return more < 0 ? -1 : 0;
}

/* Below 0 while nothing is finished. */
static double time_left(const struct job_progress *p, const struct plan_crew *crew)
{
	struct plan_history history = { 0 };
	struct plan_fleet fleet;
	double seconds = 0;

	for (int k = 1; k < KIND_COUNT; k++) {
		history.work[k] = p->done_work[k];
		history.seconds[k] = p->done_ms[k] / 1000;
	}
	plan_fleet_init(&fleet, crew, &history);
	for (int k = 1; k < KIND_COUNT; k++)
		seconds += p->left[k] / fleet.rate[k];
	return fleet.measured || seconds == 0 ? seconds / (p->holders > 1 ? p->holders : 1) : -1;
}

int job_time_left(struct tx *tx, const struct job_ref *job, const struct job_progress *p, double *seconds, struct err *err)
{
	struct plan_crew crew = { 0 };

	*seconds = -1;
	if (job_state_final(job->state))
		return 0;
	if (forecast_crew(tx->db, tx->now_ms - tx->e->config.lease_ms, &crew, err) != 0)
		return -1;
	*seconds = time_left(p, &crew);
	return 0;
}
