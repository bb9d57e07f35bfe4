/* GGUF files: the writer's bytes against a file made by hand, the reader over damaged files, over every value type, and with
 * every allocation failing once. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"
#include "formats/gguf_file.h"
#include "formats/gguf_read.h"

/* --- a file in memory ---------------------------------------------------------------------------- */

struct bytes { unsigned char at[4096]; size_t len; };

static void put(struct bytes *b, uint64_t value, unsigned count)
{
	assert_true(b->len + count <= sizeof(b->at));
	for (unsigned i = 0; i < count; i++)
		b->at[b->len++] = (unsigned char)(value >> 8 * i);
}

static void put_text(struct bytes *b, const char *text)
{
	put(b, strlen(text), 8);
	for (; *text; text++)
		put(b, (unsigned char)*text, 1);
}

static void put_key(struct bytes *b, const char *key, unsigned type)
{
	put_text(b, key);
	put(b, type, 4);
}

static void put_info(struct bytes *b, const char *name, unsigned ndim, const uint64_t *ne, unsigned type, uint64_t offset)
{
	put_text(b, name);
	put(b, ndim, 4);
	for (unsigned d = 0; d < ndim; d++)
		put(b, ne[d], 8);
	put(b, type, 4);
	put(b, offset, 8);
}

static void put_start(struct bytes *b, uint64_t tensors, uint64_t pairs)
{
	b->len = 0;
	put(b, 0x46554747, 4);
	put(b, 3, 4);
	put(b, tensors, 8);
	put(b, pairs, 8);
}

static void pad(struct bytes *b)
{
	while (b->len % 32)
		put(b, 0, 1);
}

static int read_bytes(void *ctx, uint64_t offset, void *out, size_t len, struct err *err)
{
	const struct bytes *b = ctx;

	if (offset > b->len || len > b->len - offset)
		return err_set(err, ERR_IO, "a read beyond the file");
	memcpy(out, b->at + offset, len);
	return 0;
}

static int open_bytes(struct gr_file *g, struct bytes *b, struct err *err)
{
	return gr_open(g, "x.gguf", b->len, read_bytes, b, err);
}

/* Two keys, two tensors: the smallest file that has all parts. */
static void small_file(struct bytes *b)
{
	static const uint64_t a_ne[] = { 3 }, b_ne[] = { 32, 2 };

	put_start(b, 2, 2);
	put_key(b, "general.architecture", 8);
	put_text(b, "llama");
	put_key(b, "n", 9);
	put(b, 5, 4);
	put(b, 2, 8);
	put(b, 7, 4);
	put(b, 0xffffffff, 4);
	put_info(b, "a", 1, a_ne, 0, 0);
	put_info(b, "b", 2, b_ne, 8, 32);
	pad(b);
	for (unsigned i = 0; i < 3; i++)
		put(b, 0x3f800000, 4);
	pad(b);
	for (unsigned i = 0; i < 68; i++)
		put(b, i, 1);
	pad(b);
}

/* --- writing ------------------------------------------------------------------------------------- */

static int lay_out(struct buf *out, struct gguf_tensor *tensors, struct err *err)
{
	struct gguf_kv kv;
	int rc;

	gguf_kv_init(&kv);
	gguf_kv_string(&kv, "general.architecture", "llama");
	gguf_kv_array(&kv, "n", GGUF_VALUE_I32, 2);
	gguf_element_i32(&kv, 7);
	gguf_element_i32(&kv, -1);
	rc = gguf_layout(&kv, tensors, 2, out, err);
	gguf_kv_deinit(&kv);
	return rc;
}

static const struct gguf_tensor small_tensors[2] = {
	{ .name = "a", .type = GGUF_F32, .ndim = 1, .ne = { 3 } },
	{ .name = "b", .type = GGUF_Q8_0, .ndim = 2, .ne = { 32, 2 } },
};

static void test_written_as_by_hand(void **state)
{
	struct gguf_tensor tensors[2];
	struct err err = ERR_INIT;
	struct bytes b;
	struct buf out;

	(void)state;
	small_file(&b);
	memcpy(tensors, small_tensors, sizeof(tensors));
	buf_init(&out, 1 << 20);
	assert_int_equal(lay_out(&out, tensors, &err), 0);
	assert_int_equal(out.len % GGUF_ALIGNMENT, 0);
	assert_int_equal(tensors[1].offset, 32);
	assert_int_equal(tensors[1].bytes, 68);
	assert_int_equal(gguf_data_bytes(tensors, 2), 32 + 96);
	assert_int_equal(gguf_data_bytes(tensors, 0), 0);
	assert_int_equal(out.len + 128, b.len);
	assert_memory_equal(out.data, b.at, out.len);
	buf_deinit(&out);
}

static void refused_layout(struct gguf_kv *kv, struct gguf_tensor *tensors, size_t count, const char *part)
{
	struct err err = ERR_INIT;
	struct buf out;

	buf_init(&out, 1 << 24);
	assert_int_equal(gguf_layout(kv, tensors, count, &out, &err), -1);
	if (!strstr(err.text, part))
		fail_msg("'%s' lacks '%s'", err.text, part);
	buf_deinit(&out);
}

static void test_refused_layouts(void **state)
{
	struct gguf_tensor t[2] = { { .name = "a", .type = GGUF_Q4_1, .ndim = 2, .ne = { 32, 2 } },
				    { .name = "a", .type = GGUF_F32, .ndim = 1, .ne = { 1 } } };
	struct gguf_kv kv;
	char key[32];

	(void)state;
	gguf_kv_init(&kv);
	refused_layout(&kv, t, 2, "two gguf tensors are named a");
	t[0].ne[0] = 33;
	refused_layout(&kv, t, 1, "a multiple of 32 columns, not 33");
	t[0].ne[0] = 32;
	t[0].ne[1] = UINT64_MAX / 8;
	refused_layout(&kv, t, 1, "too many elements");
	t[0].ne[1] = INT64_MAX / 64;
	t[1] = t[0];
	t[1].name = "b";
	refused_layout(&kv, t, 2, "cannot be addressed");
	t[0].ndim = 5;
	refused_layout(&kv, t, 1, "has 5 dimensions");
	t[0].ndim = 0;
	refused_layout(&kv, t, 1, "has 0 dimensions");
	t[0].name = "a.name.of.more.than.sixty-three.bytes.which.is.what.the.format.allows";
	refused_layout(&kv, t, 1, "at most 63 bytes");
	gguf_kv_u32(&kv, "twice", 1);
	gguf_kv_bool(&kv, "twice", true);
	refused_layout(&kv, t, 0, "key twice is given twice");
	gguf_kv_deinit(&kv);

	gguf_kv_init(&kv);
	for (unsigned i = 0; i <= GGUF_KEYS_MAX; i++) {
		snprintf(key, sizeof(key), "key.%u", i);
		gguf_kv_u32(&kv, key, i);
	}
	refused_layout(&kv, t, 0, "more than 256 keys");
	gguf_kv_deinit(&kv);
}

static void test_layout_without_memory(void **state)
{
	bool worked = false;

	(void)state;
	for (uint64_t nth = 1; !worked && nth < 100; nth++) {
		struct gguf_tensor tensors[2];
		struct err err = ERR_INIT;
		struct buf out;

		memcpy(tensors, small_tensors, sizeof(tensors));
		buf_init(&out, 1 << 20);
		mem_fail_after(nth);
		worked = lay_out(&out, tensors, &err) == 0;
		mem_fail_after(0);
		if (!worked)
			assert_int_equal(err.code, ERR_NOMEM);
		buf_deinit(&out);
	}
	assert_true(worked);
}

/* --- reading ------------------------------------------------------------------------------------- */

static void test_read_back(void **state)
{
	const struct gr_tensor *t;
	struct err err = ERR_INIT;
	struct gr_text text;
	struct gr_file g;
	struct bytes b;
	double number;
	float row[64];
	size_t at = 0;

	(void)state;
	small_file(&b);
	if (open_bytes(&g, &b, &err) != 0)
		fail_msg("%s", err.text);
	assert_int_equal(g.tensor_count, 2);
	assert_true(gr_string(&g, "general.architecture", &text));
	assert_int_equal(text.len, 5);
	assert_memory_equal(text.at, "llama", 5);
	assert_true(gr_next_number(&g, gr_pair(&g, "n"), &at, &number));
	assert_true(number == 7);
	assert_true(gr_next_number(&g, gr_pair(&g, "n"), &at, &number));
	assert_true(number == -1);
	assert_false(gr_next_number(&g, gr_pair(&g, "n"), &at, &number));
	assert_false(gr_number(&g, "n", &number)); /* an array is no number */
	assert_false(gr_string(&g, "nn", &text));
	assert_null(gr_find(&g, "c"));
	t = gr_find(&g, "b");
	assert_non_null(t);
	assert_int_equal(t->ne[0], 32);
	assert_int_equal(t->ne[1], 2);
	assert_int_equal(t->ne[2], 1);
	assert_int_equal(t->bytes, 68);
	assert_int_equal(t->begin, g.data_start + 32);
	gr_decode(t->type, b.at + t->begin, 2, row);
	assert_true(row[1] == 3 * (float)(0x0100 * 0x1p-24)); /* d is the subnormal 0x0100 */
	assert_int_equal(gr_find(&g, "a")->begin, g.data_start);
	gr_close(&g);
}

static void test_every_value_type(void **state)
{
	static const char *const keys[] = { "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "s", "", "u64", "i64", "f64" };
	static const unsigned sizes[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
	struct err err = ERR_INIT;
	struct gr_text text;
	uint64_t integer;
	struct gr_file g;
	struct bytes b;
	double number;
	bool truth;
	size_t at = 0;

	(void)state;
	put_start(&b, 0, 13);
	for (unsigned type = 0; type < 13; type++) {
		if (type == 9)
			continue;
		put_key(&b, keys[type], type);
		if (type == 8)
			put_text(&b, "text");
		else if (type == 6)
			put(&b, 0x3fc00000, 4);
		else if (type == 12)
			put(&b, 0x3ff8000000000000, 8);
		else
			put(&b, type == 7 ? 1 : UINT64_MAX, sizes[type]);
	}
	put_key(&b, "list", 9);
	put(&b, 8, 4);
	put(&b, 2, 8);
	put_text(&b, "");
	put_text(&b, "two");
	pad(&b);
	if (open_bytes(&g, &b, &err) != 0)
		fail_msg("%s", err.text);
	assert_true(gr_u64(&g, "u8", &integer) && integer == 255);
	assert_true(gr_u64(&g, "u16", &integer) && integer == 65535);
	assert_true(gr_u64(&g, "u32", &integer) && integer == UINT32_MAX);
	assert_true(gr_u64(&g, "u64", &integer) && integer == UINT64_MAX);
	for (size_t i = 0; i < 4; i++) {
		static const char *const negative[] = { "i8", "i16", "i32", "i64" };

		assert_false(gr_u64(&g, negative[i], &integer));
		assert_true(gr_number(&g, negative[i], &number));
		assert_true(number == -1);
	}
	assert_true(gr_number(&g, "f32", &number) && number == 1.5);
	assert_true(gr_number(&g, "f64", &number) && number == 1.5);
	assert_false(gr_u64(&g, "f32", &integer));
	assert_true(gr_bool(&g, "bool", &truth) && truth);
	assert_false(gr_bool(&g, "u8", &truth));
	assert_false(gr_number(&g, "s", &number));
	assert_true(gr_string(&g, "s", &text) && text.len == 4);
	assert_true(gr_next_string(&g, gr_pair(&g, "list"), &at, &text) && text.len == 0);
	assert_true(gr_next_string(&g, gr_pair(&g, "list"), &at, &text) && text.len == 3);
	assert_false(gr_next_string(&g, gr_pair(&g, "list"), &at, &text));
	gr_close(&g);
}

static void test_cut_anywhere(void **state)
{
	struct err err = ERR_INIT;
	struct gr_file g;
	struct bytes b;
	size_t whole;

	(void)state;
	small_file(&b);
	whole = b.len - 28; /* the last tensor's padding may be missing */
	for (b.len = 0; b.len < whole; b.len++) {
		assert_int_equal(open_bytes(&g, &b, &err), -1);
		assert_int_equal(err.code, ERR_CORRUPT);
	}
	assert_int_equal(open_bytes(&g, &b, &err), 0);
	gr_close(&g);
}

/* Every byte of the head changed in turn: opened or refused, never anything else. */
static void test_any_byte_changed(void **state)
{
	static const unsigned char values[] = { 0, 1, 0x7f, 0x80, 0xff };
	struct gr_file g;
	struct bytes b;
	size_t refused = 0;

	(void)state;
	small_file(&b);
	for (size_t i = 0; i < b.len - 128; i++) {
		const unsigned char was = b.at[i];

		for (size_t v = 0; v < sizeof(values); v++) {
			struct err err = ERR_INIT;

			b.at[i] = values[v];
			if (open_bytes(&g, &b, &err) == 0) {
				gr_close(&g);
				continue;
			}
			refused++;
			assert_true(err.text[0] != '\0');
		}
		b.at[i] = was;
	}
	assert_true(refused > 300);
}

/* --- damaged files ------------------------------------------------------------------------------- */

static const uint64_t one_ne[] = { 32, 1 };

static void bad_magic(struct bytes *b) { put_start(b, 0, 0); b->at[3] = 'X'; }
static void old_version(struct bytes *b) { put_start(b, 0, 0); b->at[4] = 1; }
static void other_end(struct bytes *b) { put_start(b, 0, 0); memcpy(b->at + 4, "\0\0\0\3", 4); }
static void many_tensors(struct bytes *b) { put_start(b, 65537, 0); }
static void many_keys(struct bytes *b) { put_start(b, 0, 1ull << 40); }
static void long_key(struct bytes *b) { put_start(b, 0, 1); put(b, 1ull << 63, 8); }
static void no_key(struct bytes *b) { put_start(b, 0, 1); put_key(b, "", 0); put(b, 0, 1); }
static void nul_key(struct bytes *b) { put_start(b, 0, 1); put(b, 2, 8); put(b, 'a', 2); put(b, 0, 4); put(b, 0, 1); }
static void unknown_value(struct bytes *b) { put_start(b, 0, 1); put_key(b, "k", 13); put(b, 0, 8); }
static void not_a_bool(struct bytes *b) { put_start(b, 0, 1); put_key(b, "k", 7); put(b, 2, 1); }
static void nested(struct bytes *b) { put_start(b, 0, 1); put_key(b, "k", 9); put(b, 9, 4); put(b, 0, 8); }
static void unknown_element(struct bytes *b) { put_start(b, 0, 1); put_key(b, "k", 9); put(b, 99, 4); put(b, 0, 8); }
static void big_array(struct bytes *b) { put_start(b, 0, 1); put_key(b, "k", 9); put(b, 10, 4); put(b, 1ull << 62, 8); }
static void array_beyond(struct bytes *b) { put_start(b, 0, 1); put_key(b, "k", 9); put(b, 0, 4); put(b, 1ull << 50, 8); }
static void bools_in_array(struct bytes *b) { put_start(b, 0, 1); put_key(b, "k", 9); put(b, 7, 4); put(b, 2, 8); put(b, 0x301, 2); }
static void strings_beyond(struct bytes *b) { put_start(b, 0, 1); put_key(b, "k", 9); put(b, 8, 4); put(b, UINT64_MAX, 8); }

static void two_keys(struct bytes *b)
{
	put_start(b, 0, 2);
	for (int i = 0; i < 2; i++) {
		put_key(b, "same.key", 0);
		put(b, 0, 1);
	}
	pad(b);
}

static void alignment(struct bytes *b, unsigned type, uint64_t value)
{
	put_start(b, 0, 1);
	put_key(b, "general.alignment", type);
	put(b, value, type == 10 ? 8 : 4);
	pad(b);
}

static void alignment_24(struct bytes *b) { alignment(b, 4, 24); }
static void alignment_0(struct bytes *b) { alignment(b, 4, 0); }
static void alignment_huge(struct bytes *b) { alignment(b, 4, 1u << 31); }
static void alignment_long(struct bytes *b) { alignment(b, 10, 32); }

static void one_tensor(struct bytes *b, const char *name, unsigned ndim, const uint64_t *ne, unsigned type, uint64_t offset)
{
	put_start(b, 1, 0);
	put_info(b, name, ndim, ne, type, offset);
	pad(b);
	for (unsigned i = 0; i < 128; i++)
		put(b, 0, 1);
}

static void no_name(struct bytes *b) { one_tensor(b, "", 2, one_ne, 0, 0); }
static void long_name(struct bytes *b) { one_tensor(b, "0123456789012345678901234567890123456789012345678901234567890123", 2, one_ne, 0, 0); }
static void no_dims(struct bytes *b) { one_tensor(b, "t", 0, one_ne, 0, 0); }
static void empty_dim(struct bytes *b) { static const uint64_t ne[] = { 32, 0 }; one_tensor(b, "t", 2, ne, 0, 0); }
static void five_dims(struct bytes *b) { static const uint64_t ne[] = { 1, 1, 1, 1, 1 }; one_tensor(b, "t", 5, ne, 0, 0); }
static void product(struct bytes *b) { static const uint64_t ne[] = { 1ull << 40, 1ull << 40 }; one_tensor(b, "t", 2, ne, 0, 0); }
static void too_large(struct bytes *b) { static const uint64_t ne[] = { 1ull << 62 }; one_tensor(b, "t", 1, ne, 0, 0); }
static void unknown_type(struct bytes *b) { one_tensor(b, "t", 2, one_ne, 4, 0); }
static void half_block(struct bytes *b) { static const uint64_t ne[] = { 48 }; one_tensor(b, "t", 1, ne, 3, 0); }
static void hole(struct bytes *b) { one_tensor(b, "t", 2, one_ne, 0, 32); }
static void beyond(struct bytes *b) { static const uint64_t ne[] = { 64 }; one_tensor(b, "t", 1, ne, 0, 0); }
static void far_beyond(struct bytes *b) { static const uint64_t ne[] = { 1ull << 60 }; one_tensor(b, "t", 1, ne, 0, 0); }

static void two_names(struct bytes *b)
{
	put_start(b, 2, 0);
	put_info(b, "same", 2, one_ne, 0, 0);
	put_info(b, "same", 2, one_ne, 0, 128);
	pad(b);
	for (unsigned i = 0; i < 256; i++)
		put(b, 0, 1);
}

static void overlap(struct bytes *b)
{
	put_start(b, 2, 0);
	put_info(b, "one", 2, one_ne, 0, 0);
	put_info(b, "two", 2, one_ne, 0, 96);
	pad(b);
	for (unsigned i = 0; i < 256; i++)
		put(b, 0, 1);
}

struct damage { void (*make)(struct bytes *); enum err_code code; const char *part; };

static void test_damaged_files(void **state)
{
	static const struct damage table[] = {
		{ bad_magic, ERR_CORRUPT, "it is no gguf file" },
		{ old_version, ERR_UNSUPPORTED, "version 1" },
		{ other_end, ERR_UNSUPPORTED, "version 50331648" },
		{ many_tensors, ERR_TOO_LARGE, "65537 tensors" },
		{ many_keys, ERR_TOO_LARGE, "metadata keys; at most 4096" },
		{ long_key, ERR_CORRUPT, "longer than it may be" },
		{ no_key, ERR_CORRUPT, "key is empty" },
		{ nul_key, ERR_CORRUPT, "holds a NUL" },
		{ unknown_value, ERR_CORRUPT, "unknown type" },
		{ not_a_bool, ERR_CORRUPT, "neither 0 nor 1" },
		{ nested, ERR_CORRUPT, "an array of arrays" },
		{ unknown_element, ERR_CORRUPT, "unknown type" },
		{ big_array, ERR_CORRUPT, "too many elements" },
		{ array_beyond, ERR_CORRUPT, "ends inside its head" },
		{ bools_in_array, ERR_CORRUPT, "neither 0 nor 1" },
		{ strings_beyond, ERR_CORRUPT, "ends inside its head" },
		{ two_keys, ERR_CORRUPT, "'same.key' is there twice" },
		{ alignment_24, ERR_CORRUPT, "24, not a power of two" },
		{ alignment_0, ERR_CORRUPT, "0, not a power of two" },
		{ alignment_huge, ERR_CORRUPT, "not a power of two of at most" },
		{ alignment_long, ERR_CORRUPT, "not a 32-bit unsigned" },
		{ no_name, ERR_CORRUPT, "tensor name is empty" },
		{ long_name, ERR_CORRUPT, "longer than 63 bytes" },
		{ no_dims, ERR_CORRUPT, "1 to 4 dimensions" },
		{ five_dims, ERR_CORRUPT, "1 to 4 dimensions" },
		{ empty_dim, ERR_CORRUPT, "a dimension of 0" },
		{ product, ERR_CORRUPT, "too many elements" },
		{ too_large, ERR_CORRUPT, "too many elements" },
		{ unknown_type, ERR_UNSUPPORTED, "of type 4" },
		{ half_block, ERR_CORRUPT, "no whole blocks" },
		{ hole, ERR_CORRUPT, "does not begin where" },
		{ overlap, ERR_CORRUPT, "does not begin where" },
		{ beyond, ERR_CORRUPT, "beyond the end of the file" },
		{ far_beyond, ERR_CORRUPT, "beyond the end of the file" },
		{ two_names, ERR_CORRUPT, "tensor same is there twice" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		struct err err = ERR_INIT;
		struct gr_file g;
		struct bytes b;

		table[i].make(&b);
		if (open_bytes(&g, &b, &err) == 0)
			fail_msg("row %zu ('%s') is accepted", i, table[i].part);
		if (err.code != table[i].code || !strstr(err.text, table[i].part) || !strstr(err.text, "x.gguf"))
			fail_msg("row %zu: %s, '%s'; it should be %s, '%s'", i, err_name(err.code), err.text,
				 err_name(table[i].code), table[i].part);
	}
}

static void test_other_alignment(void **state)
{
	struct err err = ERR_INIT;
	struct gr_file g;
	struct bytes b;

	(void)state;
	put_start(&b, 2, 1);
	put_key(&b, "general.alignment", 4);
	put(&b, 256, 4);
	put_info(&b, "one", 2, one_ne, 0, 0);
	put_info(&b, "two", 2, one_ne, 0, 256);
	while (b.len % 256)
		put(&b, 0, 1);
	for (unsigned i = 0; i < 256 + 128; i++)
		put(&b, 0, 1);
	if (open_bytes(&g, &b, &err) != 0)
		fail_msg("%s", err.text);
	assert_int_equal(g.data_start % 256, 0);
	assert_int_equal(gr_find(&g, "two")->begin, g.data_start + 256);
	gr_close(&g);
}

static void test_bytes_after_the_data(void **state)
{
	struct err err = ERR_INIT;
	struct gr_file g;
	struct bytes b;

	(void)state;
	small_file(&b);
	put(&b, 0x1234, 2);
	assert_int_equal(open_bytes(&g, &b, &err), 0);
	gr_close(&g);
}

static void test_open_without_memory(void **state)
{
	bool worked = false;
	struct bytes b;

	(void)state;
	small_file(&b);
	for (uint64_t nth = 1; !worked && nth < 100; nth++) {
		struct err err = ERR_INIT;
		struct gr_file g;

		mem_fail_after(nth);
		worked = open_bytes(&g, &b, &err) == 0;
		mem_fail_after(0);
		if (worked)
			gr_close(&g);
		else
			assert_int_equal(err.code, ERR_NOMEM);
	}
	assert_true(worked);
}

static void test_from_disk(void **state)
{
	static const enum file_op ops[] = { FILE_OPEN, FILE_READ };
	struct err err = ERR_INIT;
	struct gr_file g;
	struct bytes b;

	(void)state;
	small_file(&b);
	assert_int_equal(file_write_atomic("small.gguf", b.at, b.len, &err), 0);
	assert_int_equal(gr_open_path(&g, "small.gguf", &err), 0);
	assert_int_equal(g.tensor_count, 2);
	gr_close(&g);
	assert_int_equal(gr_open_path(&g, "absent.gguf", &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	for (size_t i = 0; i < 2; i++) {
		file_fail_after(ops[i], 1);
		assert_int_equal(gr_open_path(&g, "small.gguf", &err), -1);
		assert_int_equal(err.code, ERR_IO);
	}
	file_fail_after(FILE_OPEN, 0);
	file_fail_after(FILE_READ, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_written_as_by_hand),
		cmocka_unit_test(test_refused_layouts),
		cmocka_unit_test(test_layout_without_memory),
		cmocka_unit_test(test_read_back),
		cmocka_unit_test(test_every_value_type),
		cmocka_unit_test(test_cut_anywhere),
		cmocka_unit_test(test_any_byte_changed),
		cmocka_unit_test(test_damaged_files),
		cmocka_unit_test(test_other_alignment),
		cmocka_unit_test(test_bytes_after_the_data),
		cmocka_unit_test(test_open_without_memory),
		cmocka_unit_test(test_from_disk),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
