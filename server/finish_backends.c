#include "server/finish_backends.h"

#include <stdio.h>
#include <string.h>

enum { WARNINGS_MOST = 100, SENTENCE_MAX = 1024, PLACE_MAX = 96 };

int backends_note(struct json *list, const struct json *stats)
{
	const char *backend = json_get_string(stats, "backend", "?"), *identity = json_get_string(stats, "identity", "?");
	int64_t tasks = 0;
	struct json *o;
	int rc;

	for (struct json *e = json_first(list); e; e = json_next(e))
		if (strcmp(json_get_string(e, "backend", ""), backend) == 0 &&
		    strcmp(json_get_string(e, "identity", ""), identity) == 0) {
			tasks = json_get_int(e, "tasks", 0);
			json_remove(e, "tasks");
			return json_set_int(e, "tasks", tasks + 1);
		}
	o = json_new_object();
	rc = json_set_string(o, "backend", backend) | json_set_string(o, "identity", identity) |
	     json_set_int(o, "tasks", 1);
	return rc | json_push(list, o);
}

/* "quantize of layer 3", "evaluate" */
static const char *name_of(struct query *q, char out[PLACE_MAX])
{
	if (query_int(q, 2) >= 0)
		snprintf(out, PLACE_MAX, "%s of layer %lld", task_kind_name(query_int(q, 1)), (long long)query_int(q, 2));
	else
		snprintf(out, PLACE_MAX, "%s", task_kind_name(query_int(q, 1)));
	return out;
}

/* A sentence about one row; "" when there is nothing to say. */
typedef void (*describe_fn)(struct query *q, const struct json *stats, const struct json *result, char out[SENTENCE_MAX]);

/* Of one earlier holder. q: SQL_ATTEMPTS_OF_JOB. */
static void describe_attempt(struct query *q, const struct json *stats, const struct json *result, char out[SENTENCE_MAX])
{
	const char *backend = json_get_string(stats, "backend", "?"), *identity = json_get_string(stats, "identity", "?");
	long long resumed_at = (long long)json_get_int(result, "resumed_at", 0);
	char name[PLACE_MAX];

	out[0] = '\0';
	if (strcmp(query_text(q, 5), backend) != 0)
		snprintf(out, SENTENCE_MAX, "%s was tried on %s (%.200s) by %.100s, which ended with %s, and done on %s (%.200s) by "
			 "%.100s", name_of(q, name), query_text(q, 5), query_text(q, 6), query_text(q, 3), query_text(q, 4),
			 backend, identity, query_text(q, 8));
	else if (resumed_at > 0 && strcmp(query_text(q, 6), identity) != 0)
		snprintf(out, SENTENCE_MAX, "%s was begun on %s (%.200s) by %.100s and went on after step %lld on another: %.200s, by "
			 "%.100s", name_of(q, name), backend, query_text(q, 6), query_text(q, 3), resumed_at, identity,
			 query_text(q, 8));
}

/* Of a task whose device had no memory for the usual pieces. q: SQL_TASKS_IN_PIECES. */
static void describe_pieces(struct query *q, const struct json *stats, const struct json *result, char out[SENTENCE_MAX])
{
	const long long tokens = (long long)json_get_int(stats, "piece_tokens", 0);
	char name[PLACE_MAX];

	(void)result;
	out[0] = '\0';
	if (tokens > 0)
		snprintf(out, SENTENCE_MAX, "%s was done in pieces of %lld tokens by %.100s, whose device had no memory for larger "
			 "ones: its bits may differ from those of a run in larger pieces, because products of other shapes may sum "
			 "in another order", name_of(q, name), tokens, query_text(q, 8));
}

static int add_row(struct query *q, describe_fn describe, struct json *list, char last[SENTENCE_MAX], struct err *err)
{
	struct json *stats = json_parse_stored(query_text(q, 7), err);
	struct json *result = stats ? json_parse_stored(query_text(q, 9), err) : NULL;
	char text[SENTENCE_MAX] = "";
	int rc = result ? 0 : -1;

	if (rc == 0)
		describe(q, stats, result, text);
	if (text[0] && strcmp(text, last) != 0) {
		rc = json_push(list, json_new_string(text));
		snprintf(last, SENTENCE_MAX, "%s", text);
	}
	json_free(stats);
	json_free(result);
	return rc;
}

/* One sentence for tasks that follow each other and would be given the same. */
static int add_rows(struct store *db, const struct job_ref *job, enum sql sql, describe_fn describe, struct json *list,
		    struct err *err)
{
	struct query *q = store_select(db, sql, err, sql_i(job->first_task), sql_i(job->first_task + job->task_count - 1));
	char last[SENTENCE_MAX] = "";
	int more, rc = 0;

	while (rc == 0 && (more = query_next(q, err)) != 0 && json_size(list) < WARNINGS_MOST)
		rc = more < 0 ? -1 : add_row(q, describe, list, last, err);
	query_done(q);
	return rc;
}

struct json *backends_warnings(struct store *db, const struct job_ref *job, struct err *err)
{
	struct json *list = json_new_array();

	if (list && add_rows(db, job, SQL_ATTEMPTS_OF_JOB, describe_attempt, list, err) == 0 &&
	    add_rows(db, job, SQL_TASKS_IN_PIECES, describe_pieces, list, err) == 0)
		return list;
	json_free(list);
	return NULL;
}
