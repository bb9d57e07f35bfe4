/* The base modules: errors, buffers, allocation, files, 16-bit floats, digests, plain names. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/digest.h"
#include "common/err.h"
#include "common/file.h"
#include "common/half.h"

/* --- err ---------------------------------------------------------------------- */

static void test_err(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(err_set(&err, ERR_INVALID, "bad %d", 7), -1);
	assert_int_equal(err.code, ERR_INVALID);
	assert_string_equal(err.text, "bad 7");
	assert_int_equal(err_prefix(&err, "file %s", "x"), -1);
	assert_string_equal(err.text, "file x: bad 7");
	assert_int_equal(err.code, ERR_INVALID);
	assert_int_equal(err_set_nomem(&err, "a thing"), -1);
	assert_string_equal(err.text, "out of memory for a thing");
	err_clear(&err);
	assert_int_equal(err.code, ERR_NONE);
	assert_string_equal(err.text, "");
	assert_int_equal(err_set(NULL, ERR_IO, "x"), -1);
	assert_int_equal(err_prefix(NULL, "x"), -1);
	assert_int_equal(err_set_errno(NULL, ENOENT, "x"), -1);
	err_clear(NULL);
}

static void test_err_errno(void **state)
{
	static const struct { int errnum; enum err_code code; } cases[] = {
		{ ENOSPC, ERR_NOSPC }, { EDQUOT, ERR_NOSPC }, { ENOMEM, ERR_NOMEM },
		{ ENOENT, ERR_NOT_FOUND }, { ENOTDIR, ERR_NOT_FOUND }, { EIO, ERR_IO }, { EACCES, ERR_IO },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct err err = ERR_INIT;

		err_set_errno(&err, cases[i].errnum, "cannot open %s", "f");
		assert_int_equal(err.code, cases[i].code);
		assert_memory_equal(err.text, "cannot open f: ", 15);
		assert_true(strlen(err.text) > 15);
	}
}

static void test_err_table(void **state)
{
	(void)state;
	for (int code = ERR_NONE; code <= ERR_CANCELLED; code++) {
		assert_int_equal(err_from_name(err_name((enum err_code)code)), code);
		assert_in_range(err_http_status((enum err_code)code), 200, 599);
	}
	assert_int_equal(err_http_status(ERR_UNSUPPORTED), 422);
	assert_true(err_retryable(ERR_NOSPC));
	assert_false(err_retryable(ERR_CORRUPT));
	assert_int_equal(err_from_name("no such"), ERR_INTERNAL);
	assert_string_equal(err_name((enum err_code)999), "internal");
	assert_int_equal(err_http_status((enum err_code)999), 500);
	assert_false(err_retryable((enum err_code)999));
}

static void test_err_long_texts(void **state)
{
	char long_text[3000];
	struct err err = ERR_INIT;

	(void)state;
	memset(long_text, 'x', sizeof(long_text));
	long_text[sizeof(long_text) - 1] = '\0';
	err_set(&err, ERR_IO, "%s", long_text);
	assert_int_equal(strlen(err.text), ERR_TEXT_MAX - 1);
	err_prefix(&err, "%s", long_text);
	assert_int_equal(strlen(err.text), ERR_TEXT_MAX - 1);
	err_set_errno(&err, EIO, "%s", long_text);
	assert_int_equal(strlen(err.text), ERR_TEXT_MAX - 1);
}

/* --- alloc -------------------------------------------------------------------- */

static void test_alloc(void **state)
{
	unsigned char *bytes = mem_alloc(100, 3);
	char *text = mem_strndup("abcdef", 3);
	float *numbers = mem_alloc_aligned(33, 4);

	(void)state;
	for (int i = 0; i < 300; i++)
		assert_int_equal(bytes[i], 0);
	assert_string_equal(text, "abc");
	assert_int_equal((uintptr_t)numbers % 64, 0);
	numbers[32] = 1;
	bytes = mem_realloc(bytes, 1000, 3);
	assert_non_null(bytes);
	assert_null(mem_alloc(SIZE_MAX / 2, 3));
	assert_null(mem_alloc_aligned(SIZE_MAX, 1));
	assert_null(mem_alloc_aligned(SIZE_MAX / 2, 3));
	assert_null(mem_realloc(bytes, SIZE_MAX / 2, 3));
	mem_free(bytes);
	mem_free(text);
	mem_free(numbers);
	bytes = mem_alloc(0, 8);
	assert_non_null(bytes);
	mem_free(bytes);
	mem_free(NULL);
}

static void test_checked_sizes(void **state)
{
	size_t size;
	uint64_t wide;

	(void)state;
	assert_true(size_mul(3, 4, &size) && size == 12);
	assert_true(size_add(3, 4, &size) && size == 7);
	assert_true(u64_mul(1ull << 32, (1ull << 32) - 1, &wide));
	assert_false(u64_mul(1ull << 32, 1ull << 32, &wide));
	assert_false(u64_add(UINT64_MAX, 1, &wide));
	assert_false(size_add(SIZE_MAX, 1, &size));
	assert_false(size_mul(SIZE_MAX, 2, &size));
}

static void test_alloc_injection(void **state)
{
	void *one, *two, *three;

	(void)state;
	mem_fail_after(2);
	one = mem_alloc(1, 1);
	two = mem_strdup("x");
	three = mem_alloc(1, 1);
	assert_non_null(one);
	assert_null(two);
	assert_non_null(three);
	mem_fail_after(1);
	assert_null(mem_realloc(one, 2, 1)); /* the old block stays */
	*(char *)one = 'a';
	mem_fail_after(1);
	assert_null(mem_alloc_aligned(1, 1));
	mem_fail_after(1);
	mem_fail_after(0);
	two = mem_alloc(1, 1);
	assert_non_null(two);
	mem_free(one);
	mem_free(two);
	mem_free(three);
}

/* --- buf ---------------------------------------------------------------------- */

static void test_buf(void **state)
{
	struct buf b;
	char *taken;

	(void)state;
	buf_init(&b, 1000);
	assert_string_equal(buf_text(&b), "");
	assert_null(buf_take(&b));
	assert_int_equal(buf_puts(&b, "abc"), 0);
	assert_int_equal(buf_printf(&b, "-%d-", 42), 0);
	assert_int_equal(buf_append(&b, NULL, 0), 0);
	for (int i = 0; i < 400; i++)
		assert_int_equal(buf_append(&b, "xy", 2), 0);
	assert_int_equal(b.len, 807);
	assert_memory_equal(buf_text(&b), "abc-42-xyxy", 11);
	assert_int_equal(strlen(buf_text(&b)), 807);
	taken = buf_take(&b);
	assert_int_equal(strlen(taken), 807);
	mem_free(taken);
	assert_string_equal(buf_text(&b), "");
	buf_deinit(&b);
}

static void test_buf_limit(void **state)
{
	struct buf b;

	(void)state;
	buf_init(&b, 4);
	assert_int_equal(buf_puts(&b, "abcd"), 0);
	assert_int_equal(buf_puts(&b, ""), 0);
	assert_int_equal(buf_puts(&b, "e"), -1);
	assert_true(buf_failed(&b));
	assert_int_equal(buf_puts(&b, ""), -1); /* it sticks */
	assert_int_equal(buf_printf(&b, "x"), -1);
	assert_null(buf_take(&b));
	assert_string_equal(buf_text(&b), "abcd");
	buf_reset(&b);
	assert_false(buf_failed(&b));
	assert_int_equal(buf_printf(&b, "%s", "wxyz"), 0);
	assert_string_equal(buf_text(&b), "wxyz");
	assert_int_equal(buf_append(&b, "x", SIZE_MAX), -1);
	buf_deinit(&b);
	buf_init(&b, 100);
	mem_fail_after(1);
	assert_int_equal(buf_puts(&b, "x"), -1);
	mem_fail_after(0);
	assert_int_equal(buf_puts(&b, "x"), -1);
	buf_reset(&b);
	assert_int_equal(buf_puts(&b, "x"), 0);
	buf_deinit(&b);
}

/* --- files -------------------------------------------------------------------- */

static size_t count_entries(const char *dir)
{
	DIR *d = opendir(dir);
	size_t count = 0;

	assert_non_null(d);
	while (readdir(d))
		count++;
	closedir(d);
	return count - 2;
}

static void assert_content(const char *path, const char *expected)
{
	size_t len;
	char *text = file_read_all(path, 1000, &len, NULL);

	assert_non_null(text);
	assert_string_equal(text, expected);
	assert_int_equal(len, strlen(expected));
	mem_free(text);
}

static void test_write_and_read(void **state)
{
	struct err err = ERR_INIT;
	struct stat st;
	uint64_t bytes;
	size_t len;

	(void)state;
	assert_int_equal(dir_make("w/a/b", &err), 0);
	assert_int_equal(dir_make("w/a/b", &err), 0);
	assert_int_equal(file_write_atomic("w/f", "hello", 5, &err), 0);
	assert_content("w/f", "hello");
	assert_int_equal(file_size("w/f", &bytes, &err), 0);
	assert_int_equal(bytes, 5);
	assert_null(file_read_all("w/f", 4, &len, &err));
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_null(file_read_all("w/none", 4, &len, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_null(file_read_all("w/a", 4000, &len, &err));
	assert_int_equal(err.code, ERR_INVALID);
	assert_int_equal(file_size("w/a", &bytes, &err), -1);
	assert_int_equal(file_size("w/none", &bytes, &err), -1);
	assert_int_equal(file_write_atomic_mode("w/secret", "s", 1, 0600, &err), 0);
	assert_int_equal(stat("w/secret", &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(dir_make("w/f", &err), -1);
	assert_int_equal(dir_make("w/f/x", &err), -1);
	assert_true(file_exists("w/f") && !file_exists("w/none"));
	assert_false(dir_is_empty("w"));
	assert_true(dir_is_empty("w/a/b") && dir_is_empty("w/none"));
	assert_int_equal(disk_free("w", &bytes, &err), 0);
	assert_int_equal(disk_free("w/none", &bytes, &err), -1);
	assert_int_equal(symlink("/", "w/link"), 0);
	assert_int_equal(dir_remove("w", &err), 0);
	assert_false(file_exists("w"));
	assert_true(file_exists("/"));
	assert_int_equal(dir_remove("w", &err), 0);
}

/* A signal file that is there was written without an error, whichever operation fails. */
static void test_signal_failures(void **state)
{
	struct err err = ERR_INIT;
	int failures = 0;

	(void)state;
	dir_make("signal", NULL);
	for (int op = FILE_OPEN; op <= FILE_RENAME; op++) {
		for (uint64_t nth = 1; nth <= 3; nth++) {
			int rc;

			file_fail_after((enum file_op)op, nth);
			rc = file_write_signal("signal/ready", "here", 4, &err);
			file_fail_after((enum file_op)op, 0);
			failures += rc != 0;
			assert_int_equal(file_exists("signal/ready"), rc == 0);
			assert_int_equal(unlink("signal/ready"), rc);
			assert_true(dir_is_empty("signal"));
		}
	}
	assert_int_equal(failures, 4); /* open, write, fsync of the file, rename */
}

/* Whatever fails, the old or the new content is there whole, and no temporary file. */
static void test_atomic_failures(void **state)
{
	static const enum file_op ops[] = { FILE_OPEN, FILE_WRITE, FILE_FSYNC, FILE_RENAME };
	static const int calls[] = { 2, 1, 2, 1 }; /* the file and its folder; one write; ... */

	(void)state;
	dir_make("at", NULL);
	for (size_t i = 0; i < 4; i++) {
		int n = 0, rc = -1;

		while (rc != 0) {
			struct err err = ERR_INIT;
			bool renamed;

			assert_int_equal(file_write_atomic("at/f", "old", 3, NULL), 0);
			file_fail_after(ops[i], (uint64_t)++n);
			rc = file_write_atomic("at/f", "new text", 8, &err);
			file_fail_after(ops[i], 0);
			assert_int_equal(count_entries("at"), 1);
			if (rc == 0)
				break;
			assert_int_equal(err.code, ops[i] == FILE_WRITE ? ERR_NOSPC : ERR_IO);
			renamed = n == 2 && (ops[i] == FILE_OPEN || ops[i] == FILE_FSYNC);
			assert_content("at/f", renamed ? "new text" : "old");
		}
		assert_int_equal(n, calls[i] + 1);
	}
	dir_remove("at", NULL);
}

static void test_atomic_refusals(void **state)
{
	char long_path[5000];
	struct err err = ERR_INIT;

	(void)state;
	memset(long_path, 'x', sizeof(long_path));
	long_path[sizeof(long_path) - 1] = '\0';
	assert_int_equal(file_write_atomic(long_path, "x", 1, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	assert_int_equal(file_write_atomic("none/f", "x", 1, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	mem_fail_after(1);
	assert_int_equal(file_write_atomic("f", "x", 1, &err), -1); /* the path of the folder */
	assert_int_equal(err.code, ERR_NOMEM);
	mem_fail_after(0);
	unlink("f");
}

static void test_read_failures(void **state)
{
	struct err err = ERR_INIT;
	char bytes[8];
	size_t len;
	int fd;

	(void)state;
	assert_int_equal(file_write_atomic("r", "abcdef", 6, NULL), 0);
	file_fail_after(FILE_OPEN, 1);
	assert_null(file_read_all("r", 10, &len, &err));
	assert_int_equal(err.code, ERR_IO);
	file_fail_after(FILE_READ, 1);
	assert_null(file_read_all("r", 10, &len, &err));
	assert_int_equal(err.code, ERR_IO);
	mem_fail_after(1);
	assert_null(file_read_all("r", 10, &len, &err));
	assert_int_equal(err.code, ERR_NOMEM);
	mem_fail_after(0);
	fd = file_open("r", O_RDWR, 0, &err);
	assert_int_equal(file_pread(fd, bytes, 3, 2, "r", &err), 0);
	assert_memory_equal(bytes, "cde", 3);
	assert_int_equal(file_pread(fd, bytes, 3, 4, "r", &err), -1);
	assert_string_equal(err.text, "r ends at byte 6, 1 bytes short");
	assert_int_equal(err.code, ERR_CORRUPT);
	assert_int_equal(file_pwrite(fd, "XY", 2, 1, "r", &err), 0);
	close(fd);
	assert_content("r", "aXYdef");
	assert_int_equal(file_rename_durable("none", "r", &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(file_sync_parent("none/x", &err), -1);
	unlink("r");
}

static void test_dir_failures(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	mem_fail_after(1);
	assert_int_equal(dir_make("d", &err), -1);
	mem_fail_after(0);
	assert_int_equal(dir_make("d/e", &err), 0);
	mem_fail_after(1);
	assert_int_equal(dir_remove("d", &err), -1);
	assert_int_equal(err.code, ERR_NOMEM);
	mem_fail_after(0);
	assert_int_equal(dir_remove("d", &err), 0);
	mem_fail_after(1);
	assert_null(path_join("a", "b"));
	mem_fail_after(0);
}

static void test_plain_names(void **state)
{
	static const char *const good[] = { "a", "model.safetensors", "A-1_b.c", "a..b" };
	static const char *const bad[] = { "", ".", "..", ".a", "a/b", "/", "a b", "a\\b", "\xc3\xa9",
	"a\n", "a:b" };
	char name[300];

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		if (!path_is_plain_name(good[i]))
			fail_msg("\"%s\" is refused", good[i]);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (path_is_plain_name(bad[i]))
			fail_msg("\"%s\" is accepted", bad[i]);
	memset(name, 'a', sizeof(name));
	name[255] = '\0';
	assert_true(path_is_plain_name(name));
	name[255] = 'a', name[256] = '\0';
	assert_false(path_is_plain_name(name));
}

/* --- 16-bit floats ------------------------------------------------------------ */

static uint32_t bits_of(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

static float float_of(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* From the definition of the format, in double. */
static double f16_value(unsigned bits)
{
	int exponent = (int)(bits >> 10 & 31);
	double mantissa = bits & 0x3FF;
	double value = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);

	return bits & 0x8000 ? -value : value;
}

static void test_half_all_values(void **state)
{
	(void)state;
	for (unsigned bits = 0; bits < 65536; bits++) {
		bool f16_nan = (bits & 0x7FFF) > 0x7C00, bf16_nan = (bits & 0x7FFF) > 0x7F80;
		float f16 = f16_to_f32((uint16_t)bits), bf16 = bf16_to_f32((uint16_t)bits);

		if (bits_of(bf16) != bits << 16)
			fail_msg("bf16 %04x", bits);
		if (f16_nan ? !isnan(f16) : (bits & 0x7C00) == 0x7C00 ? !isinf(f16) || !signbit(f16) != !(bits & 0x8000)
									: f16 != f16_value(bits))
			fail_msg("f16 %04x is %a", bits, (double)f16);
		if (f16_nan) /* stays NaN, becomes quiet */
			assert_int_equal(f32_to_f16(f16), bits | 0x200);
		else
			assert_int_equal(f32_to_f16(f16), bits);
		assert_int_equal(f32_to_bf16(bf16), bf16_nan ? bits | 0x40 : bits);
	}
}

/* Between neighbours: below, at and above the middle; ties go to the even one. */
static void test_half_rounding(void **state)
{
	(void)state;
	for (unsigned bits = 0; bits < 0x7C00; bits++) {
		double low = f16_value(bits), high = bits == 0x7BFF ? 65536 : f16_value(bits + 1);
		float middle = (float)((low + high) / 2); /* exact in float32 */
		unsigned even = bits & 1 ? bits + 1 : bits;

		if (f32_to_f16(middle) != even || f32_to_f16(nextafterf(middle, 0)) != bits ||
		    f32_to_f16(nextafterf(middle, 1e9f)) != bits + 1 ||
		    f32_to_f16(-middle) != (even | 0x8000))
			fail_msg("f16 above %04x", bits);
	}
	for (unsigned bits = 0; bits < 0x7F80; bits++) {
		uint32_t middle = bits << 16 | 0x8000;

		if (f32_to_bf16(float_of(middle)) != (bits & 1 ? bits + 1 : bits) ||
		    f32_to_bf16(float_of(middle - 1)) != bits || f32_to_bf16(float_of(middle + 1)) != bits + 1 ||
		    f32_to_bf16(float_of(middle | 0x80000000)) != ((bits & 1 ? bits + 1 : bits) | 0x8000))
			fail_msg("bf16 above %04x", bits);
	}
	assert_int_equal(f32_to_f16(1e10f), 0x7C00);
	assert_int_equal(f32_to_f16(-INFINITY), 0xFC00);
	assert_int_equal(f32_to_f16(1e-10f), 0);
	assert_int_equal(f32_to_f16(-1e-10f), 0x8000);
	assert_int_equal(f32_to_bf16(float_of(0x7F7FFFFF)), 0x7F80);
	assert_int_equal(f32_to_bf16(float_of(0x7F800001)), 0x7FC0);
}

static void test_half_arrays(void **state)
{
	float values[] = { 1.0f, -2.5f, 65504.0f }, back[3];
	unsigned char raw[7];

	(void)state;
	f32_to_f16_array(values, raw + 1, 3); /* not aligned */
	f16_to_f32_array(raw + 1, back, 3);
	assert_memory_equal(values, back, sizeof(values));
	values[2] = 65536.0f;
	f32_to_bf16_array(values, raw + 1, 3);
	bf16_to_f32_array(raw + 1, back, 3);
	assert_memory_equal(values, back, sizeof(values));
}

/* --- digests ------------------------------------------------------------------ */

#define SHA_EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define SHA_ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
#define SHA_MILLION_A "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"

static void test_digest(void **state)
{
	struct digest *d = digest_new();
	char hex[DIGEST_HEX], chunk[1000];

	(void)state;
	assert_int_equal(digest_of("", 0, hex), 0);
	assert_string_equal(hex, SHA_EMPTY);
	assert_int_equal(digest_of("abc", 3, hex), 0);
	assert_string_equal(hex, SHA_ABC);
	memset(chunk, 'a', sizeof(chunk));
	for (int i = 0; i < 1000; i++)
		digest_add(d, chunk, sizeof(chunk));
	digest_finish(d, hex);
	assert_string_equal(hex, SHA_MILLION_A);
	digest_add(d, "abc", 3); /* ready for the next message */
	digest_finish(d, hex);
	assert_string_equal(hex, SHA_ABC);
	digest_free(d);
	digest_free(NULL);
	assert_true(digest_is_hex(SHA_ABC));
	assert_false(digest_is_hex("BA7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
	assert_false(digest_is_hex(""));
	assert_false(digest_is_hex(SHA_ABC "0"));
}

static void test_digest_file(void **state)
{
	char hex[DIGEST_HEX], *big = mem_alloc(1000000, 1);
	struct err err = ERR_INIT;
	uint64_t bytes = 0;

	(void)state;
	memset(big, 'a', 1000000);
	assert_int_equal(file_write_atomic("d", big, 1000000, NULL), 0);
	assert_int_equal(digest_file("d", hex, &bytes, &err), 0);
	assert_string_equal(hex, SHA_MILLION_A);
	assert_int_equal(bytes, 1000000);
	assert_int_equal(digest_file("d", hex, NULL, &err), 0);
	assert_int_equal(digest_file("none", hex, NULL, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(digest_file(".", hex, NULL, &err), -1);
	mem_fail_after(1);
	assert_int_equal(digest_file("d", hex, NULL, &err), -1);
	assert_int_equal(err.code, ERR_NOMEM);
	mem_fail_after(1);
	assert_int_equal(digest_of("", 0, hex), -1);
	mem_fail_after(0);
	mem_free(big);
	unlink("d");
}

static void test_secrets(void **state)
{
	char hex[DIGEST_HEX], one[33], two[33], clock_hex[17];

	(void)state;
	/* RFC 4231, case 2 */
	assert_int_equal(hmac_sha256("Jefe", 4, "what do ya want for nothing?", 28, hex), 0);
	assert_string_equal(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
	assert_true(secret_equal("abc", "abc"));
	assert_false(secret_equal("abc", "abd"));
	assert_false(secret_equal("abc", "abcd"));
	assert_true(secret_equal("", ""));
	assert_int_equal(random_hex(one, 16), 0);
	assert_int_equal(random_hex(two, 16), 0);
	assert_int_equal(strlen(one), 32);
	assert_string_not_equal(one, two);
	assert_int_equal(random_hex(one, 65), -1);
	assert_int_equal(clock_system.random_hex(NULL, clock_hex, 8), 0);
	assert_int_equal(strlen(clock_hex), 16);
}

static void test_clock(void **state)
{
	int64_t first = clock_system.mono_ms(NULL), second = clock_system.mono_ms(NULL);

	(void)state;
	assert_true(second >= first);
	assert_true(clock_system.wall_ms(NULL) > 1577836800000); /* 2020 */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_err),
		cmocka_unit_test(test_err_errno),
		cmocka_unit_test(test_err_table),
		cmocka_unit_test(test_err_long_texts),
		cmocka_unit_test(test_alloc),
		cmocka_unit_test(test_checked_sizes),
		cmocka_unit_test(test_alloc_injection),
		cmocka_unit_test(test_buf),
		cmocka_unit_test(test_buf_limit),
		cmocka_unit_test(test_write_and_read),
		cmocka_unit_test(test_atomic_failures),
		cmocka_unit_test(test_signal_failures),
		cmocka_unit_test(test_atomic_refusals),
		cmocka_unit_test(test_read_failures),
		cmocka_unit_test(test_dir_failures),
		cmocka_unit_test(test_plain_names),
		cmocka_unit_test(test_half_all_values),
		cmocka_unit_test(test_half_rounding),
		cmocka_unit_test(test_half_arrays),
		cmocka_unit_test(test_digest),
		cmocka_unit_test(test_digest_file),
		cmocka_unit_test(test_secrets),
		cmocka_unit_test(test_clock),
	};

	return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
