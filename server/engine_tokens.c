/* Bearer tokens: random, stored as SHA-256 only, held in memory for cheap checks.
 *
 * On the first start one token per role is made, or those of a file ("role:token" a line) are taken; a file
 * given at a later start adds what is new. The subject, "<role>-<8 hex of the digest>", is the tenant. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "server/engine_internal.h"

enum { TOKEN_RANDOM_BYTES = 24, TOKEN_MIN = 8, TOKEN_MAX = 256, TOKENS_FILE_MAX = 1 << 20 };

static const char *const role_names[ROLE_COUNT] = {
	[ROLE_VIEWER] = "viewer", [ROLE_SUBMITTER] = "submitter", [ROLE_WORKER] = "worker",
	[ROLE_RELEASER] = "releaser", [ROLE_ADMIN] = "admin",
};

static int add_token(struct engine *e, enum role role, const char *token, struct err *err)
{
	char hex[DIGEST_HEX], subject[64];

	if (digest_of(token, strlen(token), hex) != 0)
		return err_set_nomem(err, "a digest");
	snprintf(subject, sizeof(subject), "%s-%.8s", role_names[role], hex);
	return store_exec(e->writer, SQL_TOKEN_ADD, err, sql_t(subject), sql_i(role), sql_t(hex),
			  sql_i(engine_now(e))) < 0 ? -1 : 0;
}

static int make_tokens(struct engine *e, void (*made)(void *ctx, enum role role, const char *token), void *ctx,
		       struct err *err)
{
	for (int role = 0; role < ROLE_COUNT; role++) {
		char token[2 * TOKEN_RANDOM_BYTES + 1];

		if (e->config.clock->random_hex(e->config.clock->ctx, token, TOKEN_RANDOM_BYTES) != 0)
			return err_set(err, ERR_INTERNAL, "the system gives no random bytes");
		if (add_token(e, (enum role)role, token, err) != 0)
			return -1;
		if (made)
			made(ctx, (enum role)role, token);
	}
	return 0;
}

/* "role:token"; empty lines and lines that start with '#' are skipped. */
static int take_line(struct engine *e, char *line, int number, struct err *err)
{
	char *colon = strchr(line, ':');
	size_t len;

	if (line[0] == '\0' || line[0] == '#')
		return 0;
	if (colon)
		*colon = '\0';
	len = colon ? strlen(colon + 1) : 0;
	for (int role = 0; colon && role < ROLE_COUNT; role++)
		if (strcmp(line, role_names[role]) == 0 && len >= TOKEN_MIN && len <= TOKEN_MAX)
			return add_token(e, (enum role)role, colon + 1, err);
	return err_set(err, ERR_INVALID,
		       "%s line %d must be role:token, the role one of viewer, submitter, worker, releaser, admin "
		       "and the token of %d to %d characters", e->config.tokens_file, number, TOKEN_MIN, TOKEN_MAX);
}

static int take_file(struct engine *e, struct err *err)
{
	size_t len;
	char *text = file_read_all(e->config.tokens_file, TOKENS_FILE_MAX, &len, err), *rest = text, *line;
	int rc = text ? 0 : -1;

	for (int number = 1; rc == 0 && (line = strsep(&rest, "\n")); number++) {
		line[strcspn(line, "\r")] = '\0';
		rc = take_line(e, line, number, err);
	}
	mem_free(text);
	return rc;
}

static int compare_tokens(const void *a, const void *b)
{
	return strcmp(((const struct token *)a)->sha256, ((const struct token *)b)->sha256);
}

static int load_all(struct engine *e, struct err *err)
{
	struct query *q;
	int64_t count = 0;
	int more;

	if (store_get_int(e->writer, SQL_TOKEN_COUNT, &count, err) < 0)
		return -1;
	e->tokens = mem_alloc((size_t)count, sizeof(*e->tokens));
	if (!e->tokens)
		return err_set_nomem(err, "the tokens");
	q = store_select(e->writer, SQL_TOKEN_LIST, err);
	while ((more = query_next(q, err)) == 1 && e->token_count < (size_t)count) {
		struct token *t = &e->tokens[e->token_count++];

		snprintf(t->subject, sizeof(t->subject), "%s", query_text(q, 0));
		t->role = (enum role)query_int(q, 1);
		snprintf(t->sha256, sizeof(t->sha256), "%s", query_text(q, 2));
	}
	query_done(q);
	qsort(e->tokens, e->token_count, sizeof(*e->tokens), compare_tokens);
	return more < 0 ? -1 : 0;
}

int tokens_load(struct engine *e, void (*made)(void *ctx, enum role role, const char *token), void *ctx,
		struct err *err)
{
	int64_t count = 0;
	int rc;

	if (store_get_int(e->writer, SQL_TOKEN_COUNT, &count, err) < 0 || store_begin(e->writer, err) != 0)
		return -1;
	if (e->config.tokens_file)
		rc = take_file(e, err);
	else
		rc = count == 0 ? make_tokens(e, made, ctx, err) : 0;
	if (rc == 0)
		rc = store_commit(e->writer, err);
	if (rc != 0) {
		store_rollback(e->writer);
		return -1;
	}
	return load_all(e, err);
}

int engine_authenticate(struct engine *e, const char *token, char subject[64], enum role *role, struct err *err)
{
	struct token key, *found;

	if (strlen(token) > TOKEN_MAX || digest_of(token, strlen(token), key.sha256) != 0)
		return err_set(err, ERR_UNAUTHORIZED, "the bearer token is not known here");
	found = bsearch(&key, e->tokens, e->token_count, sizeof(*e->tokens), compare_tokens);
	if (!found)
		return err_set(err, ERR_UNAUTHORIZED, "the bearer token is not known here");
	snprintf(subject, 64, "%s", found->subject);
	*role = found->role;
	return 0;
}
