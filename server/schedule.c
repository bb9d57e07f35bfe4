/* The choice among ready tasks.
 *
 * Ready tasks are walked in groups (rank, job) along one index, so the cost grows with the jobs that have
 * ready tasks of the best rank and not with the number of tasks. Within the best rank: a task most of whose input
 * bytes the worker has, then the tenant with the fewest leases, then age.
 */
#include "server/schedule.h"

#include <stdbool.h>
#include <string.h>

#include "server/store.h"

enum { GROUPS_MAX = 512, AFFINE_MAX = 64 };

/* A group's task, and what decides between groups. */
struct candidate {
	struct task_ref task;
	int64_t layer, rank, tenant_leased, first_quantize;
};

static void read_candidate(struct query *q, struct candidate *c)
{
	c->task = (struct task_ref){ .pk = query_int(q, 0), .job = query_int(q, 1), .kind = query_int(q, 2),
				     .state = TASK_READY, .epoch = query_int(q, 3), .attempts = query_int(q, 4) };
	c->layer = query_int(q, 5);
	c->rank = query_int(q, 6);
}

/* A worker that failed a task is passed over while another live one has not. */
static int passed_over(struct store *db, const struct schedule_request *r, const struct task_ref *t,
		       struct err *err)
{
	int64_t one;
	int failed;

	if (t->attempts == 0)
		return 0;
	failed = store_get_int(db, SQL_ATTEMPT_BY, &one, err, sql_i(t->pk), sql_i(r->worker));
	if (failed != 1)
		return failed;
	return store_get_int(db, SQL_WORKER_OTHER, &one, err, sql_i(t->pk), sql_i(r->worker),
			     sql_i(r->live_since_ms));
}

/* To bound the disk for hidden states, capture(l) waits while a quantize below l - 2 is ready. */
static int capture_waits(struct store *db, const struct candidate *c, struct err *err)
{
	int64_t one;

	if (c->task.kind != KIND_CAPTURE || c->first_quantize == 0 || c->layer < 3)
		return 0;
	return store_get_int(db, SQL_READY_BETWEEN, &one, err, sql_i(c->first_quantize),
			     sql_i(c->first_quantize + c->layer - 3));
}

static int load_job(struct store *db, struct candidate *c, struct err *err)
{
	struct query *q = store_select(db, SQL_JOB_FAIRNESS, err, sql_i(c->task.job));
	int found = query_next(q, err);

	if (found == 1) {
		c->first_quantize = query_int(q, 0);
		c->tenant_leased = query_int(q, 1);
	}
	query_done(q);
	return found < 0 ? -1 : 0;
}

/* First task of the group that this worker may have: 1, 0 or -1. */
static int pick_in_group(struct store *db, const struct schedule_request *r, int64_t rank, int64_t job,
			 struct candidate *c, struct err *err)
{
	struct query *q = store_select(db, SQL_READY_IN_GROUP, err, sql_i(rank), sql_i(job));
	int more, passed = 1;

	while ((more = query_next(q, err)) == 1 && passed == 1) {
		read_candidate(q, c);
		passed = passed_over(db, r, &c->task, err);
		if (passed == 0)
			break;
	}
	query_done(q);
	if (more != 1 || passed != 0)
		return more < 0 || passed < 0 ? -1 : 0;
	if (load_job(db, c, err) != 0)
		return -1;
	passed = capture_waits(db, c, err);
	return passed < 0 ? -1 : !passed;
}

/* The next group after (rank, job) that has ready tasks. */
static int next_group(struct store *db, int64_t *rank, int64_t *job, struct err *err)
{
	struct query *q = store_select(db, SQL_READY_NEXT_GROUP, err, sql_i(*rank), sql_i(*job));
	int found = query_next(q, err);

	if (found == 1) {
		*rank = query_int(q, 0);
		*job = query_int(q, 1);
	}
	query_done(q);
	return found;
}

static bool fairer(const struct candidate *a, const struct candidate *b)
{
	if (a->tenant_leased != b->tenant_leased)
		return a->tenant_leased < b->tenant_leased;
	return a->task.pk < b->task.pk;
}

static int pick_by_fairness(struct store *db, const struct schedule_request *r, struct candidate *best,
			    struct err *err)
{
	int64_t rank = -1, job = -1;
	bool found = false;

	for (int n = 0; n < GROUPS_MAX; n++) {
		struct candidate c;
		int rc = next_group(db, &rank, &job, err);

		if (rc < 0)
			return -1;
		if (rc == 0 || (found && rank != best->rank))
			break;
		rc = pick_in_group(db, r, rank, job, &c, err);
		if (rc < 0)
			return -1;
		if (rc == 1 && (!found || fairer(&c, best)))
			*best = c;
		found |= rc == 1;
	}
	return found;
}

/* --- inputs that the worker has ------------------------------------------------ */

static bool worker_has(const struct schedule_request *r, const char *sha256)
{
	for (size_t i = 0; i < r->have_count; i++)
		if (strcmp(r->have[i], sha256) == 0)
			return true;
	return false;
}

/* true when more than half of the task's input bytes are there already. */
static int mostly_there(struct store *db, const struct schedule_request *r, int64_t task, struct err *err)
{
	struct query *q = store_select(db, SQL_TASK_INPUTS, err, sql_i(task));
	int64_t total = 0, there = 0;
	int more;

	while ((more = query_next(q, err)) == 1) {
		int64_t bytes = query_int(q, 2);

		total += bytes;
		if (worker_has(r, query_text(q, 1)))
			there += bytes;
	}
	query_done(q);
	return more < 0 ? -1 : there > total / 2;
}

/* Ready tasks of this rank that read the blob. */
static int readers_of(struct store *db, const char *sha256, int64_t rank, struct candidate out[AFFINE_MAX],
		      size_t *count, struct err *err)
{
	struct query *q = store_select(db, SQL_READY_READERS, err, sql_t(sha256), sql_i(rank));
	int more;

	while ((more = query_next(q, err)) == 1 && *count < AFFINE_MAX)
		read_candidate(q, &out[(*count)++]);
	query_done(q);
	return more < 0 ? -1 : 0;
}

/* 1: *best replaced by a task whose inputs the worker has. */
static int prefer_affine(struct store *db, const struct schedule_request *r, struct candidate *best,
			 struct err *err)
{
	struct candidate found[AFFINE_MAX];
	size_t count = 0;
	bool chosen = false;
	int64_t rank = best->rank;

	for (size_t i = 0; i < r->have_count && count < AFFINE_MAX; i++)
		if (readers_of(db, r->have[i], rank, found, &count, err) != 0)
			return -1;
	for (size_t i = 0; i < count; i++) {
		struct candidate *c = &found[i];
		int there = mostly_there(db, r, c->task.pk, err);
		int passed = there == 1 ? passed_over(db, r, &c->task, err) : 0;

		if (there < 0 || passed < 0)
			return -1;
		if (there == 0 || passed == 1)
			continue;
		if (load_job(db, c, err) != 0)
			return -1;
		passed = capture_waits(db, c, err);
		if (passed < 0)
			return -1;
		if (passed == 0 && (!chosen || fairer(c, best))) {
			*best = *c;
			chosen = true;
		}
	}
	return 0;
}

int schedule_pick(struct store *db, const struct schedule_request *r, struct task_ref *task, struct err *err)
{
	struct candidate best = { .rank = -1 };
	int found = pick_by_fairness(db, r, &best, err);

	if (found == 1 && r->have_count > 0 && prefer_affine(db, r, &best, err) != 0)
		return -1;
	if (found == 1)
		*task = best.task;
	return found;
}
