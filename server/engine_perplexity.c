#include "server/engine_perplexity.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/recipe.h"

enum { TEXT_NAME_MAX = 128 };

struct text_sums {
	char name[TEXT_NAME_MAX];
	struct { double nll; int64_t predictions, windows, chunks, done; } of[2]; /* original, quantized */
};

/* Evaluation texts of the job, in order. */
static int read_texts(struct store *db, const struct job_ref *job, struct text_sums texts[RECIPE_EVALS_MAX],
		      size_t *count, struct err *err)
{
	struct query *q = store_select(db, SQL_JOB_DATASETS, err, sql_i(job->pk));
	int more;

	*count = 0;
	while ((more = query_next(q, err)) == 1 && *count < RECIPE_EVALS_MAX) {
		if (strcmp(query_text(q, 1), "eval") != 0)
			continue;
		memset(&texts[*count], 0, sizeof(texts[0]));
		snprintf(texts[(*count)++].name, TEXT_NAME_MAX, "%s", query_text(q, 2));
	}
	query_done(q);
	return more < 0 ? -1 : 0;
}

static int add_chunk(struct text_sums *texts, size_t count, const char *spec_text, const char *result_text,
		     bool done, struct err *err)
{
	struct json *spec = json_parse_stored(spec_text, err);
	struct json *result = done ? json_parse_stored(result_text, err) : NULL;
	int64_t text = json_get_int(spec, "text", -1);
	int which = strcmp(json_get_string(spec, "model", ""), "quantized") == 0;
	int rc = spec && (result || !done) ? 0 : -1;

	if (rc == 0 && text >= 0 && text < (int64_t)count) {
		texts[text].of[which].chunks++;
		texts[text].of[which].done += done;
		texts[text].of[which].nll += json_get_number(result, "nll", 0);
		texts[text].of[which].predictions += json_get_int(result, "predictions", 0);
		texts[text].of[which].windows += json_get_int(result, "windows", 0);
	}
	json_free(spec);
	json_free(result);
	return rc;
}

static int read_chunks(struct store *db, const struct job_ref *job, struct text_sums *texts, size_t count,
		       struct err *err)
{
	struct query *q = store_select(db, SQL_EVALUATE_RESULTS, err, sql_i(job->first_task),
				       sql_i(job->first_task + job->task_count - 1));
	int more, rc = 0;

	while (rc == 0 && (more = query_next(q, err)) != 0)
		rc = more < 0 ? -1 : add_chunk(texts, count, query_text(q, 0), query_text(q, 1),
					       !query_is_null(q, 1), err);
	query_done(q);
	return rc;
}

static int add_value(struct json *o, const char *key, const struct text_sums *t, int which)
{
	bool known = t->of[which].chunks > 0 && t->of[which].done == t->of[which].chunks &&
		     t->of[which].predictions > 0;

	if (!known)
		return json_set_null(o, key);
	return json_set_number(o, key, exp(t->of[which].nll / (double)t->of[which].predictions));
}

static struct json *text_json(const struct text_sums *t, bool full)
{
	struct json *o = json_new_object();
	int rc = json_set_string(o, "text", t->name) | add_value(o, "original", t, 0) |
		 add_value(o, "quantized", t, 1);

	if (full)
		rc |= json_set_int(o, "windows", t->of[0].windows) |
		      json_set_int(o, "predictions", t->of[0].predictions) |
		      json_set_number(o, "nll_original", t->of[0].nll) |
		      (t->of[1].chunks > 0 ? json_set_number(o, "nll_quantized", t->of[1].nll)
					   : json_set_null(o, "nll_quantized"));
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

struct json *perplexity_json(struct store *db, const struct job_ref *job, bool full, struct err *err)
{
	struct text_sums texts[RECIPE_EVALS_MAX];
	struct json *list = json_new_array();
	size_t count;
	int rc = list ? 0 : -1;

	if (rc == 0 && (read_texts(db, job, texts, &count, err) != 0 ||
			read_chunks(db, job, texts, count, err) != 0))
		rc = -1;
	for (size_t i = 0; rc == 0 && i < count; i++)
		rc = json_push(list, text_json(&texts[i], full));
	if (rc == 0)
		return list;
	json_free(list);
	if (err->code == ERR_NONE)
		err_set_nomem(err, "the perplexities");
	return NULL;
}
