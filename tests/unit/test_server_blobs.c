/* The blob store: uploads in parts, what a failure at every single operation leaves, sweeping. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "server/blobs.h"
#include "server/blobs_store.h"

enum { TWO_PARTS = BLOB_PART_BYTES + 1000 };

struct world {
	struct blobs *blobs;
	char *dir;
	unsigned char *bytes;           /* TWO_PARTS of noise */
	char sha256[DIGEST_HEX];
};

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	char name[] = "blobs-XXXXXX";
	struct err err = ERR_INIT;
	uint32_t noise = 1;

	w->dir = strdup(mkdtemp(name));
	w->blobs = blobs_open(w->dir, &err);
	assert_string_equal(err.text, "");
	w->bytes = malloc(TWO_PARTS);
	for (size_t i = 0; i < TWO_PARTS; i++) {
		noise = noise * 1664525 + 1013904223;
		w->bytes[i] = (unsigned char)(noise >> 24);
	}
	digest_of(w->bytes, TWO_PARTS, w->sha256);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	blobs_close(w->blobs);
	dir_remove(w->dir, NULL);
	free(w->dir);
	free(w->bytes);
	free(w);
	return 0;
}

/* --- small steps ---------------------------------------------------------------------- */

static int begin(struct world *w, const char *sha256, uint64_t bytes, struct err *err)
{
	unsigned char *done = NULL;
	size_t parts;
	int rc = blobs_upload_begin(w->blobs, sha256, bytes, &done, &parts, err);

	mem_free(done);
	return rc;
}

/* One part, in writes of at most 3 MiB, as a body arrives. */
static int send_part(struct world *w, size_t part, size_t total, struct err *err)
{
	size_t from = part * (size_t)BLOB_PART_BYTES;
	size_t len = total - from < BLOB_PART_BYTES ? total - from : BLOB_PART_BYTES;

	for (size_t at = 0; at < len;) {
		size_t n = len - at < (3u << 20) ? len - at : 3u << 20;

		if (blobs_upload_write(w->blobs, w->sha256, part, at, w->bytes + from + at, n, err) != 0)
			return -1;
		at += n;
	}
	return blobs_upload_part_done(w->blobs, w->sha256, part, len, err);
}

static int upload_all(struct world *w, struct err *err)
{
	uint64_t bytes = 0;

	if (begin(w, w->sha256, TWO_PARTS, err) != 0 || send_part(w, 1, TWO_PARTS, err) != 0 ||
	    send_part(w, 0, TWO_PARTS, err) != 0 || blobs_upload_complete(w->blobs, w->sha256, &bytes,
									  err) != 0)
		return -1;
	assert_int_equal(bytes, TWO_PARTS);
	return 0;
}

static void assert_stored(struct world *w)
{
	struct err err = ERR_INIT;
	uint64_t bytes = 0;
	int fd = blobs_open_fd(w->blobs, w->sha256, &bytes, &err);
	unsigned char *back = malloc(TWO_PARTS);

	assert_string_equal(err.text, "");
	assert_int_equal(bytes, TWO_PARTS);
	assert_int_equal(file_pread(fd, back, TWO_PARTS, 0, "blob", &err), 0);
	assert_memory_equal(back, w->bytes, TWO_PARTS);
	free(back);
	close(fd);
}

/* Files below a folder, folders not counted. */
static unsigned count_files(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *entry;
	unsigned count = 0;

	assert_non_null(d);
	while ((entry = readdir(d))) {
		char *path;

		if (entry->d_name[0] == '.')
			continue;
		path = path_join(dir, entry->d_name);
		count += entry->d_type == DT_DIR ? count_files(path) : 1;
		mem_free(path);
	}
	closedir(d);
	return count;
}

static unsigned files_in(struct world *w, const char *folder)
{
	char *path = path_join(w->dir, folder);
	unsigned count = count_files(path);

	mem_free(path);
	return count;
}

static void reopen(struct world *w)
{
	struct err err = ERR_INIT;

	blobs_close(w->blobs);
	w->blobs = blobs_open(w->dir, &err);
	assert_string_equal(err.text, "");
}

/* --- what works ------------------------------------------------------------------------- */

static void test_put_get_delete(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	char sha256[DIGEST_HEX], again[DIGEST_HEX];
	uint64_t bytes = 0;
	int fd;

	assert_int_equal(blobs_put(w->blobs, "hello", 5, sha256, &err), 0);
	assert_int_equal(blobs_put(w->blobs, "hello", 5, again, &err), 0);
	assert_string_equal(sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
	assert_string_equal(sha256, again);
	assert_true(blobs_has(w->blobs, sha256, &bytes));
	assert_int_equal(bytes, 5);
	fd = blobs_open_fd(w->blobs, sha256, &bytes, &err);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(blobs_delete(w->blobs, sha256, &err), 0);
	assert_int_equal(blobs_delete(w->blobs, sha256, &err), 0);
	assert_false(blobs_has(w->blobs, sha256, &bytes));
	assert_int_equal(blobs_open_fd(w->blobs, sha256, &bytes, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void test_upload_in_parts(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	unsigned char *done;
	size_t parts;
	uint64_t bytes;

	assert_int_equal(begin(w, w->sha256, TWO_PARTS, &err), 0);
	assert_int_equal(send_part(w, 1, TWO_PARTS, &err), 0);
	reopen(w); /* the server was killed */
	assert_int_equal(blobs_upload_begin(w->blobs, w->sha256, TWO_PARTS, &done, &parts, &err), 0);
	assert_int_equal(parts, 2);
	assert_int_equal(done[0], 0);
	assert_int_equal(done[1], 1);
	mem_free(done);
	assert_int_equal(blobs_upload_complete(w->blobs, w->sha256, &bytes, &err), -1);
	assert_int_equal(err.code, ERR_CONFLICT);
	assert_string_equal(err.text, "part 0 of 2 has not been uploaded");
	assert_int_equal(send_part(w, 0, TWO_PARTS, &err), 0);
	assert_int_equal(blobs_upload_complete(w->blobs, w->sha256, &bytes, &err), 0);
	assert_int_equal(bytes, TWO_PARTS);
	assert_stored(w);
	assert_int_equal(files_in(w, "uploads"), 0);
	bytes = 0;
	assert_int_equal(blobs_upload_complete(w->blobs, w->sha256, &bytes, &err), 0); /* repeated */
	assert_int_equal(bytes, TWO_PARTS);
}

static void test_empty_blob(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	static const char empty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
	uint64_t bytes = 9;

	assert_int_equal(begin(w, empty, 0, &err), 0);
	assert_int_equal(blobs_upload_complete(w->blobs, empty, &bytes, &err), 0);
	assert_int_equal(bytes, 0);
	assert_true(blobs_has(w->blobs, empty, &bytes));
}

static void *send_even(void *ctx)
{
	struct world *w = ctx;

	return send_part(w, 0, TWO_PARTS, NULL) == 0 ? ctx : NULL;
}

static void test_parts_at_the_same_time(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	pthread_t thread;
	void *even;
	uint64_t bytes;

	assert_int_equal(begin(w, w->sha256, TWO_PARTS, &err), 0);
	pthread_create(&thread, NULL, send_even, w);
	assert_int_equal(send_part(w, 1, TWO_PARTS, &err), 0);
	pthread_join(thread, &even);
	assert_non_null(even);
	assert_int_equal(blobs_upload_complete(w->blobs, w->sha256, &bytes, &err), 0);
	assert_stored(w);
	assert_null(w->blobs->uses);
}

/* --- what is refused ------------------------------------------------------------------------ */

static void test_wrong_digest_drops_the_parts(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	uint64_t bytes;

	assert_int_equal(begin(w, w->sha256, TWO_PARTS, &err), 0);
	assert_int_equal(send_part(w, 0, TWO_PARTS, &err), 0);
	w->bytes[BLOB_PART_BYTES] ^= 1;
	assert_int_equal(send_part(w, 1, TWO_PARTS, &err), 0);
	assert_int_equal(blobs_upload_complete(w->blobs, w->sha256, &bytes, &err), -1);
	assert_int_equal(err.code, ERR_CORRUPT);
	assert_non_null(strstr(err.text, w->sha256));
	assert_int_equal(files_in(w, "uploads") + files_in(w, "blobs"), 0);
	w->bytes[BLOB_PART_BYTES] ^= 1;
	assert_int_equal(upload_all(w, &err), 0);
	assert_stored(w);
}

static void test_bad_requests(void **state)
{
	struct world *w = *state;
	static const char *const names[] = {
		"", "../../etc/passwd", "ABCDEF", "u_",
		"2CF24DBA5FB0A30E26E83B2AC5B9E29E1B161E5C1FA7425E73043362938B9824",
		"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b98240",
		"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e7304336293/../..",
	};
	struct err err = ERR_INIT;
	uint64_t bytes;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		assert_int_equal(begin(w, names[i], 5, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		assert_int_equal(blobs_open_fd(w->blobs, names[i], &bytes, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		assert_int_equal(blobs_delete(w->blobs, names[i], &err), -1);
		assert_false(blobs_has(w->blobs, names[i], &bytes));
	}
	assert_int_equal(blobs_upload_write(w->blobs, w->sha256, 0, 0, "x", 1, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(blobs_upload_part_done(w->blobs, w->sha256, 0, 1, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(blobs_upload_complete(w->blobs, w->sha256, &bytes, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(files_in(w, "uploads"), 0);
}

static void test_bad_parts(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;

	assert_int_equal(begin(w, w->sha256, TWO_PARTS, &err), 0);
	assert_int_equal(blobs_upload_write(w->blobs, w->sha256, 2, 0, "x", 1, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	assert_int_equal(blobs_upload_write(w->blobs, w->sha256, SIZE_MAX, 0, "x", 1, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	assert_int_equal(blobs_upload_write(w->blobs, w->sha256, 1, 999, "xy", 2, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_int_equal(blobs_upload_write(w->blobs, w->sha256, 1, UINT64_MAX, "xy", 2, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_int_equal(blobs_upload_part_done(w->blobs, w->sha256, 0, 1000, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	assert_int_equal(blobs_upload_part_done(w->blobs, w->sha256, 1, 999, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	assert_int_equal(blobs_upload_part_done(w->blobs, w->sha256, 5, 999, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
}

static void test_sizes(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	unsigned char *done;
	size_t parts;

	assert_int_equal(begin(w, w->sha256, UINT64_MAX, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
	assert_int_equal(begin(w, w->sha256, (uint64_t)BLOB_PART_BYTES << 20, &err), -1);
	assert_int_equal(err.code, ERR_NOSPC); /* 8 TiB are not free on a test machine */
	assert_int_equal(files_in(w, "uploads"), 0);
	assert_int_equal(begin(w, w->sha256, TWO_PARTS, &err), 0);
	assert_int_equal(send_part(w, 0, TWO_PARTS, &err), 0);
	assert_int_equal(blobs_upload_begin(w->blobs, w->sha256, TWO_PARTS + 1, &done, &parts, &err), 0);
	assert_int_equal(done[0], 0); /* another size: begun again */
	mem_free(done);
}

static void test_busy_while_verifying(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	struct upload_use *use;
	uint64_t bytes;

	assert_int_equal(begin(w, w->sha256, TWO_PARTS, &err), 0);
	use = upload_enter(w->blobs, w->sha256, true, true, &err);
	assert_non_null(use);
	assert_int_equal(begin(w, w->sha256, TWO_PARTS, &err), -1);
	assert_int_equal(err.code, ERR_BUSY);
	assert_int_equal(blobs_upload_write(w->blobs, w->sha256, 0, 0, "x", 1, &err), -1);
	assert_int_equal(err.code, ERR_BUSY);
	assert_int_equal(blobs_upload_part_done(w->blobs, w->sha256, 1, 1000, &err), -1);
	assert_int_equal(err.code, ERR_BUSY);
	assert_int_equal(blobs_upload_complete(w->blobs, w->sha256, &bytes, &err), -1);
	assert_int_equal(err.code, ERR_BUSY);
	upload_leave(w->blobs, use);
	assert_int_equal(send_part(w, 1, TWO_PARTS, &err), 0);
}

/* --- every operation fails once ---------------------------------------------------------------- */

/* Whatever failed: no blob has a name unless it is whole, and doing it all again works. */
static void assert_recovers(struct world *w, bool failed)
{
	struct err err = ERR_INIT;

	file_fail_after(FILE_OPEN, 0);
	mem_fail_after(0);
	if (failed)
		assert_int_equal(files_in(w, "blobs"), 0);
	reopen(w);
	if (failed)
		assert_false(blobs_has(w->blobs, w->sha256, NULL));
	if (upload_all(w, &err) != 0)
		fail_msg("a second upload fails: %s", err.text);
	assert_stored(w);
	assert_int_equal(files_in(w, "uploads"), 0);
	assert_int_equal(blobs_delete(w->blobs, w->sha256, &err), 0);
}

static unsigned fail_each(struct world *w, enum file_op op, enum err_code expected)
{
	unsigned nth = 0;
	int rc;

	do {
		struct err err = ERR_INIT;

		file_fail_after(op, ++nth);
		rc = upload_all(w, &err);
		file_fail_after(op, 0);
		if (rc != 0)
			assert_int_equal(err.code, expected);
		assert_recovers(w, rc != 0);
	} while (rc != 0);
	return nth - 1; /* so many places can fail */
}

static void test_each_io_operation_fails(void **state)
{
	struct world *w = *state;

	assert_in_range(fail_each(w, FILE_OPEN, ERR_IO), 10, 100);
	assert_in_range(fail_each(w, FILE_READ, ERR_IO), 2, 200);
	assert_in_range(fail_each(w, FILE_WRITE, ERR_NOSPC), 6, 100);
	assert_in_range(fail_each(w, FILE_FSYNC, ERR_IO), 2, 10);
	assert_in_range(fail_each(w, FILE_RENAME, ERR_IO), 1, 1);
}

static void test_each_allocation_fails(void **state)
{
	struct world *w = *state;
	unsigned nth = 0;
	int rc;

	do {
		struct err err = ERR_INIT;

		mem_fail_after(++nth);
		rc = upload_all(w, &err);
		mem_fail_after(0);
		if (rc != 0)
			assert_int_equal(err.code, ERR_NOMEM);
		assert_recovers(w, rc != 0);
	} while (rc != 0);
	assert_in_range(nth, 8, 200);
}

static void test_each_operation_of_put_fails(void **state)
{
	struct world *w = *state;
	static const enum file_op ops[] = { FILE_OPEN, FILE_WRITE, FILE_FSYNC, FILE_RENAME };
	char sha256[DIGEST_HEX];

	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		unsigned nth = 0;
		int rc;

		do {
			struct err err = ERR_INIT;

			file_fail_after(ops[i], ++nth);
			rc = blobs_put(w->blobs, "hello", 5, sha256, &err);
			file_fail_after(ops[i], 0);
			assert_int_equal(files_in(w, "blobs"), rc == 0);
			assert_int_equal(blobs_has(w->blobs, sha256, NULL), rc == 0);
		} while (rc != 0);
		assert_in_range(nth, 2, 10);
		assert_int_equal(blobs_delete(w->blobs, sha256, NULL), 0);
	}
}

static void test_opening_fails_cleanly(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	char sha256[DIGEST_HEX];

	assert_int_equal(blobs_put(w->blobs, "hello", 5, sha256, &err), 0);
	for (unsigned nth = 1; nth < 4; nth++) {
		mem_fail_after(nth);
		assert_null(blobs_open(w->dir, &err));
		assert_int_equal(err.code, ERR_NOMEM);
	}
	mem_fail_after(0);
	for (unsigned nth = 1; nth < 3; nth++) { /* the data folder, then the blob's folder */
		file_fail_after(FILE_FSYNC, nth);
		assert_null(blobs_open(w->dir, &err));
		assert_int_equal(err.code, ERR_IO);
	}
	file_fail_after(FILE_FSYNC, 0);
	assert_null(blobs_open("/proc/nowhere", &err));
}

/* --- sweeping -------------------------------------------------------------------------------------- */

static bool keep_one(void *ctx, const char *sha256)
{
	return strcmp(sha256, ctx) == 0;
}

static void age(struct world *w, const char *folder, const char *name)
{
	char path[512];
	const struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 1000 } };

	snprintf(path, sizeof(path), "%s/%s/%s", w->dir, folder, name);
	assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
}

static void test_sweep(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	char kept[DIGEST_HEX], old[DIGEST_HEX], fresh[DIGEST_HEX], name[128], stray[512];

	assert_int_equal(blobs_put(w->blobs, "kept", 4, kept, &err), 0);
	assert_int_equal(blobs_put(w->blobs, "old", 3, old, &err), 0);
	assert_int_equal(blobs_put(w->blobs, "fresh", 5, fresh, &err), 0);
	assert_int_equal(begin(w, w->sha256, TWO_PARTS, &err), 0);
	snprintf(stray, sizeof(stray), "%s/blobs/%.2s/%s.77.1.tmp", w->dir, kept, kept);
	assert_int_equal(file_write_atomic(stray, "x", 1, &err), 0);
	snprintf(name, sizeof(name), "%.2s/%s.77.1.tmp", kept, kept);
	age(w, "blobs", name);
	snprintf(name, sizeof(name), "%.2s/%s", kept, kept);
	age(w, "blobs", name);
	snprintf(name, sizeof(name), "%.2s/%s", old, old);
	age(w, "blobs", name);

	assert_int_equal(blobs_sweep(w->blobs, 3600 * 1000, keep_one, kept, &err), 0);
	assert_true(blobs_has(w->blobs, kept, NULL));
	assert_false(blobs_has(w->blobs, old, NULL));
	assert_true(blobs_has(w->blobs, fresh, NULL));
	assert_false(file_exists(stray));
	assert_int_equal(files_in(w, "uploads"), 2);

	snprintf(name, sizeof(name), "%s.part", w->sha256);
	age(w, "uploads", name);
	assert_int_equal(blobs_sweep(w->blobs, 3600 * 1000, keep_one, kept, &err), 0);
	assert_int_equal(files_in(w, "uploads"), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_put_get_delete, setup, teardown),
		cmocka_unit_test_setup_teardown(test_upload_in_parts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_empty_blob, setup, teardown),
		cmocka_unit_test_setup_teardown(test_parts_at_the_same_time, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wrong_digest_drops_the_parts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_requests, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_parts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sizes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_busy_while_verifying, setup, teardown),
		cmocka_unit_test_setup_teardown(test_each_io_operation_fails, setup, teardown),
		cmocka_unit_test_setup_teardown(test_each_allocation_fails, setup, teardown),
		cmocka_unit_test_setup_teardown(test_each_operation_of_put_fails, setup, teardown),
		cmocka_unit_test_setup_teardown(test_opening_fails_cleanly, setup, teardown),
		cmocka_unit_test_setup_teardown(test_sweep, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
