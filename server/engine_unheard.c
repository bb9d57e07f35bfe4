/* Leases whose reply was lost on its way.
 *
 * A worker has one lease request under way at a time and names in it what it holds. A lease to it that it has neither
 * accepted nor named went out in a reply that it never read - the coordinator was killed after the commit, or the
 * connection broke. Such a task goes back at once and uncounted, instead of at its deadline. */
#include <inttypes.h>
#include <string.h>

#include "common/alloc.h"
#include "server/engine_internal.h"

enum { UNHEARD_MAX = 8, HOLDS_MAX = 64 };

static bool is_named(const struct json *holds, const char *id)
{
	for (const struct json *v = json_first(holds); v; v = json_next(v))
		if (strcmp(json_string(v, ""), id) == 0)
			return true;
	return false;
}

static int check_holds(const struct json *holds, struct err *err)
{
	size_t count = 0;

	for (const struct json *v = json_first(holds); v; v = json_next(v))
		if (!json_string(v, NULL) || ++count > HOLDS_MAX)
			return err_set(err, ERR_INVALID, "\"holds\" must be at most %d task ids", HOLDS_MAX);
	return 0;
}

int leases_unheard(struct tx *tx, const struct worker_ref *w, const struct json *holds, struct err *err)
{
	struct task_ref list[UNHEARD_MAX];
	struct query *q;
	size_t count = 0;
	int more;

	if (!holds)
		return 0;
	if (check_holds(holds, err) != 0)
		return -1;
	q = store_select(tx->db, SQL_WORKER_UNACCEPTED, err, sql_i(w->pk));
	while (count < UNHEARD_MAX && (more = query_next(q, err)) == 1) {
		char id[ID_MAX];

		task_id_text(id, query_text(q, 6), query_int(q, 7), query_int(q, 0));
		if (!is_named(holds, id))
			list[count++] = (struct task_ref){ .pk = query_int(q, 0), .job = query_int(q, 1),
							   .kind = query_int(q, 2), .state = TASK_LEASED,
							   .epoch = query_int(q, 3), .attempts = query_int(q, 4),
							   .leased_ms = query_int(q, 5), .worker = w->pk };
	}
	query_done(q);
	if (more < 0)
		return -1;
	for (size_t i = 0; i < count; i++)
		if (lease_end(tx, &list[i], "timeout", "the reply that gave the task out did not arrive", "", false, false,
			      err) != 0)
			return -1;
	return 0;
}
