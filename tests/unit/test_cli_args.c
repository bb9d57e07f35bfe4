/* The command line: options, recipe options, suggestions; ids and paths that come from elsewhere. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "cli/args.h"
#include "cli/fetch.h"
#include "cli/follow.h"
#include "cli/upload.h"
#include "common/alloc.h"
#include "common/recipe.h"

static const struct arg_spec own[] = {
	{ "output", "OUT_DIR", "" },
	{ "text", "FILE", "" },
	{ "json", NULL, "" },
	{ NULL, NULL, NULL },
};
static const struct command command = { .name = "try", .usage = "MODEL", .options = own, .connects = true,
					.recipe = true, .least = 1, .most = 1 };

enum { WORDS_MAX = 16 };

/* Parses a NULL-ended list of words. */
static int parse(struct args *a, struct err *err, ...)
{
	char *words[WORDS_MAX];
	int count = 0;
	va_list list;

	va_start(list, err);
	for (char *w; count < WORDS_MAX && (w = va_arg(list, char *));)
		words[count++] = w;
	va_end(list);
	return args_parse(a, &command, count, words, err);
}

static void options_and_values(void **state)
{
	struct err err = ERR_INIT;
	struct args a;
	int64_t n;

	(void)state;
	assert_int_equal(parse(&a, &err, "model", "-o", "out", "--text=a=b", "--text", "c", "--json", "--bits", "2",
			       "--symmetric", "--group-size=-1", NULL), 0);
	assert_string_equal(a.positional[0], "model");
	assert_string_equal(args_get(&a, "output", ""), "out");
	assert_string_equal(args_get(&a, "text", ""), "c");
	assert_string_equal(args_nth(&a, "text", 0), "a=b");
	assert_null(args_nth(&a, "text", 2));
	assert_true(args_has(&a, "json"));
	assert_int_equal(json_get_int(a.recipe, "bits", 0), 2);
	assert_int_equal(json_get_int(a.recipe, "group_size", 0), -1);
	assert_true(json_get_bool(a.recipe, "symmetric", false));
	assert_int_equal(args_int(&a, "bits", 1, 8, 4, &n, &err), 0);
	assert_int_equal(n, 2);
	assert_int_equal(args_int(&a, "bits", 3, 8, 4, &n, &err), -1);
	args_deinit(&a);
}

static void double_dash_ends_options(void **state)
{
	struct err err = ERR_INIT;
	struct args a;

	(void)state;
	assert_int_equal(parse(&a, &err, "--", "--json", NULL), 0);
	assert_string_equal(a.positional[0], "--json");
	assert_false(args_has(&a, "json"));
	args_deinit(&a);
}

static void expect_refused(const char *word, const char *value, const char *sentence)
{
	struct err err = ERR_INIT;
	struct args a;

	assert_int_equal(parse(&a, &err, "model", word, value, NULL), -1);
	assert_string_equal(err.text, sentence);
	args_deinit(&a);
}

static void refusals(void **state)
{
	(void)state;
	expect_refused("--bit", "2", "unknown option --bit; did you mean --bits?");
	expect_refused("--grup-size", "2", "unknown option --grup-size; did you mean --group-size?");
	expect_refused("--sever=x", NULL, "unknown option --sever; did you mean --server?");
	expect_refused("--qqqqqqqq", NULL, "unknown option --qqqqqqqq; 'quarry try --help' lists them");
	expect_refused("-x", NULL, "unknown option -x; 'quarry try --help' lists them");
	expect_refused("--bits", NULL, "--bits needs a value: 1..8");
	expect_refused("--json=yes", NULL, "--json takes no value");
	expect_refused("more", NULL, "'more' is one argument too many; usage: quarry try MODEL");
}

static void help_wins(void **state)
{
	struct err err = ERR_INIT;
	struct args a;

	(void)state;
	assert_int_equal(parse(&a, &err, "--bits", "2", "--help", "--nonsense", NULL), 0);
	assert_true(a.help);
	args_deinit(&a);
}

static void too_many_words(void **state)
{
	struct err err = ERR_INIT;
	struct args a;
	char *words[2 * ARGS_VALUES_MAX];

	(void)state;
	for (int i = 0; i < 2 * ARGS_VALUES_MAX; i++)
		words[i] = "--json";
	assert_int_equal(args_parse(&a, &command, 2 * ARGS_VALUES_MAX, words, &err), -1);
	assert_string_equal(err.text, "more than 128 options given");
	args_deinit(&a);
	for (int i = 0; i < 2 * ARGS_VALUES_MAX; i++)
		words[i] = "model";
	assert_int_equal(args_parse(&a, &command, 2 * ARGS_VALUES_MAX, words, &err), -1);
	assert_string_equal(err.text, "more than 128 arguments given");
	args_deinit(&a);
}

/* Every option that --help lists is one that recipes have. */
static void recipe_table_is_the_recipe(void **state)
{
	struct json *object = json_new_object();

	(void)state;
	for (const struct arg_spec *s = recipe_specs; s->name; s++) {
		struct err err = ERR_INIT;
		int rc = recipe_option(object, s->name, s->value ? "no such value" : NULL, &err);

		if (rc == 1)
			fail_msg("--%s is listed and unknown to recipe_option()", s->name);
	}
	json_free(object);
}

static void out_of_memory(void **state)
{
	(void)state;
	for (uint64_t n = 1; n < 200; n++) {
		struct err err = ERR_INIT;
		struct args a;
		int rc;

		mem_fail_after(n);
		rc = parse(&a, &err, "model", "--bits", "2", "--override", "a:bits=3", NULL);
		mem_fail_after(0);
		args_deinit(&a);
		if (rc == 0) {
			assert_true(n > 3);
			return;
		}
		assert_int_equal(err.code, ERR_NOMEM);
	}
	fail_msg("parsing still fails after 200 allocations");
}

static void paths_of_a_server(void **state)
{
	static const char *const good[] = { "report.json", "dense/config.json", "a/b/c/d" };
	static const char *const bad[] = { "", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", ".hidden",
					   "a/.b", "a/b/c/d/e", "a b", "a\\b", "a\nb", "a/\xc3\xbc", "~" };

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		if (!fetch_path_is_safe(good[i]))
			fail_msg("'%s' should be accepted", good[i]);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (fetch_path_is_safe(bad[i]))
			fail_msg("'%s' should be refused", bad[i]);
}

static void ids_of_a_server(void **state)
{
	struct err err = ERR_INIT;
	char id[SERVER_ID], name[32];

	(void)state;
	assert_int_equal(copy_id("j_0aZ-9", "job", id, &err), 0);
	assert_string_equal(id, "j_0aZ-9");
	assert_int_equal(copy_id("", "job", id, &err), -1);
	assert_int_equal(copy_id("j/../x", "job", id, &err), -1);
	assert_int_equal(copy_id("j?x=1", "job", id, &err), -1);
	name_of_path("/a/my model/", "model", name, sizeof(name));
	assert_string_equal(name, "my_model");
	name_of_path("///", "model", name, sizeof(name));
	assert_string_equal(name, "model");
	name_of_path("/a/.hidden", "model", name, sizeof(name));
	assert_string_equal(name, "model");
}

static void progress_of_a_job(void **state)
{
	static const char text[] =
		"{\"state\":\"RUNNING\",\"progress\":0.425,\"eta_seconds\":31,\"tasks\":{\"total\":90,\"DONE\":38},"
		"\"kinds\":{\"capture\":{\"total\":24,\"DONE\":24},\"quantize\":{\"total\":6,\"DONE\":2}},"
		"\"layers\":[{\"layer\":1,\"modules\":[{\"name\":\"mlp.up\\u001b_proj\",\"relative_loss\":0.0312},"
		"{\"name\":\"b\",\"relative_loss\":null}]}]}";
	struct json *job = json_parse(text, sizeof(text) - 1, NULL);
	char line[256], tiny[8];

	(void)state;
	assert_non_null(job);
	progress_line(job, false, line, sizeof(line));
	assert_string_equal(line, " 42 %  38 of 90 tasks  quantize 2/6  31 s left  worst 1.mlp.up\\x1b_proj 3.1 %");
	progress_line(job, true, tiny, sizeof(tiny));
	assert_int_equal(strlen(tiny), sizeof(tiny) - 1);
	assert_false(job_is_final(job));
	json_free(job);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options_and_values),
		cmocka_unit_test(double_dash_ends_options),
		cmocka_unit_test(refusals),
		cmocka_unit_test(help_wins),
		cmocka_unit_test(too_many_words),
		cmocka_unit_test(recipe_table_is_the_recipe),
		cmocka_unit_test(out_of_memory),
		cmocka_unit_test(paths_of_a_server),
		cmocka_unit_test(ids_of_a_server),
		cmocka_unit_test(progress_of_a_job),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
