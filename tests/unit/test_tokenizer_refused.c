/* tokenizer.json that must be refused with a sentence that names the reason; hostile and damaged
 * files; every allocation failing once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "worker/model/tokenizer.h"

#define MODEL "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define VOCAB "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}"
#define TEMPLATE(single) "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":" single "," \
	"\"special_tokens\":{\"<s>\":{\"ids\":[5]},\"<t>\":{\"ids\":[-1]}}}"
#define PRE(pre) "{" MODEL ",\"pre_tokenizer\":" pre "}"
#define NORM(norm) "{" MODEL ",\"normalizer\":" norm "}"
#define POST(post) "{" MODEL "," post "}"
#define SPLIT(regex) PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex "\"}," \
	"\"behavior\":\"Isolated\",\"invert\":false}")
#define ADDED(tokens) "{" MODEL ",\"added_tokens\":[" tokens "]}"
#define FLAGS "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"special\":true"

struct refusal { const char *json; enum err_code code; const char *part; };

static const struct refusal refusals[] = {
	/* not a tokenizer at all */
	{ "", ERR_INVALID, "" },
	{ "[]", ERR_INVALID, "must be a JSON object" },
	{ "{}", ERR_INVALID, "'model'" },
	{ "{\"version\":\"2.0\"," MODEL "}", ERR_UNSUPPORTED, "'version'" },
	/* the model */
	{ "{\"model\":[]}", ERR_INVALID, "'model'" },
	{ "{\"model\":{\"type\":7}}", ERR_INVALID, "'type'" },
	{ "{\"model\":{\"type\":\"Unigram\"}}", ERR_UNSUPPORTED, "'Unigram'" },
	{ "{\"model\":{\"type\":\"BPE\",\"merges\":[]}}", ERR_INVALID, "'vocab'" },
	{ "{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", ERR_INVALID, "the id of 'a'" },
	{ "{\"model\":{\"vocab\":{\"a\":1.5},\"merges\":[]}}", ERR_INVALID, "the id of 'a'" },
	{ "{\"model\":{\"vocab\":{\"a\":\"1\"},\"merges\":[]}}", ERR_INVALID, "the id of 'a'" },
	{ "{\"model\":{\"vocab\":{\"a\":2147483647},\"merges\":[]}}", ERR_INVALID, "the id of 'a'" },
	{ "{\"model\":{\"vocab\":{\"a\":1,\"b\":1},\"merges\":[]}}", ERR_INVALID, "the id of 'b', 1" },
	{ "{\"model\":{" VOCAB "}}", ERR_INVALID, "'merges'" },
	{ "{\"model\":{" VOCAB ",\"merges\":[\"ab\"]}}", ERR_INVALID, "merge 0" },
	{ "{\"model\":{" VOCAB ",\"merges\":[\"a b\",\"a b c\"]}}", ERR_INVALID, "merge 1" },
	{ "{\"model\":{" VOCAB ",\"merges\":[[\"a\"]]}}", ERR_INVALID, "merge 0" },
	{ "{\"model\":{" VOCAB ",\"merges\":[[\"a\",1]]}}", ERR_INVALID, "merge 0" },
	{ "{\"model\":{" VOCAB ",\"merges\":[\"b a\"]}}", ERR_INVALID, "merge 0 makes 'ba'" },
	{ "{\"model\":{" VOCAB ",\"merges\":[\"a x\"]}}", ERR_INVALID, "merge 0 makes 'ax'" },
	{ "{\"model\":{" VOCAB ",\"merges\":[],\"dropout\":0.1}}", ERR_UNSUPPORTED, "'dropout'" },
	{ "{\"model\":{" VOCAB ",\"merges\":[],\"end_of_word_suffix\":\"</w>\"}}", ERR_UNSUPPORTED,
	  "'end_of_word_suffix'" },
	{ "{\"model\":{" VOCAB ",\"merges\":[],\"continuing_subword_prefix\":\"##\"}}", ERR_UNSUPPORTED,
	  "'continuing_subword_prefix'" },
	{ "{\"model\":{" VOCAB ",\"merges\":[],\"byte_fallback\":1}}", ERR_INVALID, "'byte_fallback'" },
	{ "{\"model\":{" VOCAB ",\"merges\":[],\"fuse_unk\":\"no\"}}", ERR_INVALID, "'fuse_unk'" },
	{ "{\"model\":{" VOCAB ",\"merges\":[],\"ignore_merges\":0}}", ERR_INVALID, "'ignore_merges'" },
	{ "{\"model\":{" VOCAB ",\"merges\":[],\"unk_token\":3}}", ERR_INVALID, "'unk_token'" },
	/* the normalizer */
	{ NORM("\"NFC\""), ERR_INVALID, "normalizer" },
	{ NORM("{\"type\":\"Lowercase\"}"), ERR_UNSUPPORTED, "'Lowercase'" },
	{ NORM("{\"type\":\"Sequence\"}"), ERR_INVALID, "'normalizers'" },
	{ NORM("{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Strip\"}]}"), ERR_UNSUPPORTED, "'Strip'" },
	{ NORM("{\"type\":\"Prepend\"}"), ERR_INVALID, "prepend" },
	{ NORM("{\"type\":\"Replace\",\"content\":\"x\"}"), ERR_INVALID, "'pattern'" },
	{ NORM("{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"x\"}"), ERR_INVALID,
	  "'pattern'" },
	{ NORM("{\"type\":\"Replace\",\"pattern\":{\"String\":\"x\"}}"), ERR_INVALID, "content" },
	/* added tokens */
	{ "{" MODEL ",\"added_tokens\":{}}", ERR_INVALID, "'added_tokens'" },
	{ ADDED("7"), ERR_INVALID, "added_tokens" },
	{ ADDED("{\"content\":\"x\"," FLAGS ",\"normalized\":true}"), ERR_INVALID, "id" },
	{ ADDED("{\"id\":3," FLAGS ",\"normalized\":true}"), ERR_INVALID, "content" },
	{ ADDED("{\"id\":3,\"content\":\"x\"," FLAGS "}"), ERR_INVALID, "'normalized'" },
	{ ADDED("{\"id\":3,\"content\":\"x\",\"normalized\":true}"), ERR_INVALID, "'single_word'" },
	/* the pre-tokenizer */
	{ PRE("{\"type\":\"Whitespace\"}"), ERR_UNSUPPORTED, "'Whitespace'" },
	{ PRE("{\"type\":\"Sequence\",\"pretokenizers\":{}}"), ERR_INVALID, "'pretokenizers'" },
	{ PRE("{\"type\":\"Split\"}"), ERR_INVALID, "behavior" },
	{ PRE("{\"type\":\"Split\",\"behavior\":\"Cut\"}"), ERR_UNSUPPORTED, "'Cut'" },
	{ PRE("{\"type\":\"Split\",\"behavior\":\"Removed\"}"), ERR_INVALID, "'invert'" },
	{ PRE("{\"type\":\"Split\",\"behavior\":\"Removed\",\"invert\":true}"), ERR_INVALID, "'pattern'" },
	{ PRE("{\"type\":\"Digits\"}"), ERR_INVALID, "'individual_digits'" },
	{ PRE("{\"type\":\"ByteLevel\"}"), ERR_INVALID, "'add_prefix_space'" },
	{ PRE("{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":1}"), ERR_INVALID,
	  "'use_regex'" },
	{ PRE("{\"type\":\"Metaspace\"}"), ERR_INVALID, "replacement" },
	{ PRE("{\"type\":\"Metaspace\",\"replacement\":\"\"}"), ERR_INVALID, "'replacement'" },
	{ PRE("{\"type\":\"Metaspace\",\"replacement\":\"__\"}"), ERR_INVALID, "'replacement'" },
	{ PRE("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}"), ERR_UNSUPPORTED,
	  "'last'" },
	{ PRE("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"add_prefix_space\":false}"), ERR_INVALID,
	  "never" },
	{ PRE("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"split\":1}"), ERR_INVALID, "'split'" },
	{ PRE("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\",\"add_prefix_space\":true},"
	      "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\"}]}"),
	  ERR_UNSUPPORTED, "\"first\"" },
	/* the post-processor */
	{ POST("\"post_processor\":{\"type\":\"BertProcessing\"}"), ERR_UNSUPPORTED, "'BertProcessing'" },
	{ POST("\"post_processor\":{\"type\":\"Sequence\"}"), ERR_INVALID, "'processors'" },
	{ POST("\"post_processor\":{\"type\":\"TemplateProcessing\"}"), ERR_INVALID, "'single'" },
	{ POST(TEMPLATE("[]")), ERR_UNSUPPORTED, "empty template" },
	{ POST(TEMPLATE("[{\"Sequence\":{\"id\":\"B\"}}]")), ERR_INVALID, "Sequence A" },
	{ POST(TEMPLATE("[{\"SpecialToken\":{}}]")), ERR_INVALID, "SpecialToken" },
	{ POST(TEMPLATE("[{\"SpecialToken\":{\"id\":\"<u>\"}}]")), ERR_INVALID, "'<u>'" },
	{ POST(TEMPLATE("[{\"SpecialToken\":{\"id\":\"<t>\"}}]")), ERR_INVALID, "'<t>'" },
	{ POST("\"post_processor\":{\"type\":\"Sequence\",\"processors\":["
	       "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}}]},"
	       "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}}]}]}"),
	  ERR_UNSUPPORTED, "more than one" },
	/* regular expressions */
	{ SPLIT("a\\\\bc"), ERR_UNSUPPORTED, "at byte 2" },
	{ SPLIT("(a"), ERR_UNSUPPORTED, "without its end" },
	{ SPLIT("a)"), ERR_UNSUPPORTED, "closing parenthesis" },
	{ SPLIT("[a"), ERR_UNSUPPORTED, "without its end" },
	{ SPLIT("[]a]"), ERR_UNSUPPORTED, "begins with ]" },
	{ SPLIT("[z-a]"), ERR_UNSUPPORTED, "range" },
	{ SPLIT("[a-\\\\d]"), ERR_UNSUPPORTED, "range" },
	{ SPLIT("[\\\\d-z]"), ERR_UNSUPPORTED, "range" },
	{ SPLIT("[a[b]]"), ERR_UNSUPPORTED, "inside a class" },
	{ SPLIT("[a&&b]"), ERR_UNSUPPORTED, "intersection" },
	{ SPLIT("[\\\\P{L}]"), ERR_UNSUPPORTED, "negated set" },
	{ SPLIT("\\\\p{Greek}"), ERR_UNSUPPORTED, "property" },
	{ SPLIT("\\\\p{L"), ERR_UNSUPPORTED, "property" },
	{ SPLIT("\\\\pL"), ERR_UNSUPPORTED, "property" },
	{ SPLIT("*a"), ERR_UNSUPPORTED, "repeat of nothing" },
	{ SPLIT("{2}"), ERR_UNSUPPORTED, "repeat of nothing" },
	{ SPLIT("a{3,1}"), ERR_UNSUPPORTED, "repeat count" },
	{ SPLIT("a{99999999999}"), ERR_UNSUPPORTED, "repeat count" },
	{ SPLIT("(?m:.)"), ERR_UNSUPPORTED, "kind of group" },
	{ SPLIT("(?i)a"), ERR_UNSUPPORTED, "kind of group" },
	{ SPLIT("(?<n>a)"), ERR_UNSUPPORTED, "kind of group" },
	{ SPLIT("(a)\\\\1"), ERR_UNSUPPORTED, "escape" },
	{ SPLIT("a\\\\"), ERR_UNSUPPORTED, "backslash" },
	{ SPLIT("\\\\x{110000}"), ERR_UNSUPPORTED, "character code" },
	{ SPLIT("\\\\u12"), ERR_UNSUPPORTED, "character code" },
	{ SPLIT("\\\\xE9"), ERR_UNSUPPORTED, "byte above 7F" },
	{ SPLIT("(?i:\xC3\xA9)"), ERR_UNSUPPORTED, "beyond ASCII" },
	{ SPLIT("(?i:[\xC3\xA9])"), ERR_UNSUPPORTED, "beyond ASCII" },
	{ SPLIT("(?i:ss)"), ERR_UNSUPPORTED, "ligature" },
	{ SPLIT("(?i:(?:F)i)"), ERR_UNSUPPORTED, "ligature" },
	{ SPLIT("(?i:[^a])"), ERR_UNSUPPORTED, "negated class" },
	{ SPLIT("(?i:\\\\p{L})"), ERR_UNSUPPORTED, "set of characters" },
	{ SPLIT("(?<=a+)b"), ERR_UNSUPPORTED, "regular expression" },
};

static void refuses(const char *json, size_t len, enum err_code code, const char *part)
{
	struct err err = ERR_INIT;
	struct tokenizer *t = tokenizer_new(json, len, &err);

	if (t) {
		tokenizer_free(t);
		fail_msg("accepted: %.300s", json);
	}
	if (err.code != code || !strstr(err.text, part))
		fail_msg("%.300s: '%s' (%s), should hold '%s' (%s)", json, err.text, err_name(err.code), part,
			 err_name(code));
}

static void refused_by_name(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++)
		refuses(refusals[i].json, strlen(refusals[i].json), refusals[i].code, refusals[i].part);
}

/* Accepts what the table refuses once the reason is taken away: the table fails for its reason. */
static void accepts_the_plain_forms(void **state)
{
	static const char *const plain[] = {
		"{" MODEL "}",
		"{\"version\":\"1.0\",\"truncation\":{},\"padding\":{},\"decoder\":{\"type\":\"Any\"}," MODEL "}",
		"{\"model\":{" VOCAB ",\"merges\":[],\"dropout\":null,\"end_of_word_suffix\":\"\"}}",
		"{\"model\":{" VOCAB ",\"merges\":[],\"dropout\":0,\"unk_token\":\"a\"}}",
		NORM("null"), NORM("{\"type\":\"Sequence\",\"normalizers\":[]}"),
		NORM("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a+\"},\"content\":\"b\"}"),
		PRE("null"), PRE("{\"type\":\"Sequence\",\"pretokenizers\":[]}"),
		PRE("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\",\"split\":null}"),
		POST(TEMPLATE("[{\"Sequence\":{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"<s>\"}}]")),
		ADDED("{\"id\":3,\"content\":\"x\"," FLAGS ",\"normalized\":true}"),
		SPLIT("(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}]?\\\\p{L}++|a{2,3}+|{|\\\\s+(?!\\\\S)|(?<=a|b)c"),
	};

	(void)state;
	for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) {
		struct err err = ERR_INIT;
		struct tokenizer *t = tokenizer_new(plain[i], strlen(plain[i]), &err);

		if (!t)
			fail_msg("%s: %s", plain[i], err.text);
		tokenizer_free(t);
	}
}

static void fill(struct buf *b, const char *text, int times)
{
	for (int i = 0; i < times; i++)
		buf_puts(b, text);
}

/* "{head} inner * n {tail}" must be refused. */
static void refuses_many(const char *head, const char *inner, int times, const char *tail,
			 const char *part)
{
	struct buf b;

	buf_init(&b, (size_t)1 << 24);
	buf_puts(&b, head);
	fill(&b, inner, times);
	buf_puts(&b, tail);
	refuses(buf_text(&b), b.len, ERR_UNSUPPORTED, part);
	buf_deinit(&b);
}

static void bounded(void **state)
{
	(void)state;
	refuses_many("{" MODEL ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[", "{\"type\":\"NFC\"},",
		     32, "{\"type\":\"NFC\"}]}}", "more than");
	refuses_many("{" MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[",
		     "{\"type\":\"Digits\",\"individual_digits\":true},", 32,
		     "{\"type\":\"Digits\",\"individual_digits\":true}]}}", "more than");
	refuses_many("{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\","
		     "\"invert\":false,\"pattern\":{\"Regex\":\"", "(", 100, "\"}}}", "nesting");
	refuses_many("{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\","
		     "\"invert\":false,\"pattern\":{\"Regex\":\"", "a", 70000, "\"}}}", "bytes");
	refuses_many("{" MODEL ",\"added_tokens\":[{\"id\":1,\"normalized\":false," FLAGS ",\"content\":\"", "x",
		     5000, "\"}]}", "bytes");
}

static void two_tokens_with_one_normal_form(void **state)
{
	static const char json[] = "{" MODEL ",\"normalizer\":{\"type\":\"NFC\"},\"added_tokens\":["
		"{\"id\":3,\"content\":\"\xC3\xA9\",\"normalized\":true," FLAGS "},"
		"{\"id\":4,\"content\":\"e\xCC\x81\",\"normalized\":true," FLAGS "}]}";

	(void)state;
	refuses(json, sizeof(json) - 1, ERR_UNSUPPORTED, "ids 3 and 4");
}

/* --- texts that cannot be encoded ---------------------------------------------------------- */

static void fails_to_encode(const char *json, const char *text, size_t len, enum err_code code,
			    const char *part)
{
	struct err err = ERR_INIT;
	struct token_list ids = { 0 };
	struct tokenizer *t = tokenizer_new(json, strlen(json), &err);

	if (!t)
		fail_msg("%s", err.text);
	assert_int_equal(tokenizer_encode(t, text, len, true, &ids, &err), -1);
	assert_int_equal(ids.count, 0);
	if (err.code != code || !strstr(err.text, part))
		fail_msg("'%s' (%s), should hold '%s' (%s)", err.text, err_name(err.code), part,
			 err_name(code));
	token_list_deinit(&ids);
	tokenizer_free(t);
}

static void bad_utf8(void **state)
{
	static const struct { const char *text; const char *at; } texts[] = {
		{ "\x80", "byte 0" }, { "ab\xC3", "byte 2" }, { "a\xC0\xAF", "byte 1" },
		{ "\xED\xA0\x80", "byte 0" }, { "abc\xF4\x90\x80\x80", "byte 3" }, { "\xE2\x82", "byte 0" },
		{ "\xF0\x9F\x98\x80\xFF", "byte 4" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		fails_to_encode("{" MODEL "}", texts[i].text, strlen(texts[i].text), ERR_INVALID, texts[i].at);
}

/* Refused by its length, before a byte is read. */
static void text_too_long(void **state)
{
	(void)state;
	fails_to_encode("{" MODEL "}", "a", ((size_t)256 << 20) + 1, ERR_TOO_LARGE, "268435456 bytes");
}

static void unknown_token_missing(void **state)
{
	(void)state;
	fails_to_encode("{\"model\":{" VOCAB ",\"merges\":[],\"unk_token\":\"<unk>\"}}", "axb", 3, ERR_REFUSED,
			"unk_token");
}

/* A pattern that searches exponentially ends in an error. */
static void endless_pattern(void **state)
{
	char text[64];

	(void)state;
	memset(text, 'a', sizeof(text));
	fails_to_encode(SPLIT("(?:(?:a|a)(?:a|a)?)+[b-d]"), text, sizeof(text), ERR_REFUSED, "too many steps");
}

/* --- damaged files and failing allocations ------------------------------------------------- */

/* Every kind of part, small. */
static const char everything[] =
	"{\"version\":\"1.0\",\"added_tokens\":["
	"{\"id\":7,\"content\":\"<s>\",\"normalized\":false," FLAGS "},"
	"{\"id\":8,\"content\":\"e\xCC\x81\",\"normalized\":true,\"single_word\":true,\"lstrip\":true,"
	"\"rstrip\":true,\"special\":false}],"
	"\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},"
	"{\"type\":\"Prepend\",\"prepend\":\"_\"},"
	"{\"type\":\"Replace\",\"pattern\":{\"String\":\"  \"},\"content\":\" \"},"
	"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"x{1,3}+|y\"},\"content\":\"\"},{\"type\":\"NFKD\"}]},"
	"\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
	"{\"Regex\":\"(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\s+(?!\\\\S)\"},"
	"\"behavior\":\"MergedWithNext\",\"invert\":false},{\"type\":\"Digits\",\"individual_digits\":true},"
	"{\"type\":\"Metaspace\",\"replacement\":\"-\",\"prepend_scheme\":\"always\",\"split\":true},"
	"{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}]},"
	"\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"TemplateProcessing\","
	"\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},"
	"{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[7]}}},"
	"{\"type\":\"ByteLevel\"}]},\"model\":{\"type\":\"BPE\",\"unk_token\":\"?\",\"fuse_unk\":true,"
	"\"byte_fallback\":true,\"ignore_merges\":true,\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"?\":3,\"_\":4,"
	"\"\xC4\xA0\":5,\"<0xC3>\":6},\"merges\":[\"a b\"]}}";
static const char sample[] =
	"ab 12 <s> cafe\xCC\x81 e\xCC\x81 \xC3\xA9 it's  xxx\xE3\x80\x80" "abababababababababab\n\xEA\xB0\x81"
	"abababababababababababababababababababababababababababababababababababababababababababababab";

/* Loads and, if that works, encodes; -1 when either fails. */
static int run(const char *json, size_t len, struct err *err)
{
	struct token_list ids = { 0 };
	struct tokenizer *t = tokenizer_new(json, len, err);
	int rc;

	if (!t)
		return -1;
	rc = tokenizer_encode(t, sample, sizeof(sample) - 1, true, &ids, err);
	token_list_deinit(&ids);
	tokenizer_free(t);
	return rc;
}

static void truncated_files(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(run(everything, sizeof(everything) - 1, &err), 0);
	for (size_t len = 0; len < sizeof(everything) - 1; len++) {
		char *copy = mem_strndup(everything, len);

		err_clear(&err);
		assert_int_equal(run(copy, len, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		mem_free(copy);
	}
}

static uint64_t next_random(uint64_t *seed)
{
	*seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return *seed >> 33;
}

/* Up to four edits: another byte, one byte less, a piece from elsewhere. */
static void mutate(char *text, size_t *len, uint64_t *seed)
{
	static const char bytes[] = "\"{}[]:,\\0123456789-+*?.()|^$abpLNsSdwux<>_ \x80\xC3\xFF";

	for (uint64_t edits = next_random(seed) % 4 + 1; edits; edits--) {
		size_t at = next_random(seed) % *len, from = next_random(seed) % *len;
		size_t span = next_random(seed) % 24;

		switch (next_random(seed) % 3) {
		case 0:
			text[at] = bytes[next_random(seed) % (sizeof(bytes) - 1)];
			break;
		case 1:
			memmove(text + at, text + at + 1, *len - at - 1);
			--*len;
			break;
		case 2:
			if (at + span < *len && from + span < *len)
				memmove(text + at, text + from, span);
			break;
		}
	}
}

/* Whatever a changed file does, it ends in ids or in a sentence. */
static void mutated_files(void **state)
{
	enum { ROUNDS = 20000 };
	uint64_t seed = 1;
	int refused = 0, loaded = 0;

	(void)state;
	for (int i = 0; i < ROUNDS; i++) {
		struct err err = ERR_INIT;
		size_t len = sizeof(everything) - 1;
		char *text = mem_alloc(len, 1);

		memcpy(text, everything, len);
		mutate(text, &len, &seed);
		if (run(text, len, &err) == 0) {
			loaded++;
		} else {
			refused++;
			assert_true(err.text[0] != '\0');
		}
		mem_free(text);
	}
	assert_in_range(loaded, ROUNDS / 50, ROUNDS);
	assert_in_range(refused, ROUNDS / 50, ROUNDS);
}

static void every_allocation_fails_once(void **state)
{
	int failures = 0;

	(void)state;
	for (uint64_t nth = 1;; nth++) {
		struct err err = ERR_INIT;
		uint64_t before = mem_fail_after(nth), used;
		int rc = run(everything, sizeof(everything) - 1, &err);

		used = mem_fail_after(0) - before;
		if (rc != 0) {
			failures++;
			if (err.code != ERR_NOMEM)
				fail_msg("allocation %d: %s (%s)", (int)nth, err.text, err_name(err.code));
		}
		if (used < nth)
			break;
	}
	assert_in_range(failures, 100, 1000000);
}

/* Long pieces, so that symbols, candidates and normalized text outgrow their first space. */
#define UNKNOWN "{\"model\":{\"type\":\"BPE\",\"unk_token\":\"?\",\"byte_fallback\":true," \
	"\"vocab\":{\"?\":0,\"a\":1,\"b\":2,\"c\":3,\"ab\":4,\"abc\":5,\"cab\":6,\"<0x0A>\":7}," \
	"\"merges\":[\"a b\",\"ab c\",\"c ab\"]}}"

struct long_text { const char *json, *unit; int times; const char *tail; };

static const struct long_text long_texts[] = {
	{ everything, sample, 1, "" },
	{ UNKNOWN, "a", 256, "\n" },
	{ UNKNOWN, "a", 256, "xa" },
	{ UNKNOWN, "a", 256, "xx" },
	{ UNKNOWN, "a", 256, "x" },
	{ UNKNOWN, "abc", 200, "" },
	{ NORM("{\"type\":\"NFC\"}"), "\xCC\x81\xCC\xA7", 300, "" },
	{ PRE("{\"type\":\"Digits\",\"individual_digits\":true}"), "1a", 100, "" },
};

/* 0 = the nth allocation was not reached. */
static int encode_failing(const struct tokenizer *t, const struct buf *text, uint64_t nth)
{
	struct token_list ids = { 0 };
	struct err err = ERR_INIT;
	uint64_t before;
	size_t count;
	int rc;

	assert_int_equal(tokenizer_encode(t, "ab", 2, false, &ids, &err), 0);
	count = ids.count;
	before = mem_fail_after(nth);
	rc = tokenizer_encode(t, buf_text(text), text->len, true, &ids, &err);
	before = mem_fail_after(0) - before;
	if (rc != 0) {
		assert_int_equal(err.code, ERR_NOMEM);
		assert_int_equal(ids.count, count);
	}
	token_list_deinit(&ids);
	return before >= nth;
}

/* The ids stay as they were, and the tokenizer works afterwards. */
static void failing_allocations_while_encoding(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(long_texts) / sizeof(long_texts[0]); i++) {
		const struct long_text *l = &long_texts[i];
		struct err err = ERR_INIT;
		struct tokenizer *t = tokenizer_new(l->json, strlen(l->json), &err);
		struct buf text;
		uint64_t nth = 1;

		if (!t)
			fail_msg("%s", err.text);
		buf_init(&text, (size_t)1 << 20);
		fill(&text, l->unit, l->times);
		buf_puts(&text, l->tail);
		while (encode_failing(t, &text, nth))
			nth++;
		assert_in_range(nth, 8, 10000);
		buf_deinit(&text);
		tokenizer_free(t);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(refused_by_name),
		cmocka_unit_test(accepts_the_plain_forms),
		cmocka_unit_test(bounded),
		cmocka_unit_test(two_tokens_with_one_normal_form),
		cmocka_unit_test(bad_utf8),
		cmocka_unit_test(text_too_long),
		cmocka_unit_test(unknown_token_missing),
		cmocka_unit_test(endless_pattern),
		cmocka_unit_test(truncated_files),
		cmocka_unit_test(mutated_files),
		cmocka_unit_test(every_allocation_fails_once),
		cmocka_unit_test(failing_allocations_while_encoding),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
