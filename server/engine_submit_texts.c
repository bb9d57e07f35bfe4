/* engine_submit_texts.c - small files that a format takes into its own: a tokenizer that gguf has no name for is refused
 * here, and not by the task that writes the file, hours later. */
#include <string.h>

#include "common/alloc.h"
#include "formats/output.h"
#include "server/engine_model_source.h"
#include "server/engine_submit.h"

#define TEXT_BYTES_MAX ((size_t)1 << 28)

static char *read_text(void *ctx, const char *file, size_t *len, struct err *err)
{
	return source_read_optional(ctx, file, TEXT_BYTES_MAX, len, err);
}

static struct json *uploaded_files(struct submit *s)
{
	struct query *q = store_select(s->tx->db, SQL_MODEL_FILES, s->err, sql_i(s->model_pk));
	struct json *list = json_new_array();
	int more, rc = list ? 0 : -1;

	while (rc == 0 && (more = query_next(q, s->err)) != 0) {
		struct json *o = more == 1 ? json_new_object() : NULL;

		if (o && !query_is_null(q, 3))
			rc = json_set_string(o, "sha256", query_text(q, 3));
		rc = o && rc == 0 ? json_set_string(o, "name", query_text(q, 0)) : -1;
		rc |= json_push(list, o);
	}
	query_done(q);
	if (rc == 0)
		return list;
	json_free(list);
	if (s->err->code == ERR_NONE)
		err_set_nomem(s->err, "the model's files");
	return NULL;
}

/* Failures that may pass are the machine's; the others are what the user reads. */
static int check_format(struct submit *s, const struct output_format *f, struct source *source)
{
	const struct output_model m = { .config = &s->config };
	const struct output_source texts = { .text = read_text, .ctx = source };
	struct err why = ERR_INIT;

	if (output_check_texts(f, &m, &texts, &why) == 0)
		return 0;
	if (err_retryable(why.code)) {
		*s->err = why;
		return -1;
	}
	return problems_add(&s->problems, "%s: %s", f->name, why.text) == 0 ? 0
		: err_set_nomem(s->err, "the list of problems");
}

static int check_formats(struct submit *s, struct source *source)
{
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < s->recipe.format_count; i++)
		rc = check_format(s, output_format_find(s->recipe.formats[i]), source);
	return rc;
}

/* Formats with a codec carry small files as they are. */
static bool any_takes_texts(const struct recipe *recipe)
{
	bool any = false;

	for (size_t i = 0; i < recipe->format_count; i++)
		any |= !output_format_find(recipe->formats[i])->codec;
	return any;
}

int submit_check_texts(struct submit *s)
{
	struct json *files = NULL;
	struct source *source;
	int rc;

	if (s->recipe.kind != RECIPE_QUANTIZE || !any_takes_texts(&s->recipe))
		return 0;
	if (!s->model_path && !(files = uploaded_files(s)))
		return -1;
	source = s->model_path ? source_dir_open(s->model_path, s->err)
			       : source_blobs_open(s->tx->e->config.blobs, files, s->err);
	rc = source ? check_formats(s, source) : -1;
	if (source)
		source->close(source);
	json_free(files);
	return rc;
}
