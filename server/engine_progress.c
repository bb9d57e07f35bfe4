/* Progress and time left. Work is an estimate made at planning; speed is measured per kind on this job's own
 * finished tasks, so the estimate only has to be right within a kind. A kind that has none yet is as fast as a forecast
 * would have it, for the workers that are there and what they did of this job. */
#include "server/engine_progress.h"

#include <string.h>

#include "server/engine_forecast.h"

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

/* Below 0 while nothing is finished. */
static double time_left(const struct sums *s, double holders, const struct plan_crew *crew)
{
	struct plan_history history = { 0 };
	struct plan_fleet fleet;
	double seconds = 0;

	for (int k = 1; k < KIND_COUNT; k++) {
		history.work[k] = s[k].done_work;
		history.seconds[k] = s[k].done_ms / 1000;
	}
	plan_fleet_init(&fleet, crew, &history);
	for (int k = 1; k < KIND_COUNT; k++)
		seconds += s[k].left / fleet.rate[k];
	return fleet.measured || seconds == 0 ? seconds / (holders > 1 ? holders : 1) : -1;
}

int job_progress(struct tx *tx, const struct job_ref *job, struct job_progress *p, struct err *err)
{
	struct query *q = store_select(tx->db, SQL_JOB_PROGRESS, err, sql_i(job->first_task),
				       sql_i(job->first_task + job->task_count - 1));
	struct sums sums[KIND_COUNT] = { 0 };
	struct plan_crew crew = { 0 };
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
	p->eta_seconds = -1;
	if (more < 0)
		return -1;
	if (job_state_final(job->state))
		return 0;
	if (forecast_crew(tx->db, tx->now_ms - tx->e->config.lease_ms, &crew, err) != 0)
		return -1;
	p->eta_seconds = time_left(sums, holders, &crew);
	return 0;
}
