/* safetensors: every way in which a file must be refused, what must be accepted, and the writer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/file.h"
#include "common/safetensors.h"

/* --- a file in memory --------------------------------------------------------- */

struct image { const unsigned char *bytes; size_t len; };

static int read_image(void *ctx, uint64_t offset, void *bytes, size_t len, struct err *err)
{
	const struct image *image = ctx;

	if (offset > image->len || len > image->len - offset)
		return err_set(err, ERR_IO, "read past the end");
	memcpy(bytes, image->bytes + offset, len);
	return 0;
}

static int read_broken(void *ctx, uint64_t offset, void *bytes, size_t len, struct err *err)
{
	(void)ctx, (void)bytes, (void)len;
	return err_set(err, ERR_IO, "broken at %llu", (unsigned long long)offset);
}

static int parse(const void *bytes, size_t len, struct st_header *h, struct err *err)
{
	struct image image = { .bytes = bytes, .len = len };

	return st_header_read(h, "x.safetensors", len, read_image, &image, err);
}

/* Length, text and `data_bytes` zeros; free with free(). */
static unsigned char *assemble(const char *text, size_t text_len, size_t data_bytes, size_t *len)
{
	unsigned char *bytes = calloc(1, 8 + text_len + data_bytes + 1);

	assert_non_null(bytes);
	for (int i = 0; i < 8; i++)
		bytes[i] = (unsigned char)((uint64_t)text_len >> 8 * i);
	memcpy(bytes + 8, text, text_len);
	*len = 8 + text_len + data_bytes;
	return bytes;
}

struct file_case { const char *text; size_t text_len, data_bytes; const char *says; };
#define CASE(text, data_bytes, says) { text, sizeof(text) - 1, data_bytes, says }
#define ENTRY(dtype, shape, offsets) \
	"{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

/* --- refused ------------------------------------------------------------------ */

static const struct file_case refused[] = {
	/* not a JSON object, or not strict JSON */
	CASE("", 0, "not valid JSON"),
	CASE("[]", 0, "must be a JSON object"),
	CASE("null", 0, "must be a JSON object"),
	CASE("\"x\"", 0, "must be a JSON object"),
	CASE("\xEF\xBB\xBF{}", 0, "not valid JSON"),
	CASE("{}\0", 0, "something follows"),
	CASE("{} {}", 0, "something follows"),
	CASE("{}\v", 0, "something follows"),
	CASE("{/**/}", 0, "not valid JSON"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "[0,4]") ",}", 4, "not valid JSON"),
	CASE("{\"a\":" ENTRY("F32", "[1,]", "[0,4]") "}", 4, "not valid JSON"),
	CASE("{\"a\":" ENTRY("F32", "[01]", "[0,4]") "}", 4, "leading zero"),
	CASE("{\"a\nb\":" ENTRY("F32", "[1]", "[0,4]") "}", 4, "control character"),
	CASE("{\"a\\ud800\":" ENTRY("F32", "[1]", "[0,4]") "}", 4, "bad escape"),
	CASE("{\"a\xff\":" ENTRY("F32", "[1]", "[0,4]") "}", 4, "not UTF-8"),
	CASE("{\"a\":{\"x\":1e999,\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "range of a "
	     "double"),
	CASE("{\"a\":{\"x\":[[[[,\"dtype\":\"F32\"}}", 4, "not valid JSON"),
	/* metadata */
	CASE("{\"__metadata__\":null}", 0, "__metadata__ must be an object"),
	CASE("{\"__metadata__\":[]}", 0, "__metadata__ must be an object"),
	CASE("{\"__metadata__\":{\"a\":1}}", 0, "values of __metadata__ must be strings"),
	CASE("{\"__metadata__\":{\"a\":null}}", 0, "values of __metadata__ must be strings"),
	CASE("{\"__metadata__\":{\"a\":{}}}", 0, "values of __metadata__ must be strings"),
	CASE("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ appears twice"),
	CASE("{\"__metadata__\":{},\"__m\\u0065tadata__\":{}}", 0, "__metadata__ appears twice"),
	CASE("{\"__metadata__\":{\"a\":\"1\",\"\\u0061\":\"2\"}}", 0, "holds \"a\" twice"),
	CASE("{\"__metadata__\":{\"a\":\"1\\u0000\"}}", 0, "NUL"),
	/* entries */
	CASE("{\"a\":1}", 0, "entry must be an object"),
	CASE("{\"a\":null}", 0, "entry must be an object"),
	CASE("{\"a\":[\"F32\",[1],[0,4]]}", 4, "entry must be an object"),
	CASE("{\"a\":{}}", 0, "lacks dtype, shape or data_offsets"),
	CASE("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "lacks dtype"),
	CASE("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "lacks dtype"),
	CASE("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "lacks dtype"),
	CASE("{\"a\":{\"Dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "lacks dtype"),
	CASE("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
	     "given once"),
	CASE("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"sh\\u0061pe\":[1],\"data_offsets\":[0,4]}}", 4,
	     "given once"),
	CASE("{\"a\":{\"data_offsets\":[0,4],\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
	     "given once"),
	/* dtype */
	CASE("{\"a\":" ENTRY("f32", "[1]", "[0,4]") "}", 4, "unknown dtype \"f32\""),
	CASE("{\"a\":" ENTRY("F33", "[1]", "[0,4]") "}", 4, "unknown dtype"),
	CASE("{\"a\":" ENTRY("", "[1]", "[0,4]") "}", 4, "unknown dtype"),
	CASE("{\"a\":" ENTRY("F32 ", "[1]", "[0,4]") "}", 4, "unknown dtype"),
	CASE("{\"a\":" ENTRY("F32\\u0000", "[1]", "[0,4]") "}", 4, "NUL"),
	CASE("{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype must be a string"),
	CASE("{\"a\":{\"dtype\":{\"F32\":null},\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype must be a "
	     "string"),
	/* numbers */
	CASE("{\"a\":" ENTRY("F32", "[1.0]", "[0,4]") "}", 4, "plain integers"),
	CASE("{\"a\":" ENTRY("F32", "[1e0]", "[0,4]") "}", 4, "plain integers"),
	CASE("{\"a\":" ENTRY("F32", "[-1]", "[0,4]") "}", 4, "plain integers"),
	CASE("{\"a\":" ENTRY("F32", "[-0]", "[0,0]") "}", 0, "plain integers"),
	CASE("{\"a\":" ENTRY("F32", "[\"1\"]", "[0,4]") "}", 4, "plain integers"),
	CASE("{\"a\":" ENTRY("F32", "[null]", "[0,4]") "}", 4, "plain integers"),
	CASE("{\"a\":" ENTRY("F32", "[[1]]", "[0,4]") "}", 4, "plain integers"),
	CASE("{\"a\":" ENTRY("F32", "[18446744073709551616]", "[0,4]") "}", 4, "plain integers"),
	CASE("{\"a\":" ENTRY("F32", "1", "[0,4]") "}", 4, "must be arrays"),
	CASE("{\"a\":" ENTRY("F32", "null", "[0,4]") "}", 4, "must be arrays"),
	CASE("{\"a\":" ENTRY("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "shape has more than 8 numbers"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "[0]") "}", 4, "two numbers, not 1"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "[]") "}", 4, "two numbers, not 0"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "[0,4,8]") "}", 4, "more than 2 numbers"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "[0,4.0]") "}", 4, "plain integers"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "{}") "}", 4, "must be arrays"),
	/* tiling */
	CASE("{\"a\":" ENTRY("F32", "[1]", "[4,8]") "}", 8, "begins at byte 4"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "[0,4]") ",\"b\":" ENTRY("F32", "[1]", "[8,12]") "}", 12,
	     "begins at byte 8"),
	CASE("{\"a\":" ENTRY("F32", "[2]", "[0,8]") ",\"b\":" ENTRY("F32", "[1]", "[4,8]") "}", 8, "begins "
	     "at byte 4"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "[0,4]") ",\"b\":" ENTRY("F32", "[1]", "[0,4]") "}", 4, "begins "
	     "at byte 0"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "[4,0]") "}", 4, "end before they begin"),
	CASE("{\"a\":" ENTRY("F32", "[0]", "[0,0]") ",\"b\":" ENTRY("F32", "[0]", "[4,4]") "}", 4, "begins "
	     "at byte 4"),
	/* sizes */
	CASE("{\"a\":" ENTRY("F32", "[2]", "[0,4]") "}", 4, "need 8 bytes, its data_offsets hold 4"),
	CASE("{\"a\":" ENTRY("F32", "[]", "[0,8]") "}", 8, "need 4 bytes"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "[0,0]") "}", 0, "need 4 bytes"),
	CASE("{\"a\":" ENTRY("U8", "[4294967296,4294967296,0]", "[0,0]") "}", 0, "product of its shape "
	     "overflows"),
	CASE("{\"a\":" ENTRY("F64", "[2305843009213693952]", "[0,0]") "}", 0, "size in bits overflows"),
	CASE("{\"a\":" ENTRY("F32", "[18446744073709551615]", "[0,0]") "}", 0, "size in bits overflows"),
	CASE("{\"a\":" ENTRY("F4", "[1]", "[0,1]") "}", 1, "4 bits are not whole bytes"),
	CASE("{\"a\":" ENTRY("F6_E2M3", "[3]", "[0,2]") "}", 2, "18 bits are not whole bytes"),
	/* the file's size */
	CASE("{\"a\":" ENTRY("F32", "[1]", "[0,4]") "}", 3, "truncated?"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "[0,4]") "}", 5, "something was appended?"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "[0,4]") "}", 0, "truncated?"),
	CASE("{}", 1, "something was appended?"),
	CASE("{\"__metadata__\":{}}", 1, "something was appended?"),
	CASE("{\"a\":" ENTRY("U8", "[18446744073709551615]", "[0,18446744073709551615]") "}", 4, "overflows"),
	CASE("{\"a\":" ENTRY("U8", "[2305843009213693951]", "[0,2305843009213693951]") "}", 4, "truncated?"),
	/* names */
	CASE("{\"a\":" ENTRY("F32", "[1]", "[0,4]") ",\"a\":" ENTRY("F32", "[1]", "[4,8]") "}", 8, "tensor "
	     "\"a\" appears twice"),
	CASE("{\"a\":" ENTRY("F32", "[1]", "[0,4]") ",\"\\u0061\":" ENTRY("F32", "[1]", "[4,8]") "}", 8,
	     "tensor \"a\" appears twice"),
	CASE("{\"a\":" ENTRY("U8", "[0]", "[0,0]") ",\"a\":" ENTRY("U8", "[0]", "[0,0]") "}", 0, "tensor "
	     "\"a\" appears twice"),
	CASE("{\"a\\u0000b\":" ENTRY("F32", "[1]", "[0,4]") "}", 4, "NUL"),
};

static void assert_refused(const void *bytes, size_t len, const char *says)
{
	struct st_header h;
	struct err err = ERR_INIT;

	if (parse(bytes, len, &h, &err) == 0)
		fail_msg("accepted, but should say \"%s\": %.*s", says, (int)(len > 8 ? len - 8 : 0),
			 (const char *)bytes + 8);
	assert_int_equal(err.code, ERR_CORRUPT);
	if (!strstr(err.text, says) || strncmp(err.text, "x.safetensors: ", 15) != 0)
		fail_msg("\"%s\" does not say \"%s\"", err.text, says);
	assert_null(h.tensors);
}

static void test_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		const struct file_case *c = &refused[i];
		size_t len;
		unsigned char *bytes = assemble(c->text, c->text_len, c->data_bytes, &len);

		assert_refused(bytes, len, c->says);
		free(bytes);
	}
}

static void test_refused_lengths(void **state)
{
	static const unsigned char short_file[7] = { 0 };
	static const unsigned char past_end[] = { 3, 0, 0, 0, 0, 0, 0, 0, '{', '}' };
	static const unsigned char huge[] = { 1, 0xE1, 0xF5, 5, 0, 0, 0, 0, '{', '}' };
	static const unsigned char all_ones[] = { 255, 255, 255, 255, 255, 255, 255, 255, '{', '}' };

	(void)state;
	assert_refused(short_file, 0, "it has 0 bytes");
	assert_refused(short_file, 7, "it has 7 bytes");
	assert_refused(past_end, sizeof(past_end), "claims 3 bytes, but only 2 follow");
	assert_refused(huge, sizeof(huge), "claims 100000001 bytes; at most 100000000");
	assert_refused(all_ones, sizeof(all_ones), "claims 18446744073709551615 bytes");
	assert_refused("\0\0\0\0\0\0\0", 8, "not valid JSON"); /* n = 0 */
}

static void test_refused_depth(void **state)
{
	char text[512] = "{\"a\":{\"x\":";
	size_t start = strlen(text), len;
	unsigned char *bytes;

	(void)state;
	memset(text + start, '[', 127);
	memset(text + start + 127, ']', 127);
	strcpy(text + start + 254, "}}");
	bytes = assemble(text, strlen(text), 0, &len);
	assert_refused(bytes, len, "nested too deeply");
	free(bytes);
}

/* --- accepted ----------------------------------------------------------------- */

static const struct file_case accepted[] = {
	CASE("{}", 0, ""),
	CASE(" \t\r\n{ } ", 0, ""),
	CASE("{\"__metadata__\":{}}", 0, ""),
	CASE("{\"a\":" ENTRY("F32", "[]", "[0,4]") "}", 4, "a"),
	CASE("{\"\":" ENTRY("U8", "[3]", "[0,3]") "}", 3, ""),
	CASE("{\"a\\\"\\u00e9\\n\":" ENTRY("U8", "[1]", "[0,1]") "}", 1, "a\"\xc3\xa9\n"),
	CASE("{\"a\":" ENTRY("U8", "[0,4294967296,4294967296]", "[0,0]") "}", 0, "a"),
	CASE("{\"z\":" ENTRY("U8", "[0]", "[0,0]") ",\"a\":" ENTRY("F32", "[1]", "[0,4]") ",\"y\":"
	     ENTRY("U8", "[0]", "[4,4]") ",\"x\":" ENTRY("I64", "[2,0]", "[0,0]") "}", 4, "a"),
	CASE("{\"b\":" ENTRY("U8", "[1]", "[0,1]") ",\"a\":" ENTRY("F64", "[1]", "[1,9]") "}", 9, "a"),
	CASE("{\"a\":{\"extra\":[{\"deep\":1.5e3}],\"extra\":null,\"dtype\":\"BF16\",\"shape\":[2],"
	     "\"data_offsets\":[0,4]}}", 4, "a"),
	CASE("{\"a\":{\"d\\u0074ype\":\"B\\u0046\\u00316\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "a"),
	CASE("{\"a\":" ENTRY("F4", "[2]", "[0,1]") "}", 1, "a"),
	CASE("{\"a\":" ENTRY("F6_E3M2", "[4]", "[0,3]") "}", 3, "a"),
	CASE("{\"a\":" ENTRY("F32", "[1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "a"),
};

static void test_accepted(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(accepted) / sizeof(accepted[0]); i++) {
		const struct file_case *c = &accepted[i];
		struct st_header h;
		struct err err = ERR_INIT;
		size_t len;
		unsigned char *bytes = assemble(c->text, c->text_len, c->data_bytes, &len);

		if (parse(bytes, len, &h, &err) != 0)
			fail_msg("refused: %s (%s)", c->text, err.text);
		assert_int_equal(h.data_start, 8 + c->text_len);
		if (h.count > 0) {
			assert_non_null(st_find(&h, c->says));
			assert_string_equal(h.tensors[0].name, c->says);
		}
		assert_null(st_find(&h, "absent"));
		st_header_deinit(&h);
		free(bytes);
	}
}

static void test_metadata(void **state)
{
	static const char text[] = "{\"__metadata__\":{\"format\":\"pt\",\"k\":\"\\u00e9\"},\"a\":"
				   ENTRY("I16", "[2,3]", "[0,12]") "}";
	struct st_header h;
	size_t len;
	unsigned char *bytes = assemble(text, sizeof(text) - 1, 12, &len);
	const struct st_tensor *a;

	(void)state;
	assert_int_equal(parse(bytes, len, &h, NULL), 0);
	assert_string_equal(st_meta(&h, "format"), "pt");
	assert_string_equal(st_meta(&h, "k"), "\xc3\xa9");
	assert_null(st_meta(&h, "none"));
	a = st_find(&h, "a");
	assert_int_equal(a->dtype, ST_I16);
	assert_int_equal(a->ndim, 2);
	assert_int_equal(a->shape[0], 2);
	assert_int_equal(a->shape[1], 3);
	assert_int_equal(a->end, 12);
	st_header_deinit(&h);
	free(bytes);
}

static void test_dtypes(void **state)
{
	enum st_dtype dtype;

	(void)state;
	for (int i = ST_BOOL; i <= ST_U64; i++) {
		assert_int_equal(st_dtype_from_name(st_dtype_name((enum st_dtype)i), &dtype), 0);
		assert_int_equal(dtype, i);
	}
	assert_int_equal(st_dtype_bits(ST_BF16), 16);
	assert_int_equal(st_dtype_bits(ST_F6_E2M3), 6);
	assert_int_equal(st_dtype_from_name("bf16", &dtype), -1);
}

/* One more than the limit of tensors, and just the limit. */
static void test_tensor_limit(void **state)
{
	(void)state;
	for (unsigned count = ST_TENSORS_MAX; count <= ST_TENSORS_MAX + 1; count++) {
		struct buf text;
		struct st_header h;
		struct err err = ERR_INIT;
		unsigned char *bytes;
		size_t len;

		buf_init(&text, 1 << 24);
		for (unsigned i = 0; i < count; i++)
			buf_printf(&text, "%c\"%u\":" ENTRY("U8", "[0]", "[0,0]"), i ? ',' : '{', i);
		buf_puts(&text, "}");
		assert_false(buf_failed(&text));
		bytes = assemble(text.data, text.len, 0, &len);
		if (count > ST_TENSORS_MAX) {
			assert_refused(bytes, len, "more than 65536 tensors");
		} else {
			assert_int_equal(parse(bytes, len, &h, &err), 0);
			assert_int_equal(h.count, count);
			st_header_deinit(&h);
		}
		free(bytes);
		buf_deinit(&text);
	}
}

static void test_metadata_limit(void **state)
{
	struct buf text;
	unsigned char *bytes;
	size_t len;

	(void)state;
	buf_init(&text, 1 << 24);
	for (unsigned i = 0; i <= 65536; i++)
		buf_printf(&text, "%s\"%u\":\"\"", i ? "," : "{\"__metadata__\":{", i);
	buf_puts(&text, "}}");
	bytes = assemble(buf_text(&text), text.len, 0, &len);
	assert_refused(bytes, len, "__metadata__ holds more than 65536 entries");
	free(bytes);
	buf_deinit(&text);
}

static void test_mutations(void **state)
{
	static const char text[] = "{\"__metadata__\":{\"format\":\"pt\"},\"a\\u0062\":"
				   ENTRY("F32", "[2,1]", "[0,8]") ",\"c\":" ENTRY("U8", "[3]", "[8,11]") "}";
	static const char alphabet[] = "{}[]\",:\\u0123489.-abcFU \x80\xff";
	uint64_t x = 0x853C49E6748FEA9Bu;
	size_t len;
	unsigned char *seed = assemble(text, sizeof(text) - 1, 11, &len);
	int good = 0;

	(void)state;
	for (int round = 0; round < 60000; round++) {
		size_t cut = len;
		unsigned char *work = malloc(len);
		struct st_header h;

		memcpy(work, seed, len);
		for (int k = 0; k < 1 + round % 3; k++) {
			x ^= x << 13, x ^= x >> 7, x ^= x << 17;
			work[round % 7 ? 8 + x % (len - 8) : x % 10] =
				(x >> 40) % 4 ? (unsigned char)alphabet[(x >> 20) % (sizeof(alphabet) - 1)]
					      : (unsigned char)(x >> 32);
		}
		if (round % 11 == 0)
			cut = x % len;
		work = realloc(work, cut ? cut : 1);
		if (parse(work, cut, &h, NULL) == 0) {
			uint64_t sum = 0;

			good++;
			for (size_t i = 0; i < h.count; i++)
				sum += h.tensors[i].end - h.tensors[i].begin;
			assert_int_equal(h.data_start + sum, cut);
			st_header_deinit(&h);
		}
		free(work);
	}
	free(seed);
	assert_in_range(good, 500, 59000);
}

/* --- writing ------------------------------------------------------------------ */

static struct st_tensor tensor(const char *name, enum st_dtype dtype, unsigned ndim, uint64_t a, uint64_t b)
{
	return (struct st_tensor){ .name = (char *)(uintptr_t)name, .dtype = dtype, .ndim = ndim,
				   .shape = { a, b } };
}

static void test_layout(void **state)
{
	static const char *const keys[] = { "format" }, *const values[] = { "p\"t" };
	static const char expected[] = "{\"__metadata__\":{\"format\":\"p\\\"t\"},"
		"\"z\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]},"
		"\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[8,12]},"
		"\"a\\\\\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[12,24]},"
		"\"c\":{\"dtype\":\"BF16\",\"shape\":[0],\"data_offsets\":[24,24]},"
		"\"d\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[24,29]}}";
	struct st_tensor t[] = {
		tensor("d", ST_U8, 1, 5, 0), tensor("c", ST_BF16, 1, 0, 0), tensor("b", ST_F32, 0, 0, 0),
		tensor("a\\", ST_BF16, 2, 2, 3), tensor("z", ST_I64, 1, 1, 0),
	};
	struct buf out;

	(void)state;
	buf_init(&out, 1 << 16);
	assert_int_equal(st_layout(t, 5, keys, values, 1, &out, NULL), 0);
	assert_int_equal(out.len % 8, 0);
	assert_int_equal(((unsigned char *)out.data)[0] | ((unsigned char *)out.data)[1] << 8, out.len - 8);
	assert_memory_equal(out.data + 8, expected, sizeof(expected) - 1);
	for (size_t i = 8 + sizeof(expected) - 1; i < out.len; i++)
		assert_int_equal(out.data[i], ' ');
	assert_string_equal(t[0].name, "z");
	assert_int_equal(t[4].begin, 24);
	buf_deinit(&out);
}

static void test_layout_refuses(void **state)
{
	struct st_tensor twice[] = { tensor("a", ST_U8, 0, 0, 0), tensor("a", ST_F32, 0, 0, 0) };
	struct st_tensor reserved[] = { tensor("__metadata__", ST_U8, 0, 0, 0) };
	struct st_tensor huge[] = { tensor("a", ST_U8, 2, 1ull << 40, 1ull << 40) };
	struct st_tensor sum[9];
	struct err err = ERR_INIT;
	struct buf out;
	char names[9][2];

	(void)state;
	for (int i = 0; i < 9; i++) {
		names[i][0] = (char)('a' + i), names[i][1] = '\0';
		sum[i] = tensor(names[i], ST_U8, 1, (1ull << 61) - 1, 0);
	}
	buf_init(&out, 1 << 16);
	assert_int_equal(st_layout(twice, 2, NULL, NULL, 0, &out, &err), -1);
	assert_non_null(strstr(err.text, "used twice"));
	assert_int_equal(st_layout(reserved, 1, NULL, NULL, 0, &out, &err), -1);
	assert_non_null(strstr(err.text, "reserved"));
	assert_int_equal(st_layout(huge, 1, NULL, NULL, 0, &out, &err), -1);
	assert_non_null(strstr(err.text, "overflows"));
	assert_int_equal(st_layout(sum, 9, NULL, NULL, 0, &out, &err), -1);
	assert_non_null(strstr(err.text, "exceed 2^64"));
	assert_int_equal(st_layout(NULL, ST_TENSORS_MAX + 1, NULL, NULL, 0, &out, &err), -1);
	assert_non_null(strstr(err.text, "at most 65536"));
	assert_int_equal(out.len, 0);
	out.limit = 4;
	assert_int_equal(st_layout(NULL, 0, NULL, NULL, 0, &out, &err), -1);
	assert_int_equal(err.code, ERR_NOMEM);
	buf_deinit(&out);
}

static const float floats[] = { 1.5f, -2.0f, 0.25f };
static const unsigned char raw_bytes[] = { 9, 8, 7, 6, 5 };

static int write_sample(struct err *err)
{
	static const char *const keys[] = { "format", "origin" }, *const values[] = { "pt", "test" };
	struct st_item items[] = {
		{ tensor("bytes", ST_U8, 1, 5, 0), raw_bytes },
		{ tensor("floats", ST_F32, 2, 3, 1), floats },
		{ tensor("empty", ST_F32, 1, 0, 0), NULL },
	};

	return st_write_file("sample.safetensors", items, 3, keys, values, 2, err);
}

static void test_round_trip(void **state)
{
	struct st_header h;
	struct err err = ERR_INIT;
	const struct st_tensor *t;
	size_t len;
	char *bytes;

	(void)state;
	if (write_sample(&err) != 0 || st_header_read_path(&h, "sample.safetensors", &err) != 0)
		fail_msg("%s", err.text);
	bytes = file_read_all("sample.safetensors", 1 << 16, &len, &err);
	assert_int_equal(h.count, 3);
	assert_int_equal(h.data_start % 8, 0);
	assert_string_equal(st_meta(&h, "origin"), "test");
	t = st_find(&h, "floats");
	assert_memory_equal(bytes + h.data_start + t->begin, floats, sizeof(floats));
	t = st_find(&h, "bytes");
	assert_memory_equal(bytes + h.data_start + t->begin, raw_bytes, sizeof(raw_bytes));
	assert_int_equal(len, h.data_start + t->end);
	mem_free(bytes);
	st_header_deinit(&h);
}

static void test_empty_file(void **state)
{
	struct st_header h;

	(void)state;
	assert_int_equal(st_write_file("none.safetensors", NULL, 0, NULL, NULL, 0, NULL), 0);
	assert_int_equal(st_header_read_path(&h, "none.safetensors", NULL), 0);
	assert_int_equal(h.count, 0);
	assert_null(st_find(&h, "a"));
	st_header_deinit(&h);
}

/* --- failures ----------------------------------------------------------------- */

static void test_read_failures(void **state)
{
	struct st_header h;
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(st_header_read(&h, "f", 100, read_broken, NULL, &err), -1);
	assert_string_equal(err.text, "f: broken at 0");
	assert_int_equal(err.code, ERR_IO);
	assert_int_equal(st_header_read_path(&h, "absent.safetensors", &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(st_header_read_path(&h, ".", &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	assert_int_equal(write_sample(&err), 0);
	for (int n = 1; n <= 2; n++) { /* the length, the text */
		file_fail_after(FILE_READ, (uint64_t)n);
		assert_int_equal(st_header_read_path(&h, "sample.safetensors", &err), -1);
		assert_int_equal(err.code, ERR_IO);
	}
	file_fail_after(FILE_OPEN, 1);
	assert_int_equal(st_header_read_path(&h, "sample.safetensors", &err), -1);
	assert_int_equal(err.code, ERR_IO);
	file_fail_after(FILE_READ, 0);
}

static void test_write_failures(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	remove("sample.safetensors");
	for (uint64_t n = 1; n <= 3; n++) { /* the head, two tensors with bytes */
		file_fail_after(FILE_WRITE, n);
		assert_int_equal(write_sample(&err), -1);
		assert_int_equal(err.code, ERR_NOSPC);
		assert_false(file_exists("sample.safetensors"));
	}
	file_fail_after(FILE_WRITE, 0);
	file_fail_after(FILE_OPEN, 1);
	assert_int_equal(write_sample(&err), -1);
	assert_int_equal(write_sample(&err), 0);
}

static void test_out_of_memory(void **state)
{
	static const char text[] = "{\"__metadata__\":{\"a\":\"b\",\"c\":\"d\"},\"\\u0061\":{\"x\":[1],"
				   "\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
	size_t len;
	unsigned char *bytes = assemble(text, sizeof(text) - 1, 1, &len);
	struct st_header h;
	struct err err;
	uint64_t n;
	int rc = -1;

	(void)state;
	for (n = 1; rc != 0 && n < 1000; n++) {
		err_clear(&err);
		mem_fail_after(n);
		rc = parse(bytes, len, &h, &err);
		mem_fail_after(0);
		if (rc != 0)
			assert_int_equal(err.code, ERR_NOMEM);
	}
	assert_in_range(n, 10, 999);
	st_header_deinit(&h);
	free(bytes);
	for (n = 1, rc = -1; rc != 0 && n < 1000; n++) {
		remove("sample.safetensors");
		mem_fail_after(n);
		rc = write_sample(&err);
		mem_fail_after(0);
		assert_int_equal(file_exists("sample.safetensors"), rc == 0);
	}
	assert_in_range(n, 4, 999);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_refused_lengths),
		cmocka_unit_test(test_refused_depth),
		cmocka_unit_test(test_accepted),
		cmocka_unit_test(test_metadata),
		cmocka_unit_test(test_dtypes),
		cmocka_unit_test(test_tensor_limit),
		cmocka_unit_test(test_metadata_limit),
		cmocka_unit_test(test_mutations),
		cmocka_unit_test(test_layout),
		cmocka_unit_test(test_layout_refuses),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_empty_file),
		cmocka_unit_test(test_read_failures),
		cmocka_unit_test(test_write_failures),
		cmocka_unit_test(test_out_of_memory),
	};

	return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
