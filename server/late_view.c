#include "server/late_view.h"

#include "common/alloc.h"
#include "server/late.h"
#include "server/store.h"

struct late_fleet {
	struct store *db;
	int64_t live_since_ms, now_ms;
	bool loaded;                    /* what is held, and what is ready */
	bool tried[KIND_COUNT];
	double drained[KIND_COUNT];     /* of the kinds that were tried */
	struct late_view view;
};

/* The worker's place in the view; NULL when there is no more room. */
static struct late_worker *place_of(struct late_view *v, int64_t worker)
{
	if (worker == v->asking.worker)
		return &v->asking;
	if (v->other_count > 0 && v->others[v->other_count - 1].worker == worker)
		return &v->others[v->other_count - 1];
	if (v->other_count == LATE_WORKERS_MAX)
		return NULL;
	v->others[v->other_count].worker = worker;
	return &v->others[v->other_count++];
}

static int read_rates(struct late_fleet *f, struct err *err)
{
	struct late_view *v = &f->view;
	struct query *q = store_select(f->db, SQL_RATES, err, sql_i(v->asking.worker), sql_i(f->live_since_ms));
	int more;

	while ((more = query_next(q, err)) == 1) {
		struct late_worker *w = place_of(v, query_int(q, 0));
		int64_t kind = query_int(q, 1);

		if (!w || kind <= 0 || kind >= KIND_COUNT)
			continue;
		w->work[kind] = query_real(q, 2);
		w->seconds[kind] = query_real(q, 3);
	}
	query_done(q);
	late_rates(&v->asking);
	for (size_t i = 0; i < v->other_count; i++)
		late_rates(&v->others[i]);
	return more < 0 ? -1 : 0;
}

/* Rows and the view have the workers in the same order. */
static int read_held(struct late_fleet *f, struct err *err)
{
	struct late_view *v = &f->view;
	struct query *q = store_select(f->db, SQL_HELD_WORK, err, sql_i(f->live_since_ms));
	size_t i = 0;
	int more;

	while ((more = query_next(q, err)) == 1) {
		int64_t worker = query_int(q, 0), kind = query_int(q, 1);

		while (i < v->other_count && v->others[i].worker < worker)
			i++;
		if (i < v->other_count && v->others[i].worker == worker && kind > 0 && kind < KIND_COUNT)
			v->others[i].busy_seconds += late_remaining(query_real(q, 2), v->others[i].rate[kind],
								    (double)(f->now_ms - query_int(q, 4)) / 1000,
								    query_real(q, 3));
	}
	query_done(q);
	return more < 0 ? -1 : 0;
}

static int read_ready(struct late_fleet *f, struct err *err)
{
	struct late_view *v = &f->view;
	struct query *q = store_select(f->db, SQL_READY_WORK, err, sql_i(LATE_READY_MAX + 1));
	int more;

	while ((more = query_next(q, err)) == 1 && v->ready_count < LATE_READY_MAX) {
		v->ready[v->ready_count++] = (struct late_task){ query_int(q, 0), query_real(q, 1) };
	}
	v->more = more == 1;
	query_done(q);
	return more < 0 ? -1 : 0;
}

struct late_fleet *late_fleet_read(struct store *db, int64_t worker, int64_t live_since_ms, int64_t now_ms,
				   struct err *err)
{
	struct late_fleet *f = mem_alloc(1, sizeof(*f));

	if (!f) {
		err_set_nomem(err, "the rates of the workers");
		return NULL;
	}
	f->db = db;
	f->live_since_ms = live_since_ms;
	f->now_ms = now_ms;
	f->view.asking.worker = worker;
	if (read_rates(f, err) == 0)
		return f;
	late_fleet_free(f);
	return NULL;
}

void late_fleet_free(struct late_fleet *fleet)
{
	mem_free(fleet);
}

int late_fleet_leaves(struct late_fleet *f, int64_t kind, double work, struct err *err)
{
	const struct late_task task = { kind, work };

	if (!late_has_faster(&f->view, kind))
		return 0;
	if (!f->loaded && (read_held(f, err) != 0 || read_ready(f, err) != 0))
		return -1;
	f->loaded = true;
	if (!f->tried[kind])
		f->drained[kind] = late_drained(&f->view, kind);
	f->tried[kind] = true;
	return late_leave(&f->view, &task, f->drained[kind]);
}
