/* The route table: equal to api.yaml in both directions, and how paths match. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "server/routes.h"

enum { OPERATIONS_MAX = 128 };

struct operation { char path[128], method[8], role[32], query[64]; };

/* --- reading api.yaml: two-space indentation, the style this file is kept in ------------ */

struct api { struct operation ops[OPERATIONS_MAX]; size_t count; };

static size_t indent_of(const char *line)
{
	return strspn(line, " ");
}

static void upper(char *out, size_t cap, const char *text)
{
	size_t i = 0;

	for (; text[i] && text[i] != ':' && i + 1 < cap; i++)
		out[i] = (char)(text[i] >= 'a' && text[i] <= 'z' ? text[i] - 32 : text[i]);
	out[i] = '\0';
}

static void add_word(char *words, size_t cap, const char *word)
{
	if (*words)
		strncat(words, " ", cap - strlen(words) - 1);
	strncat(words, word, cap - strlen(words) - 1);
}

static bool is_method(const char *text)
{
	static const char *const names[] = { "get:", "post:", "put:", "delete:", "head:", "patch:",
	"options:" };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(text, names[i]) == 0)
			return true;
	return false;
}

static void take_line(struct api *api, const char *line, char path[128], char parameter[64])
{
	struct operation *op = api->count ? &api->ops[api->count - 1] : NULL;
	const char *text = line + indent_of(line);

	if (indent_of(line) == 2 && text[0] == '/') {
		snprintf(path, 128, "%.*s", (int)strlen(text) - 1, text);
	} else if (indent_of(line) == 4 && is_method(text)) {
		assert_true(api->count < OPERATIONS_MAX);
		op = &api->ops[api->count++];
		snprintf(op->path, sizeof(op->path), "%s", path);
		upper(op->method, sizeof(op->method), text);
	} else if (op && indent_of(line) == 6 && sscanf(text, "x-least-role: %31[^\n]", op->role) == 1) {
		;
	} else if (indent_of(line) == 8 && sscanf(text, "- name: %63s", parameter) == 1) {
		;
	} else if (op && indent_of(line) == 10 && strcmp(text, "in: query") == 0) {
		add_word(op->query, sizeof(op->query), parameter);
	} else if (op && strstr(text, "#/components/parameters/Cursor")) {
		add_word(op->query, sizeof(op->query), "cursor");
	} else if (op && strstr(text, "#/components/parameters/Limit")) {
		add_word(op->query, sizeof(op->query), "limit");
	}
}

static void read_api(struct api *api, const char *text)
{
	char path[128] = "", parameter[64] = "", line[512];
	const char *p = strstr(text, "\npaths:\n");

	*api = (struct api){ 0 };
	assert_non_null(p);
	for (p += 8; *p && strncmp(p, "components:", 11) != 0; p += *p == '\n') {
		size_t len = strcspn(p, "\n");

		snprintf(line, sizeof(line), "%.*s", (int)(len < sizeof(line) ? len : sizeof(line) - 1), p);
		take_line(api, line, path, parameter);
		p += len;
	}
}

/* --- comparing -------------------------------------------------------------------------------- */

/* "{path*}" is written "{path}" in OpenAPI. */
static bool same_path(const char *pattern, const char *path)
{
	for (; *pattern && *path; pattern++, path++) {
		if (*pattern == '*')
			pattern++;
		if (*pattern != *path)
			return false;
	}
	return *pattern == *path;
}

static const struct operation *find_operation(const struct api *api, const struct route *r)
{
	for (size_t i = 0; i < api->count; i++)
		if (same_path(r->pattern, api->ops[i].path) && strcmp(r->method, api->ops[i].method) == 0)
			return &api->ops[i];
	return NULL;
}

static bool has_route(const struct operation *op)
{
	const char *method = strcmp(op->method, "HEAD") == 0 ? "GET" : op->method;

	for (const struct route *r = routes; r->method; r++)
		if (same_path(r->pattern, op->path) && strcmp(r->method, method) == 0)
			return true;
	return false;
}

/* The first difference, or "". */
static void compare(const char *api_text, char out[256])
{
	static struct api api;

	*out = '\0';
	read_api(&api, api_text);
	for (const struct route *r = routes; r->method && !*out; r++) {
		const struct operation *op = find_operation(&api, r);

		if (!op)
			snprintf(out, 256, "api.yaml lacks %s %s", r->method, r->pattern);
		else if (strcmp(op->role, access_name(r->access)) != 0)
			snprintf(out, 256, "%s %s: x-least-role '%s', routes.c has '%s'", r->method,
				 r->pattern, op->role,
				 access_name(r->access));
		else if (strcmp(op->query, r->query) != 0)
			snprintf(out, 256, "%s %s: query '%s', routes.c has '%s'", r->method, r->pattern,
				 op->query, r->query);
	}
	for (size_t i = 0; i < api.count && !*out; i++)
		if (!has_route(&api.ops[i]))
			snprintf(out, 256, "routes.c lacks %s %s", api.ops[i].method, api.ops[i].path);
}

static char *api_text(void)
{
	struct err err = ERR_INIT;
	char *path = path_join(getenv("QUARRY_ROOT") ? getenv("QUARRY_ROOT") : ".", "api.yaml");
	size_t len;
	char *text = file_read_all(path, 1 << 20, &len, &err);

	assert_string_equal(err.text, "");
	mem_free(path);
	return text;
}

static void test_table_equals_api_yaml(void **state)
{
	char *text = api_text(), difference[256];

	(void)state;
	compare(text, difference);
	assert_string_equal(difference, "");
	mem_free(text);
}

/* Replaces the first `from` by `to` and tells what the comparison then says. */
static void planted(const char *from, const char *to, const char *expected)
{
	char *text = api_text(), difference[256];
	char *at = strstr(text, from), *changed;

	assert_non_null(at);
	changed = malloc(strlen(text) + strlen(to) + 1);
	sprintf(changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
	compare(changed, difference);
	assert_string_equal(difference, expected);
	free(changed);
	mem_free(text);
}

static void test_planted_differences_are_found(void **state)
{
	(void)state;
	planted("  /v1/stats:\n", "  /v1/statistics:\n", "api.yaml lacks GET /v1/stats");
	planted("  /v1/stats:\n    get:\n", "  /v1/stats:\n    put:\n", "api.yaml lacks GET /v1/stats");
	planted("\npaths:\n", "\npaths:\n  /v1/more:\n    get:\n      x-least-role: none\n",
		"routes.c lacks GET /v1/more");
	planted("x-least-role: submitter\n", "x-least-role: viewer\n",
		"POST /v1/jobs: x-least-role 'viewer', routes.c has 'submitter'");
	planted("- name: dry_run\n", "- name: dry\n", "POST /v1/jobs: query 'dry', routes.c has 'dry_run'");
}

static void test_operation_ids_are_unique(void **state)
{
	char *text = api_text();

	(void)state;
	for (const char *p = text; (p = strstr(p, "operationId: ")); p++) {
		size_t len = strcspn(p, "\n") + 1;

		for (const char *q = strstr(p + 1, "operationId: "); q; q = strstr(q + 1, "operationId: "))
			if (strncmp(p, q, len) == 0)
				fail_msg("twice: %.*s", (int)len, p);
	}
	mem_free(text);
}

/* --- matching ------------------------------------------------------------------------------------- */

static enum match find(const char *method, const char *path, struct captures *c, char allow[64])
{
	const struct route *route = NULL;

	return route_find(method, path, &route, c, allow);
}

static void test_paths_match(void **state)
{
	static const struct { const char *method, *path; enum match match; const char *first,
	*second; } rows[] = {
		{ "GET", "/v1/jobs/j_1", MATCH_FOUND, "j_1", "" },
		{ "HEAD", "/v1/jobs/j_1", MATCH_FOUND, "j_1", "" },
		{ "GET", "/v1/jobs/j%5F1", MATCH_FOUND, "j_1", "" },
		{ "GET", "/v1/jobs/j_1/files/dense/config.json", MATCH_FOUND, "j_1", "dense/config.json" },
		{ "GET", "/v1/jobs/j_1/files/dense%2Fconfig.json", MATCH_FOUND, "j_1", "dense/config.json" },
		{ "GET", "/v1/models/m_1/files/a%20b", MATCH_FOUND, "m_1", "a b" },
		{ "PUT", "/v1/uploads/u_1/parts/12", MATCH_FOUND, "u_1", "12" },
		{ "GET", "/", MATCH_FOUND, "", "" },
		{ "GET", "", MATCH_NONE, "", "" },
		{ "GET", "//", MATCH_NONE, "", "" },
		{ "GET", "/v1", MATCH_NONE, "", "" },
		{ "GET", "/v1/jobs/", MATCH_NONE, "", "" },
		{ "GET", "/v1/jobs/j_1/", MATCH_NONE, "", "" },
		{ "GET", "/v1/jobs/a%2Fb", MATCH_NONE, "", "" },
		{ "GET", "/v1/jobs/a%00b", MATCH_NONE, "", "" },
		{ "GET", "/v1/jobs/a%0Ab", MATCH_NONE, "", "" },
		{ "GET", "/v1/jobs/%ff", MATCH_NONE, "", "" },
		{ "GET", "/v1/jobs/%", MATCH_NONE, "", "" },
		{ "GET", "/v1/jobs/%4", MATCH_NONE, "", "" },
		{ "GET", "/v1/jobs/%zz", MATCH_NONE, "", "" },
		{ "GET", "/v1/jobs/j_1/files/", MATCH_NONE, "", "" },
		{ "POST", "/v1/jobs/j_1", MATCH_METHOD, "", "" },
		{ "get", "/v1/jobs/j_1", MATCH_METHOD, "", "" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct captures c;
		char allow[64];

		if (find(rows[i].method, rows[i].path, &c, allow) != rows[i].match)
			fail_msg("%s %s", rows[i].method, rows[i].path);
		if (rows[i].match == MATCH_FOUND) {
			assert_string_equal(c.first, rows[i].first);
			assert_string_equal(c.second, rows[i].second);
		}
	}
}

static void test_allow_lists_the_methods(void **state)
{
	struct captures c;
	char allow[64];

	(void)state;
	assert_int_equal(find("PATCH", "/v1/jobs", &c, allow), MATCH_METHOD);
	assert_string_equal(allow, "GET, HEAD, POST");
	assert_int_equal(find("PATCH", "/v1/jobs/j_1", &c, allow), MATCH_METHOD);
	assert_string_equal(allow, "GET, HEAD, DELETE");
	assert_int_equal(find("GET", "/v1/leases", &c, allow), MATCH_METHOD);
	assert_string_equal(allow, "POST");
}

static void test_long_parts_do_not_match(void **state)
{
	struct captures c;
	char allow[64], path[1024] = "/v1/jobs/";

	(void)state;
	memset(path + 9, 'a', 127);
	assert_int_equal(find("GET", path, &c, allow), MATCH_FOUND);
	memset(path + 9, 'a', 128);
	assert_int_equal(find("GET", path, &c, allow), MATCH_NONE);
	strcpy(path, "/v1/jobs/j/files/");
	memset(path + 17, 'a', 511);
	assert_int_equal(find("GET", path, &c, allow), MATCH_FOUND);
	memset(path + 17, 'a', 512);
	assert_int_equal(find("GET", path, &c, allow), MATCH_NONE);
}

/* --- roles --------------------------------------------------------------------------------------------- */

static void test_who_may(void **state)
{
	static const char *const table[ACCESS_COUNT] = { /* viewer submitter worker releaser admin */
		[ACCESS_PUBLIC] = "yyyyy", [ACCESS_VIEW] = "yy-yy", [ACCESS_SUBMIT] = "-y-yy",
		[ACCESS_WORK] = "--y-y", [ACCESS_BLOBS] = "-yyyy", [ACCESS_RELEASE] = "---yy",
	};

	(void)state;
	for (int access = 0; access < ACCESS_COUNT; access++)
		for (int role = 0; role < ROLE_COUNT; role++)
			if (access_allows((enum access)access,
					  (enum role)role) != (table[access][role] == 'y'))
				fail_msg("access %s, role %s", access_name((enum access)access),
					 role_name((enum role)role));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_table_equals_api_yaml),
		cmocka_unit_test(test_planted_differences_are_found),
		cmocka_unit_test(test_operation_ids_are_unique),
		cmocka_unit_test(test_paths_match),
		cmocka_unit_test(test_allow_lists_the_methods),
		cmocka_unit_test(test_long_parts_do_not_match),
		cmocka_unit_test(test_who_may),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
