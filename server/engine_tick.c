/* What happens because time passes: leases lapse, forgotten blobs go, a service that stopped for a full disk looks
 * whether it can go on. */
#include <inttypes.h>
#include <stdio.h>

#include "common/log.h"
#include "server/blobs.h"
#include "server/engine_internal.h"

enum { LAPSED_MAX = 256, ORPHANS_MAX = 256 };
static const int64_t orphan_age_ms = 24 * 3600 * 1000;
static const int64_t orphan_every_ms = 600 * 1000;
static const int64_t jump_ms = 5000;

/* --- leases ------------------------------------------------------------------- */

struct lapsed { struct task_ref task; bool accepted; char worker[128]; };

static int list_lapsed(struct tx *tx, struct lapsed list[LAPSED_MAX], size_t *count, struct err *err)
{
	struct query *q = store_select(tx->db, SQL_LAPSED, err, sql_i(tx->now_ms), sql_i(LAPSED_MAX));
	int more;

	*count = 0;
	while ((more = query_next(q, err)) == 1 && *count < LAPSED_MAX) {
		struct lapsed *l = &list[(*count)++];

		l->task = (struct task_ref){ .pk = query_int(q, 0), .job = query_int(q, 1), .kind = query_int(q, 2),
					     .state = TASK_LEASED, .epoch = query_int(q, 3),
					     .attempts = query_int(q, 4), .worker = query_int(q, 6) };
		l->accepted = query_int(q, 5) != 0;
		snprintf(l->worker, sizeof(l->worker), "%s", query_text(q, 7));
	}
	query_done(q);
	return more < 0 ? -1 : 0;
}

/* A lease that was never accepted may not have reached the worker: it does not count as an attempt. */
static int end_lapsed(struct tx *tx, void *ctx, struct err *err)
{
	struct lapsed list[LAPSED_MAX];
	char detail[256];
	size_t count;

	(void)ctx;
	if (list_lapsed(tx, list, &count, err) != 0)
		return -1;
	for (size_t i = 0; i < count; i++) {
		struct lapsed *l = &list[i];
		struct task_ref now;

		/* An earlier one of this list may have failed the job and with it this task. */
		if (task_load(tx->db, l->task.pk, &now, err) != 0)
			return -1;
		if (now.state != TASK_LEASED)
			continue;
		if (l->accepted)
			snprintf(detail, sizeof(detail), "worker %s was not heard of for %" PRId64 " s", l->worker,
				 tx->e->config.lease_ms / 1000);
		else
			snprintf(detail, sizeof(detail), "worker %s did not accept the task", l->worker);
		if (lease_end(tx, &l->task, "timeout", detail, "", l->accepted, false, err) != 0 ||
		    effects_wake(tx->fx, WAKE_WORKER, "", err) != 0)
			return -1;
	}
	return 0;
}

int leases_refresh(struct tx *tx, void *ctx, struct err *err)
{
	(void)ctx;
	if (store_exec(tx->db, SQL_LEASES_REFRESH, err, sql_i(tx->now_ms + tx->e->config.lease_ms)) < 0 ||
	    store_exec(tx->db, SQL_HOLDERS_SEEN, err, sql_i(tx->now_ms)) < 0)
		return -1;
	return 0;
}

/* Deadlines are wall-clock times. When that clock was set, or the machine slept, they mean nothing: nobody is
 * to lose work for it. */
static bool clock_jumped(struct engine *e, int64_t wall_ms)
{
	int64_t mono_ms = e->config.clock->mono_ms(e->config.clock->ctx);
	int64_t off = (wall_ms - e->ticked_wall_ms) - (mono_ms - e->ticked_mono_ms);
	bool first = e->ticked_wall_ms == 0;

	e->ticked_wall_ms = wall_ms;
	e->ticked_mono_ms = mono_ms;
	return !first && (off > jump_ms || off < -jump_ms);
}

/* --- blobs that nothing names ------------------------------------------------- */

static int drop_orphans(struct tx *tx, void *ctx, struct err *err)
{
	char found[ORPHANS_MAX][DIGEST_HEX];
	struct query *q = store_select(tx->db, SQL_BLOB_ORPHANS, err, sql_i(tx->now_ms - orphan_age_ms),
				       sql_i(ORPHANS_MAX));
	size_t count = 0;
	int more;

	(void)ctx;
	while ((more = query_next(q, err)) == 1 && count < ORPHANS_MAX)
		snprintf(found[count++], DIGEST_HEX, "%s", query_text(q, 0));
	query_done(q);
	if (more < 0)
		return -1;
	for (size_t i = 0; i < count; i++)
		if (blob_drop_if_unused(tx, found[i], err) != 0)
			return -1;
	return 0;
}

/* --- health ------------------------------------------------------------------- */

static int probe(struct tx *tx, void *ctx, struct err *err)
{
	char now[32];

	(void)ctx;
	snprintf(now, sizeof(now), "%" PRId64, tx->now_ms);
	return store_exec(tx->db, SQL_META_SET, err, sql_t("probe"), sql_t(now)) < 0 ? -1 : 0;
}

static bool unhealthy(struct engine *e)
{
	bool failed;

	pthread_mutex_lock(&e->health_lock);
	failed = e->last_failure.code != ERR_NONE;
	pthread_mutex_unlock(&e->health_lock);
	return failed;
}

/* --- the tick ----------------------------------------------------------------- */

struct due { bool lapsed, ready; };

/* Looks first, so that an idle server does not write. */
static struct due look(struct engine *e, int64_t now_ms)
{
	struct err err = ERR_INIT;
	struct store *db = reader_take(e, &err);
	struct due due = { false, false };
	int64_t one;

	if (!db)
		return due;
	due.lapsed = store_get_int(db, SQL_ANY_LAPSED, &one, &err, sql_i(now_ms)) == 1;
	due.ready = store_get_int(db, SQL_ANY_READY, &one, &err) == 1;
	reader_give(e, db);
	return due;
}

static void run_step(struct engine *e, int (*step)(struct tx *tx, void *ctx, struct err *err))
{
	struct err err = ERR_INIT;

	if (writer_run(e, step, NULL, &err) != 0)
		log_warn("%s", err.text);
}

/* Workers come and go: what nobody could take a second ago may be taken now. */
static void wake_pollers(struct engine *e)
{
	pthread_mutex_lock(&e->change_lock);
	if (e->changed)
		e->changed(e->changed_ctx, WAKE_LEASE, "");
	pthread_mutex_unlock(&e->change_lock);
}

void engine_tick(struct engine *e)
{
	int64_t now_ms = engine_now(e);
	struct due due;

	if (clock_jumped(e, now_ms)) {
		log_warn("the clock jumped: all leases get a fresh deadline");
		run_step(e, leases_refresh);
	}
	due = look(e, now_ms);
	if (unhealthy(e))
		run_step(e, probe);
	if (due.lapsed)
		run_step(e, end_lapsed);
	if (due.ready)
		wake_pollers(e);
	if (now_ms - e->orphans_checked_ms >= orphan_every_ms) {
		e->orphans_checked_ms = now_ms;
		run_step(e, drop_orphans);
	}
	finish_pending(e);
}
