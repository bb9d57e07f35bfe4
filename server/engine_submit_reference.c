/* The model that an evaluate job compares with: its row, its files as they are now, and the digests of both
 * tokenizers. Whether the two can be compared is the plan's to say (plan_reference.c). */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "server/engine_submit.h"

/* Digest of the model's tokenizer.json, "" when it has none; with a folder, every file is looked at again. */
static int read_files(struct submit *s, int64_t model, const char *folder, char tokenizer[DIGEST_HEX])
{
	struct query *q = store_select(s->tx->db, SQL_MODEL_FILES, s->err, sql_i(model));
	int more = 0, rc = 0;

	tokenizer[0] = '\0';
	while (rc == 0 && (more = query_next(q, s->err)) == 1) {
		if (folder)
			rc = submit_check_size(s, folder, query_text(q, 0), query_int(q, 2));
		if (strcmp(query_text(q, 0), "tokenizer.json") == 0)
			snprintf(tokenizer, DIGEST_HEX, "%s", query_text(q, 3));
	}
	query_done(q);
	return more < 0 ? -1 : rc;
}

/* The row; `path` is the caller's. 1, 0 when there is no such model, or -1. */
static int read_row(struct submit *s, char **path)
{
	struct query *q = store_select(s->tx->db, SQL_MODEL_PLAN, s->err, sql_t(s->recipe.reference));
	int found = query_next(q, s->err), rc = 0;

	if (found == 1) {
		s->reference_pk = query_int(q, 0);
		s->reference_name = mem_strdup(query_text(q, 2));
		*path = query_is_null(q, 3) ? NULL : mem_strdup(query_text(q, 3));
		if (!s->reference_name || (!query_is_null(q, 3) && !*path))
			rc = err_set_nomem(s->err, "the reference");
		else
			rc = model_config_parse(&s->reference_config, query_text(q, 5), strlen(query_text(q, 5)), NULL,
						s->err);
	}
	query_done(q);
	return rc != 0 ? -1 : found;
}

int submit_load_reference(struct submit *s)
{
	char *path = NULL;
	int found = read_row(s, &path), rc = found < 0 ? -1 : 0;

	if (found == 0 && problems_add(&s->problems, "\"reference\" names the model '%.80s', which there is not",
				       s->recipe.reference) != 0)
		rc = err_set_nomem(s->err, "the list of problems");
	if (found == 1)
		rc = read_files(s, s->reference_pk, path, s->reference_tokenizer) |
		     read_files(s, s->model_pk, NULL, s->tokenizer);
	if (found == 1 && rc == 0) {
		s->plan_request.tokenizer_sha256 = s->tokenizer;
		s->plan_request.reference = (struct plan_reference){ s->reference_name, &s->reference_config,
								     s->reference_tokenizer };
	}
	mem_free(path);
	return rc == 0 ? 0 : -1;
}
