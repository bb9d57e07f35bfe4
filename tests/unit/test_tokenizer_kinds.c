/* Ids of every supported kind of tokenizer, as the `tokenizers` package gives them.
 *
 * tests/data/golden/tokenizer/kinds.jsonl holds them, one tokenizer a line:
 * tests/system/test_tokenizer_hf.py --record writes it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/file.h"
#include "common/json.h"
#include "worker/model/tokenizer.h"

#define FILE_MAX ((size_t)1 << 26)

static struct tokenizer *load(const struct json *kind)
{
	struct err err = ERR_INIT;
	char *text = json_print(json_get(kind, "tokenizer"), false);
	struct tokenizer *t;

	assert_non_null(text);
	t = tokenizer_new(text, strlen(text), &err);
	if (!t)
		fail_msg("%s: %s", json_get_string(kind, "name", "?"), err.text);
	mem_free(text);
	return t;
}

static void check_text(const struct tokenizer *t, const char *name, const char *text, bool special,
		       const struct json *want)
{
	struct token_list ids = { 0 };
	struct err err = ERR_INIT;
	const struct json *id = json_first(want);
	size_t i = 0;

	if (tokenizer_encode(t, text, strlen(text), special, &ids, &err) != 0)
		fail_msg("%s: '%s': %s", name, text, err.text);
	for (; id; id = json_next(id), i++) {
		if (i >= ids.count || ids.ids[i] != (int)json_number(id, -1))
			fail_msg("%s: '%s': id %zu of %zu is %d, should be %d", name, text, i, ids.count,
				 i < ids.count ? (int)ids.ids[i] : -1, (int)json_number(id, -1));
	}
	if (i != ids.count)
		fail_msg("%s: '%s': %zu ids, should be %zu", name, text, ids.count, i);
	token_list_deinit(&ids);
}

static size_t check_kind(const struct json *kind)
{
	const char *name = json_get_string(kind, "name", "?");
	const struct json *ids = json_first(json_get(kind, "ids"));
	const struct json *plain = json_first(json_get(kind, "ids_no_special"));
	struct tokenizer *t = load(kind);
	size_t texts = 0;

	for (const struct json *text = json_first(json_get(kind, "texts")); text; text = json_next(text)) {
		check_text(t, name, json_string(text, NULL), true, ids);
		check_text(t, name, json_string(text, NULL), false, plain);
		ids = json_next(ids);
		plain = json_next(plain);
		texts++;
	}
	tokenizer_free(t);
	return texts;
}

static void recorded_kinds(void **state)
{
	const char *root = getenv("QUARRY_ROOT");
	char path[1024], *text, *rest, *row;
	struct err err = ERR_INIT;
	size_t len, kinds = 0, texts = 0;

	(void)state;
	snprintf(path, sizeof(path), "%s/tests/data/golden/tokenizer/kinds.jsonl", root ? root : ".");
	text = file_read_all(path, FILE_MAX, &len, &err);
	if (!text)
		fail_msg("%s", err.text);
	for (rest = text; (row = strsep(&rest, "\n"));) {
		struct json *kind = *row ? json_parse(row, strlen(row), &err) : NULL;

		if (*row && !kind)
			fail_msg("%s", err.text);
		if (kind) {
			texts += check_kind(kind);
			kinds++;
		}
		json_free(kind);
	}
	assert_in_range(kinds, 60, 1000);
	assert_in_range(texts, 500, 100000);
	mem_free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(recorded_kinds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
