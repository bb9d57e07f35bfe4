/* The tokenizer's ids: golden files, each part on small tokenizers, threads. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/file.h"
#include "common/json_scan.h"
#include "worker/model/tokenizer.h"

#define FILE_MAX ((size_t)1 << 28)

/* --- helpers -------------------------------------------------------------------------------- */

static char *read_file(const char *path, size_t *len)
{
	struct err err = ERR_INIT;
	char *text = file_read_all(path, FILE_MAX, len, &err);

	if (!text)
		fail_msg("%s", err.text);
	return text;
}

static struct tokenizer *load_text(const char *text, size_t len)
{
	struct err err = ERR_INIT;
	struct tokenizer *t = tokenizer_new(text, len, &err);

	if (!t)
		fail_msg("%s", err.text);
	return t;
}

static struct tokenizer *load_file(const char *path)
{
	size_t len;
	char *text = read_file(path, &len);
	struct tokenizer *t = load_text(text, len);

	mem_free(text);
	return t;
}

static void print_ids(struct buf *out, const struct token_list *ids)
{
	buf_reset(out);
	for (size_t i = 0; i < ids->count; i++)
		buf_printf(out, i ? " %d" : "%d", (int)ids->ids[i]);
}

static void check_bytes(const struct tokenizer *t, const char *text, size_t len, bool special,
			const char *want)
{
	struct token_list ids = { 0 };
	struct err err = ERR_INIT;
	struct buf got;

	buf_init(&got, FILE_MAX);
	if (tokenizer_encode(t, text, len, special, &ids, &err) != 0)
		fail_msg("'%s': %s", text, err.text);
	print_ids(&got, &ids);
	if (strcmp(buf_text(&got), want) != 0)
		fail_msg("'%s': ids %s, should be %s", text, buf_text(&got), want);
	buf_deinit(&got);
	token_list_deinit(&ids);
}

static void check(const struct tokenizer *t, const char *text, bool special, const char *want)
{
	check_bytes(t, text, strlen(text), special, want);
}

/* --- golden files ----------------------------------------------------------------------------- */

/* One line: {"text": .., "ids": [..], "ids_no_special": [..]}; the text may hold NULs. */
struct golden { char *text; size_t len; struct buf ids[2]; };

static enum json_token next(struct json_scan *scan)
{
	struct err err = ERR_INIT;
	enum json_token token;

	if (json_scan_next(scan, &token, &err) != 0)
		fail_msg("%s", err.text);
	return token;
}

static void read_ids(struct json_scan *scan, struct buf *out)
{
	buf_reset(out);
	assert_int_equal(next(scan), JT_ARRAY_BEGIN);
	while (next(scan) == JT_NUMBER)
		buf_printf(out, out->len ? " %.*s" : "%.*s", (int)scan->token_len, scan->token);
}

static void read_golden(struct golden *g, const char *row, size_t len)
{
	struct json_scan scan;

	json_scan_init(&scan, row, len, 8);
	assert_int_equal(next(&scan), JT_OBJECT_BEGIN);
	while (next(&scan) == JT_KEY) {
		if (scan.token_len == strlen("text")) {
			assert_int_equal(next(&scan), JT_STRING);
			g->text = json_scan_text(&scan, &g->len);
		} else {
			read_ids(&scan, &g->ids[scan.token_len == strlen("ids") ? 1 : 0]);
		}
	}
}

static void check_golden(const char *tokenizer, const char *golden)
{
	struct tokenizer *t = load_file(tokenizer);
	size_t len, lines = 0;
	char *text = read_file(golden, &len), *rest = text, *row;
	struct golden g = { 0 };

	for (int i = 0; i < 2; i++)
		buf_init(&g.ids[i], FILE_MAX);
	while ((row = strsep(&rest, "\n"))) {
		if (!*row)
			continue;
		read_golden(&g, row, strlen(row));
		check_bytes(t, g.text, g.len, true, buf_text(&g.ids[1]));
		check_bytes(t, g.text, g.len, false, buf_text(&g.ids[0]));
		mem_free(g.text);
		lines++;
	}
	assert_in_range(lines, 50, 100000);
	for (int i = 0; i < 2; i++)
		buf_deinit(&g.ids[i]);
	mem_free(text);
	tokenizer_free(t);
}

static void root_path(char *out, size_t size, const char *format, const char *name)
{
	const char *root = getenv("QUARRY_ROOT");
	char tail[512];

	snprintf(tail, sizeof(tail), format, name);
	snprintf(out, size, "%s/%s", root ? root : ".", tail);
}

static void golden_example(void **state)
{
	char tokenizer[1024], golden[1024];

	(void)state;
	root_path(tokenizer, sizeof(tokenizer), "examples/%s/tokenizer.json", "fable-tiny");
	root_path(golden, sizeof(golden), "tests/data/golden/%s/tokenizer.jsonl", "fable-tiny");
	check_golden(tokenizer, golden);
}

static void golden_fixture(const char *name)
{
	char tokenizer[1024], golden[1024];

	root_path(tokenizer, sizeof(tokenizer), "../shared/fixtures/models/%s/tokenizer.json", name);
	root_path(golden, sizeof(golden), "../shared/fixtures/golden/%s/tokenizer.jsonl", name);
	if (!file_exists(tokenizer) || !file_exists(golden)) {
		print_message("%s is not there\n", tokenizer);
		skip();
	}
	check_golden(tokenizer, golden);
}

static void golden_llama(void **state)
{
	(void)state;
	golden_fixture("fable-llama");
}

static void golden_qwen3(void **state)
{
	(void)state;
	golden_fixture("fable-qwen3");
}

/* --- small tokenizers ------------------------------------------------------------------------- */

#define BYTES_MODEL                                                                            \
	"\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4,"   \
	"\"\xC4\xA0\":5,\"\xC4\xA0" "a\":6,\"\xC3\x83\":7,\"\xC2\xA9\":8,\"\xC4\x8A\":9},"     \
	"\"merges\":[[\"a\",\"b\"],\"ab c\",[\"\xC4\xA0\",\"a\"]]}"
#define BYTE_LEVEL                                                                             \
	"\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"                \
	"\"trim_offsets\":true,\"use_regex\":true}"
#define PIECES_VOCAB                                                                           \
	"\"vocab\":{\"<unk>\":0,\"<s>\":1,\"<0x0A>\":2,\"\xE2\x96\x81\":3,\"a\":4,\"b\":5,"    \
	"\"\xE2\x96\x81" "a\":6,\"\xE2\x96\x81" "ab\":7,\"aa\":8,\"aaaa\":9},"
#define PIECES_MERGES                                                                          \
	"\"merges\":[\"\xE2\x96\x81 a\",\"\xE2\x96\x81" "a b\",[\"a\",\"a\"],[\"aa\",\"aa\"]]"
#define PIECES_MODEL                                                                           \
	"\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,"               \
	"\"byte_fallback\":true," PIECES_VOCAB PIECES_MERGES "}"
#define PIECES_NORMALIZER                                                                      \
	"\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":["                              \
	"{\"type\":\"Prepend\",\"prepend\":\"\xE2\x96\x81\"},"                                 \
	"{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xE2\x96\x81\"}]}"
#define TOKEN(id, content, word, left, right, norm)                                            \
	"{\"id\":" #id ",\"content\":\"" content "\",\"single_word\":" #word ",\"lstrip\":" #left  \
	",\"rstrip\":" #right ",\"normalized\":" #norm ",\"special\":false}"

static struct tokenizer *small(const char *json)
{
	return load_text(json, strlen(json));
}

static void byte_level_merges(void **state)
{
	struct tokenizer *t = small("{" BYTE_LEVEL "," BYTES_MODEL "}");

	(void)state;
	assert_int_equal(tokenizer_vocab(t), 10);
	check(t, "", true, "");
	check(t, "abc", true, "4");
	check(t, "aabcb", true, "0 4 1");
	check(t, "ab abc ac", true, "3 5 4 6 2");
	check(t, "b\xC3\xA9\n", true, "1 7 8 9");
	tokenizer_free(t);
}

static void whole_word_before_merges(void **state)
{
	struct tokenizer *plain = small("{" BYTE_LEVEL ",\"model\":{\"vocab\":{\"a\":0,\"b\":1,"
					"\"ab\":2},\"merges\":[]}}");
	struct tokenizer *whole = small("{" BYTE_LEVEL ",\"model\":{\"ignore_merges\":true,"
					"\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[]}}");

	(void)state;
	check(plain, "ab", true, "0 1");
	check(whole, "ab", true, "2");
	check(whole, "aba", true, "0 1 0");
	tokenizer_free(plain);
	tokenizer_free(whole);
}

static void pieces_with_byte_fallback(void **state)
{
	struct tokenizer *t = small("{" PIECES_NORMALIZER "," PIECES_MODEL "}");

	(void)state;
	check(t, "ab a", true, "7 6");
	check(t, "a\n", true, "6 2");
	check(t, "xyz", true, "3 0");
	check(t, "x\ny", true, "3 2 0");
	check(t, "aaaaaaa", true, "6 9 8");
	check(t, "  ", true, "3 3 3");
	tokenizer_free(t);
}

/* Merges that reach from one word into the next: the piece may not be cut between them. */
static void merges_across_words(void **state)
{
	struct tokenizer *t = small(
		"{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},"
		"\"content\":\"\xE2\x96\x81\"},\"model\":{\"vocab\":{\"\xE2\x96\x81\":0,\"a\":1,\"b\":2,"
		"\"b\xE2\x96\x81\":3,\"\xE2\x96\x81" "a\":4},\"merges\":[\"b \xE2\x96\x81\","
		"\"\xE2\x96\x81 a\"]}}");

	(void)state;
	check(t, "ab ab  ab a", true, "1 3 1 3 4 3 1");
	tokenizer_free(t);
}

/* A long word runs through the queue, not through the cache; pairs merge from the left. */
static void long_piece(void **state)
{
	enum { LEN = 100003 };
	struct tokenizer *t = small("{" PIECES_MODEL "}");
	struct token_list ids = { 0 };
	struct err err = ERR_INIT;
	char *text = mem_alloc(LEN, 1);

	(void)state;
	memset(text, 'a', LEN);
	assert_int_equal(tokenizer_encode(t, text, LEN, true, &ids, &err), 0);
	assert_int_equal(ids.count, LEN / 4 + 2);
	for (size_t i = 0; i < LEN / 4; i++)
		assert_int_equal(ids.ids[i], 9);
	assert_int_equal(ids.ids[LEN / 4], 8);
	assert_int_equal(ids.ids[LEN / 4 + 1], 4);
	token_list_deinit(&ids);
	mem_free(text);
	tokenizer_free(t);
}

static void template_around_the_text(void **state)
{
	struct tokenizer *t = small(
		"{" BYTE_LEVEL ",\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},"
		"{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
		"{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},{\"SpecialToken\":{\"id\":\"<e>\",\"type_id\":0}},"
		"{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{"
		"\"<s>\":{\"id\":\"<s>\",\"ids\":[11],\"tokens\":[\"<s>\"]},"
		"\"<e>\":{\"id\":\"<e>\",\"ids\":[12,20],\"tokens\":[\"x\",\"y\"]}}}]}," BYTES_MODEL "}");

	(void)state;
	assert_int_equal(tokenizer_vocab(t), 21);
	check(t, "abc b", true, "11 4 5 1 12 20 4 5 1");
	check(t, "abc b", false, "4 5 1 4 5 1");
	check(t, "", true, "11 12 20");
	check(t, "", false, "");
	tokenizer_free(t);
}

static void added_tokens_and_flags(void **state)
{
	struct tokenizer *t = small(
		"{\"added_tokens\":[" TOKEN(10, "<x>", false, true, true, false) ","
		TOKEN(11, "<x>y", false, false, false, false) "," TOKEN(12, "cc", true, false, false, false) ","
		TOKEN(99, "ac", false, false, false, false) "," TOKEN(0, "b", false, false, true, false) ","
		TOKEN(5, "", false, false, false, false) "]," BYTE_LEVEL "," BYTES_MODEL "}");

	(void)state;
	assert_int_equal(tokenizer_vocab(t), 14);
	check(t, "a \xE3\x80\x80<x>\n a", true, "0 10 0"); /* strips both sides */
	check(t, "<x>ya", true, "11 0");                    /* the longest */
	check(t, "cc", true, "12");
	check(t, "a cc c", true, "0 5 12 5 2");
	check(t, "ccc", true, "2 2 2");                     /* inside a word: not taken */
	check(t, "ac", true, "13");                         /* numbered on, not 99 */
	check(t, "b  a", true, "1 0");                      /* the vocabulary's id */
	tokenizer_free(t);
}

/* The vocabulary's ids have a hole, and numbering on meets the id of "b": the later token stays. */
static void two_added_tokens_with_one_id(void **state)
{
	struct tokenizer *t = small(
		"{\"added_tokens\":[" TOKEN(9, "b", false, false, false, false) ","
		TOKEN(9, "x", false, false, false, false) "," TOKEN(9, "y", false, false, false, false) "],"
		"\"model\":{\"vocab\":{\"a\":0,\"b\":3},\"merges\":[]}}");

	(void)state;
	assert_int_equal(tokenizer_vocab(t), 4);
	check(t, "abxyb", true, "0 3 2 3 3");
	tokenizer_free(t);
}

static void added_tokens_in_normalized_text(void **state)
{
	struct tokenizer *t = small(
		"{\"normalizer\":{\"type\":\"NFC\"},\"added_tokens\":["
		TOKEN(10, "e\xCC\x81", false, false, false, true) ","
		TOKEN(11, "o\xCC\x81", false, false, false, false) "]," BYTE_LEVEL "," BYTES_MODEL "}");

	(void)state;
	check(t, "a\xC3\xA9" "b", true, "0 10 1");
	check(t, "ae\xCC\x81" "b", true, "0 10 1");
	check(t, "o\xCC\x81", true, "11");
	check(t, "a\xC3\xB3" "b", true, "0 7 1");
	tokenizer_free(t);
}

static void appends_and_leaves_alone_on_error(void **state)
{
	struct tokenizer *t = small("{" BYTE_LEVEL "," BYTES_MODEL "}");
	struct token_list ids = { 0 };
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(tokenizer_encode(t, "ab", 2, true, &ids, &err), 0);
	assert_int_equal(tokenizer_encode(t, "c", 1, true, &ids, &err), 0);
	assert_int_equal(ids.count, 2);
	assert_int_equal(tokenizer_encode(t, "abcabc\xFF", 7, true, &ids, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	assert_non_null(strstr(err.text, "byte 6"));
	assert_int_equal(ids.count, 2);
	assert_int_equal(ids.ids[0], 3);
	assert_int_equal(ids.ids[1], 2);
	token_list_deinit(&ids);
	tokenizer_free(t);
}

/* --- threads ---------------------------------------------------------------------------------- */

enum { THREADS = 4, ROUNDS = 20 };

struct job { const struct tokenizer *t; const char *text, *want; bool same; };

static void *encode_often(void *arg)
{
	struct job *job = arg;
	struct buf got;

	buf_init(&got, FILE_MAX);
	job->same = true;
	for (int i = 0; i < ROUNDS; i++) {
		struct token_list ids = { 0 };

		if (tokenizer_encode(job->t, job->text, strlen(job->text), true, &ids, NULL) != 0)
			job->same = false;
		print_ids(&got, &ids);
		job->same = job->same && strcmp(buf_text(&got), job->want) == 0;
		token_list_deinit(&ids);
	}
	buf_deinit(&got);
	return NULL;
}

static void encode(const struct tokenizer *t, const char *text, struct buf *out)
{
	struct token_list ids = { 0 };
	struct err err = ERR_INIT;

	if (tokenizer_encode(t, text, strlen(text), true, &ids, &err) != 0)
		fail_msg("%s", err.text);
	print_ids(out, &ids);
	token_list_deinit(&ids);
}

static void threads_share_a_tokenizer(void **state)
{
	char path[1024];
	struct tokenizer *t;
	struct job jobs[THREADS];
	pthread_t threads[THREADS];
	struct buf want;
	size_t len;
	char *text;

	(void)state;
	root_path(path, sizeof(path), "examples/%s/tokenizer.json", "fable-tiny");
	t = load_file(path);
	root_path(path, sizeof(path), "examples/texts/%s", "evaluation.txt");
	text = read_file(path, &len);
	text[len < 20000 ? len : 20000] = '\0';
	while (len && ((unsigned char)text[strlen(text) - 1] & 0x80))
		text[strlen(text) - 1] = '\0';
	buf_init(&want, FILE_MAX);
	encode(t, text, &want);
	for (int i = 0; i < THREADS; i++) {
		jobs[i] = (struct job){ t, text, buf_text(&want), false };
		assert_int_equal(pthread_create(&threads[i], NULL, encode_often, &jobs[i]), 0);
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		assert_true(jobs[i].same);
	}
	buf_deinit(&want);
	mem_free(text);
	tokenizer_free(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_example),
		cmocka_unit_test(golden_llama),
		cmocka_unit_test(golden_qwen3),
		cmocka_unit_test(byte_level_merges),
		cmocka_unit_test(whole_word_before_merges),
		cmocka_unit_test(pieces_with_byte_fallback),
		cmocka_unit_test(merges_across_words),
		cmocka_unit_test(long_piece),
		cmocka_unit_test(template_around_the_text),
		cmocka_unit_test(added_tokens_and_flags),
		cmocka_unit_test(two_added_tokens_with_one_id),
		cmocka_unit_test(added_tokens_in_normalized_text),
		cmocka_unit_test(appends_and_leaves_alone_on_error),
		cmocka_unit_test(threads_share_a_tokenizer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
