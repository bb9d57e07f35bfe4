#include "server/engine_perplexity.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/recipe.h"

enum { TEXT_NAME_MAX = 128 };

/* Whose chunks: the wire words of an evaluate task's "model". */
enum whose { ORIGINAL, QUANTIZED, REFERENCE, WHOSE };
static const char *const whose_words[WHOSE] = { "original", "quantized", "reference" };

struct sums { double nll, kl; int64_t predictions, windows, top1, chunks, done, compared; };

struct text_sums {
	char name[TEXT_NAME_MAX];
	struct sums of[WHOSE];
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

static void add_result(struct sums *s, const struct json *result)
{
	s->done++;
	s->nll += json_get_number(result, "nll", 0);
	s->predictions += json_get_int(result, "predictions", 0);
	s->windows += json_get_int(result, "windows", 0);
	if (json_type(json_get(result, "kl")) != JSON_NUMBER || json_type(json_get(result, "top1")) != JSON_NUMBER)
		return;
	s->compared++;
	s->kl += json_get_number(result, "kl", 0);
	s->top1 += json_get_int(result, "top1", 0);
}

static int add_chunk(struct text_sums *texts, size_t count, const char *spec_text, const char *result_text,
		     bool done, struct err *err)
{
	struct json *spec = json_parse_stored(spec_text, err);
	struct json *result = done ? json_parse_stored(result_text, err) : NULL;
	int64_t text = json_get_int(spec, "text", -1);
	int rc = spec && (result || !done) ? 0 : -1;

	for (int w = 0; rc == 0 && text >= 0 && text < (int64_t)count && w < WHOSE; w++) {
		if (strcmp(json_get_string(spec, "model", ""), whose_words[w]) != 0)
			continue;
		texts[text].of[w].chunks++;
		if (done)
			add_result(&texts[text].of[w], result);
	}
	json_free(spec);
	json_free(result);
	return rc;
}

static int read_chunks(struct store *db, const struct job_ref *job, struct text_sums *texts, size_t count,
		       struct err *err)
{
	struct query *q = store_select(db, SQL_TASK_RESULTS, err, sql_i(job->first_task),
				       sql_i(job->first_task + job->task_count - 1), sql_i(KIND_EVALUATE));
	int more, rc = 0;

	while (rc == 0 && (more = query_next(q, err)) != 0)
		rc = more < 0 ? -1 : add_chunk(texts, count, query_text(q, 0), query_text(q, 1),
					       !query_is_null(q, 1), err);
	query_done(q);
	return rc;
}

static bool known(const struct sums *s)
{
	return s->chunks > 0 && s->done == s->chunks && s->predictions > 0;
}

static int add_value(struct json *o, const char *key, bool is_known, double value)
{
	return is_known ? json_set_number(o, key, value) : json_set_null(o, key);
}

static int add_perplexity(struct json *o, const char *key, const struct sums *s)
{
	return add_value(o, key, known(s), exp(s->nll / (double)s->predictions));
}

/* The side that was held against another model: the quantized one, or the model itself against a reference. */
static const struct sums *compared_side(const struct text_sums *t)
{
	return t->of[REFERENCE].chunks > 0 ? &t->of[ORIGINAL] : &t->of[QUANTIZED];
}

static int add_comparison(struct json *o, const struct text_sums *t)
{
	const struct sums *s = compared_side(t);
	bool all = known(s) && s->compared == s->chunks;

	/* Below 0 it is the rounding of float32. */
	return add_value(o, "kl", all, fmax(0, s->kl) / (double)s->predictions) |
	       add_value(o, "top1", all, (double)s->top1 / (double)s->predictions);
}

static int add_sums(struct json *o, const struct text_sums *t)
{
	int rc = json_set_int(o, "predictions", t->of[ORIGINAL].predictions) |
		 json_set_number(o, "nll_original", t->of[ORIGINAL].nll) |
		 add_value(o, "nll_quantized", t->of[QUANTIZED].chunks > 0, t->of[QUANTIZED].nll);

	return t->of[REFERENCE].chunks > 0 ? rc | json_set_number(o, "nll_reference", t->of[REFERENCE].nll) : rc;
}

static struct json *text_json(const struct text_sums *t, bool full)
{
	struct json *o = json_new_object();
	int rc = json_set_string(o, "text", t->name) | add_perplexity(o, "original", &t->of[ORIGINAL]) |
		 add_perplexity(o, "quantized", &t->of[QUANTIZED]);

	if (t->of[REFERENCE].chunks > 0)
		rc |= add_perplexity(o, "reference", &t->of[REFERENCE]);
	rc |= add_comparison(o, t);
	rc |= known(&t->of[ORIGINAL]) ? json_set_int(o, "windows", t->of[ORIGINAL].windows)
				      : json_set_null(o, "windows");
	if (full)
		rc |= add_sums(o, t);
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
