/* The choice among ready tasks.
 *
 * Ready tasks are walked in groups (rank, job) along one index, so the cost grows with the jobs that have
 * ready tasks of the best rank and not with the number of tasks. Within the best rank: a task most of whose input
 * bytes the worker has, then the tenant with the fewest leases, then age. A task that faster workers finish sooner is
 * left to them (late.h), and with it its group.
 */
#include "server/schedule.h"

#include <string.h>

#include "server/late_view.h"
#include "server/store.h"

enum { GROUPS_MAX = 512, AFFINE_MAX = 64 };

/* A group's task, and what decides between groups. */
struct candidate {
	struct task_ref task;
	int64_t layer, rank, tenant_leased, first_quantize;
	double work;
};

/* One pick. */
struct pick {
	struct store *db;
	const struct schedule_request *r;
	struct late_fleet *fleet;       /* NULL until it is needed */
	bool left;
	struct err *err;
};

static void read_candidate(struct query *q, struct candidate *c)
{
	c->task = (struct task_ref){ .pk = query_int(q, 0), .job = query_int(q, 1), .kind = query_int(q, 2),
				     .state = TASK_READY, .epoch = query_int(q, 3), .attempts = query_int(q, 4) };
	c->layer = query_int(q, 5);
	c->rank = query_int(q, 6);
	c->work = query_real(q, 7);
}

/* A worker that failed a task is passed over while another live one has not. */
static int passed_over(struct pick *p, const struct task_ref *t)
{
	const struct schedule_request *r = p->r;
	int64_t one;
	int failed;

	if (t->attempts == 0)
		return 0;
	failed = store_get_int(p->db, SQL_ATTEMPT_BY, &one, p->err, sql_i(t->pk), sql_i(r->worker));
	if (failed != 1)
		return failed;
	return store_get_int(p->db, SQL_WORKER_OTHER, &one, p->err, sql_i(t->pk), sql_i(r->worker),
			     sql_i(r->live_since_ms));
}

/* Capture(l) waits while a quantize of layer l or below is ready: that bounds the disk for hidden states, and a
 * worker that does both one after the other reads the layer once. Not for one that failed: this worker may be the
 * one that cannot do it. */
static int capture_waits(struct pick *p, const struct candidate *c)
{
	int64_t one;

	if (c->task.kind != KIND_CAPTURE || c->first_quantize == 0)
		return 0;
	return store_get_int(p->db, SQL_READY_BETWEEN, &one, p->err, sql_i(c->first_quantize),
			     sql_i(c->first_quantize + c->layer));
}

/* Faster workers finish it sooner. Not once it failed: they may be the ones that cannot do it. */
static int left_to_others(struct pick *p, const struct candidate *c)
{
	const struct schedule_request *r = p->r;
	int left;

	if (c->task.attempts > 0)
		return 0;
	if (!p->fleet)
		p->fleet = late_fleet_read(p->db, r->worker, r->live_since_ms, r->now_ms, p->err);
	left = p->fleet ? late_fleet_leaves(p->fleet, c->task.kind, c->work, p->err) : -1;
	p->left |= left == 1;
	return left;
}

static int load_job(struct pick *p, struct candidate *c)
{
	struct query *q = store_select(p->db, SQL_JOB_FAIRNESS, p->err, sql_i(c->task.job));
	int found = query_next(q, p->err);

	if (found == 1) {
		c->first_quantize = query_int(q, 0);
		c->tenant_leased = query_int(q, 1);
	}
	query_done(q);
	return found < 0 ? -1 : 0;
}

/* The reasons to hold back a task that the worker may have: 1, 0 or -1. Fills in what decides between groups. */
static int held_back(struct pick *p, struct candidate *c)
{
	int held;

	if (load_job(p, c) != 0)
		return -1;
	held = capture_waits(p, c);
	return held == 0 ? left_to_others(p, c) : held;
}

/* First task of the group that this worker may have: 1, 0 or -1. */
static int pick_in_group(struct pick *p, int64_t rank, int64_t job, struct candidate *c)
{
	struct query *q = store_select(p->db, SQL_READY_IN_GROUP, p->err, sql_i(rank), sql_i(job));
	int more, passed = 1;

	while ((more = query_next(q, p->err)) == 1 && passed == 1) {
		read_candidate(q, c);
		passed = passed_over(p, &c->task);
		if (passed == 0)
			break;
	}
	query_done(q);
	if (more != 1 || passed != 0)
		return more < 0 || passed < 0 ? -1 : 0;
	passed = held_back(p, c);
	return passed < 0 ? -1 : !passed;
}

/* The next group after (rank, job) that has ready tasks. */
static int next_group(struct pick *p, int64_t *rank, int64_t *job)
{
	struct query *q = store_select(p->db, SQL_READY_NEXT_GROUP, p->err, sql_i(*rank), sql_i(*job));
	int found = query_next(q, p->err);

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

static int pick_by_fairness(struct pick *p, struct candidate *best)
{
	int64_t rank = -1, job = -1;
	bool found = false;

	for (int n = 0; n < GROUPS_MAX; n++) {
		struct candidate c;
		int rc = next_group(p, &rank, &job);

		if (rc < 0)
			return -1;
		if (rc == 0 || (found && rank != best->rank))
			break;
		rc = pick_in_group(p, rank, job, &c);
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
static int mostly_there(struct pick *p, int64_t task)
{
	struct query *q = store_select(p->db, SQL_TASK_INPUTS, p->err, sql_i(task));
	int64_t total = 0, there = 0;
	int more;

	while ((more = query_next(q, p->err)) == 1) {
		int64_t bytes = query_int(q, 2);

		total += bytes;
		if (worker_has(p->r, query_text(q, 1)))
			there += bytes;
	}
	query_done(q);
	return more < 0 ? -1 : there > total / 2;
}

/* Ready tasks of this rank that read the blob. */
static int readers_of(struct pick *p, const char *sha256, int64_t rank, struct candidate out[AFFINE_MAX],
		      size_t *count)
{
	struct query *q = store_select(p->db, SQL_READY_READERS, p->err, sql_t(sha256), sql_i(rank));
	int more;

	while ((more = query_next(q, p->err)) == 1 && *count < AFFINE_MAX)
		read_candidate(q, &out[(*count)++]);
	query_done(q);
	return more < 0 ? -1 : 0;
}

/* 1: *best replaced by a task whose inputs the worker has. */
static int prefer_affine(struct pick *p, struct candidate *best)
{
	const struct schedule_request *r = p->r;
	struct candidate found[AFFINE_MAX];
	size_t count = 0;
	bool chosen = false;
	int64_t rank = best->rank;

	for (size_t i = 0; i < r->have_count && count < AFFINE_MAX; i++)
		if (readers_of(p, r->have[i], rank, found, &count) != 0)
			return -1;
	for (size_t i = 0; i < count; i++) {
		struct candidate *c = &found[i];
		int there = mostly_there(p, c->task.pk);
		int passed = there == 1 ? passed_over(p, &c->task) : 0;

		if (there < 0 || passed < 0)
			return -1;
		if (there == 0 || passed == 1)
			continue;
		passed = held_back(p, c);
		if (passed < 0)
			return -1;
		if (passed == 0 && (!chosen || fairer(c, best))) {
			*best = *c;
			chosen = true;
		}
	}
	return 0;
}

int schedule_pick(struct store *db, const struct schedule_request *r, struct task_ref *task, bool *left,
		  struct err *err)
{
	struct pick p = { .db = db, .r = r, .err = err };
	struct candidate best = { .rank = -1 };
	int found = pick_by_fairness(&p, &best);

	if (found == 1 && r->have_count > 0 && prefer_affine(&p, &best) != 0)
		found = -1;
	if (found == 1)
		*task = best.task;
	*left = p.left;
	late_fleet_free(p.fleet);
	return found;
}
