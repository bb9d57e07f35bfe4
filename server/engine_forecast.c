/* The workers that are there now, and what they have done lately, as plan_time.h wants them. */
#include "server/engine_forecast.h"

#include <unistd.h>

#include "server/engine_submit.h"

enum { TASKS_LOOKED_AT = 20000 };

/* Nobody is there yet: one worker with this machine's cores, which is what `quarry quantize` would start. */
static int64_t cores(void)
{
	long count = sysconf(_SC_NPROCESSORS_ONLN);

	return count > 0 ? count : 1;
}

int forecast_crew(struct store *db, int64_t live_since_ms, struct plan_crew *crew, struct err *err)
{
	struct query *q = store_select(db, SQL_WORKER_THREADS, err, sql_i(live_since_ms));
	int found = query_next(q, err);

	if (found == 1)
		*crew = (struct plan_crew){ query_int(q, 0), query_int(q, 1), query_int(q, 2), query_int(q, 3) };
	query_done(q);
	if (crew->workers == 0)
		*crew = (struct plan_crew){ .workers = 1, .threads = cores() };
	crew->threads = crew->threads > crew->workers ? crew->threads : crew->workers;
	crew->device_threads = crew->device_threads < crew->threads ? crew->device_threads : crew->threads;
	return found < 0 ? -1 : 0;
}

static int read_history(struct store *db, int64_t live_since, struct plan_history *history, struct err *err)
{
	struct query *q = store_select(db, SQL_KIND_SPEEDS, err, sql_i(live_since), sql_i(TASKS_LOOKED_AT),
				       sql_i(PLAN_WORK_LEAST));
	int more;

	while ((more = query_next(q, err)) == 1) {
		int64_t kind = query_int(q, 0);

		if (kind <= 0 || kind >= KIND_COUNT)
			continue;
		history->work[kind] = query_real(q, 1);
		history->seconds[kind] = query_real(q, 2) / 1000;
	}
	query_done(q);
	return more < 0 ? -1 : 0;
}

int submit_forecast(struct submit *s, bool with_efforts, struct plan_forecast *out)
{
	int64_t live_since = s->tx->now_ms - s->tx->e->config.lease_ms;
	struct plan_history history = { 0 };
	struct plan_crew crew = { 0 };

	if (forecast_crew(s->tx->db, live_since, &crew, s->err) != 0 ||
	    read_history(s->tx->db, live_since, &history, s->err) != 0)
		return -1;
	plan_fleet_init(&out->fleet, &crew, &history);
	return plan_forecast(out, &s->plan, &s->plan_request, with_efforts, s->err);
}
