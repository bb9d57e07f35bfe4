/* Uploads without sending: a file that is placed becomes the blob, or does no harm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "server/blobs.h"
#include "server/blobs_store.h"

enum { BYTES = BLOB_PART_BYTES + 1000 };

struct world {
	struct blobs *blobs;
	char *dir;
	unsigned char *bytes;           /* BYTES of them */
	char sha256[DIGEST_HEX];
	char place[PATH_MAX], taken[PATH_MAX];
};

static const char made[] = "made"; /* the worker's file, in the working folder */

static void write_file(const char *path, const void *bytes, size_t len)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
}

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	char name[] = "place-XXXXXX";
	struct err err = ERR_INIT;

	w->dir = strdup(mkdtemp(name));
	w->blobs = blobs_open(w->dir, &err);
	assert_string_equal(err.text, "");
	w->bytes = malloc(BYTES);
	for (size_t i = 0; i < BYTES; i++)
		w->bytes[i] = (unsigned char)(i * 2654435761u >> 24);
	digest_of(w->bytes, BYTES, w->sha256);
	assert_true(blobs_place_path(w->blobs, w->sha256, w->place));
	snprintf(w->taken, sizeof(w->taken), "%s/uploads/%s.taken", w->dir, w->sha256);
	write_file(made, w->bytes, BYTES);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	blobs_close(w->blobs);
	dir_remove(w->dir, NULL);
	unlink(made);
	free(w->dir);
	free(w->bytes);
	free(w);
	return 0;
}

/* --- small steps ---------------------------------------------------------------------- */

static void begin(struct world *w)
{
	struct err err = ERR_INIT;
	unsigned char *done = NULL;
	size_t parts;

	if (blobs_upload_begin(w->blobs, w->sha256, BYTES, &done, &parts, &err) != 0)
		fail_msg("%s", err.text);
	mem_free(done);
}

static void send_part(struct world *w, size_t part)
{
	size_t from = part * (size_t)BLOB_PART_BYTES, len = part == 0 ? BLOB_PART_BYTES : BYTES - BLOB_PART_BYTES;
	struct err err = ERR_INIT;

	if (blobs_upload_write(w->blobs, w->sha256, part, 0, w->bytes + from, len, &err) != 0 ||
	    blobs_upload_part_done(w->blobs, w->sha256, part, len, &err) != 0)
		fail_msg("%s", err.text);
}

static int complete(struct world *w, struct err *err)
{
	uint64_t bytes = 0;
	int rc = blobs_place_complete(w->blobs, w->sha256, &bytes, err);

	if (rc == 0)
		assert_int_equal(bytes, BYTES);
	return rc;
}

static unsigned files_in(struct world *w, const char *folder)
{
	char path[PATH_MAX];
	struct dirent *entry;
	unsigned count = 0;
	DIR *d;

	snprintf(path, sizeof(path), "%s/%s", w->dir, folder);
	d = opendir(path);
	while (d && (entry = readdir(d)))
		count += entry->d_name[0] != '.';
	if (d)
		closedir(d);
	return count;
}

static unsigned blobs_stored(struct world *w)
{
	char folder[16];

	snprintf(folder, sizeof(folder), "blobs/%.2s", w->sha256);
	return files_in(w, folder);
}

static ino_t inode_of(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0 ? st.st_ino : 0;
}

/* The worker's file still holds what it held. */
static void assert_made_is_whole(struct world *w)
{
	char hex[DIGEST_HEX];

	assert_int_equal(digest_file(made, hex, NULL, NULL), 0);
	assert_string_equal(hex, w->sha256);
}

static void assert_stored(struct world *w)
{
	char path[PATH_MAX], hex[DIGEST_HEX];

	assert_true(blobs_seen_path(w->blobs, w->sha256, path));
	assert_int_equal(digest_file(path, hex, NULL, NULL), 0);
	assert_string_equal(hex, w->sha256);
	assert_int_equal(files_in(w, "uploads"), 0);
}

/* After a file was refused: not there any more, nothing stored, and parts make the blob. */
static void assert_parts_go_on(struct world *w)
{
	struct err err = ERR_INIT;
	uint64_t bytes;

	assert_int_equal(inode_of(w->place), 0);
	assert_int_equal(inode_of(w->taken), 0);
	assert_int_equal(blobs_stored(w), 0);
	send_part(w, 0);
	send_part(w, 1);
	if (blobs_upload_complete(w->blobs, w->sha256, &bytes, &err) != 0)
		fail_msg("%s", err.text);
	assert_stored(w);
}

/* --- what works ------------------------------------------------------------------------- */

static void test_a_placed_file_becomes_the_blob(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	char path[PATH_MAX];

	begin(w);
	assert_int_equal(link(made, w->place), 0);
	if (complete(w, &err) != 0)
		fail_msg("%s", err.text);
	assert_stored(w);
	assert_true(blobs_seen_path(w->blobs, w->sha256, path));
	assert_int_equal(inode_of(path), inode_of(made));
	assert_int_equal(complete(w, &err), 0); /* repeated */
	assert_int_equal(link(made, w->place), 0); /* and again by one who has not heard */
	assert_int_equal(complete(w, &err), 0);
	assert_stored(w);
	assert_int_equal(unlink(made), 0);
	assert_stored(w);
}

static bool keep_none(void *ctx, const char *sha256)
{
	(void)ctx;
	(void)sha256;
	return false;
}

/* Its time is that of the upload, not that of the work: sweeping spares a blob whose row is still to come. */
static void test_an_old_file_is_a_fresh_blob(void **state)
{
	struct world *w = *state;
	const struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 1000 } };
	struct err err = ERR_INIT;

	begin(w);
	assert_int_equal(utimensat(AT_FDCWD, made, old, 0), 0);
	assert_int_equal(link(made, w->place), 0);
	assert_int_equal(complete(w, &err), 0);
	assert_int_equal(blobs_sweep(w->blobs, 3600 * 1000, keep_none, NULL, &err), 0);
	assert_stored(w);
}

static void test_paths_that_are_told(void **state)
{
	struct world *w = *state;
	char here[PATH_MAX], expected[2 * PATH_MAX], path[PATH_MAX];

	assert_non_null(realpath(w->dir, here));
	assert_true(blobs_seen_path(w->blobs, w->sha256, path));
	snprintf(expected, sizeof(expected), "%s/blobs/%.2s/%s", here, w->sha256, w->sha256);
	assert_string_equal(path, expected);
	snprintf(expected, sizeof(expected), "%s/uploads/%s.placed", here, w->sha256);
	assert_string_equal(w->place, expected);
	assert_false(blobs_seen_path(w->blobs, "../../etc/passwd", path));
	assert_false(blobs_place_path(w->blobs, "../../etc/passwd", path));
}

/* In a folder whose absolute path is too long there is a store, but none that can be told. */
static void test_a_folder_too_deep_to_tell(void **state)
{
	struct world *w = *state;
	char name[201], path[PATH_MAX];
	struct blobs *deep;
	int home = open(".", O_RDONLY | O_DIRECTORY);

	memset(name, 'd', 200);
	name[200] = '\0';
	assert_int_equal(chdir(w->dir), 0);
	for (int i = 0; i < PATH_MAX / 200 + 1; i++) {
		assert_int_equal(mkdir(name, 0777), 0);
		assert_int_equal(chdir(name), 0);
	}
	deep = blobs_open("data", NULL);
	assert_non_null(deep);
	assert_int_equal(blobs_put(deep, "x", 1, w->sha256, NULL), 0);
	assert_false(blobs_seen_path(deep, w->sha256, path));
	assert_false(blobs_place_path(deep, w->sha256, path));
	blobs_close(deep);
	assert_int_equal(dir_remove("data", NULL), 0);
	for (int i = 0; i < PATH_MAX / 200 + 1; i++) {
		assert_int_equal(chdir(".."), 0);
		assert_int_equal(rmdir(name), 0);
	}
	assert_int_equal(fchdir(home), 0);
	close(home);
}

/* --- what is refused ------------------------------------------------------------------------ */

static void refuse(struct world *w, enum err_code code, const char *word)
{
	struct err err = ERR_INIT;

	assert_int_equal(complete(w, &err), -1);
	assert_int_equal(err.code, code);
	if (!strstr(err.text, word))
		fail_msg("\"%s\" is not in \"%s\"", word, err.text);
	assert_made_is_whole(w);
	assert_parts_go_on(w);
	assert_made_is_whole(w);
}

static void test_nothing_placed(void **state)
{
	struct world *w = *state;

	begin(w);
	refuse(w, ERR_CONFLICT, "no file was placed");
}

static void test_wrong_digest(void **state)
{
	struct world *w = *state;

	begin(w);
	w->bytes[5] ^= 1;
	write_file(w->place, w->bytes, BYTES);
	w->bytes[5] ^= 1;
	refuse(w, ERR_CORRUPT, w->sha256);
}

static void test_wrong_size(void **state)
{
	struct world *w = *state;

	begin(w);
	write_file(w->place, w->bytes, BYTES - 1);
	refuse(w, ERR_CONFLICT, "8389607 bytes, not 8389608");
}

static void test_symbolic_link(void **state)
{
	struct world *w = *state;
	char target[PATH_MAX];

	begin(w);
	assert_non_null(realpath(made, target));
	assert_int_equal(symlink(target, w->place), 0);
	refuse(w, ERR_CONFLICT, "no regular file");
}

static void test_folder(void **state)
{
	struct world *w = *state;

	begin(w);
	assert_int_equal(mkdir(w->place, 0777), 0);
	refuse(w, ERR_CONFLICT, "no regular file");
}

static void test_fifo(void **state)
{
	struct world *w = *state;

	begin(w);
	assert_int_equal(mkfifo(w->place, 0666), 0);
	refuse(w, ERR_CONFLICT, "no regular file"); /* and does not wait for a writer */
}

static void test_others_may_write(void **state)
{
	static const mode_t modes[] = { 0664, 0646 };
	struct world *w = *state;
	struct err err = ERR_INIT;

	begin(w);
	for (size_t i = 0; i < 2; i++) {
		assert_int_equal(chmod(made, modes[i]), 0);
		assert_int_equal(link(made, w->place), 0);
		assert_int_equal(complete(w, &err), -1);
		assert_int_equal(err.code, ERR_CONFLICT);
	}
	assert_int_equal(link(made, w->place), 0);
	refuse(w, ERR_CONFLICT, "another user may write");
}

/* What is not a file of this coordinator's making stands where it would take the file to. */
static void test_no_way_to_take_it(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	char inside[PATH_MAX + 8];

	begin(w);
	assert_int_equal(mkdir(w->taken, 0777), 0);
	snprintf(inside, sizeof(inside), "%s/x", w->taken);
	write_file(inside, "x", 1);
	assert_int_equal(link(made, w->place), 0);
	assert_int_equal(complete(w, &err), -1);
	assert_int_equal(err.code, ERR_IO);
	assert_int_equal(dir_remove(w->taken, NULL), 0);
	assert_parts_go_on(w);
	assert_made_is_whole(w);
}

static void test_not_begun(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;

	assert_int_equal(link(made, w->place), 0);
	assert_int_equal(complete(w, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(files_in(w, "uploads"), 0);
	assert_int_equal(blobs_place_complete(w->blobs, "../x", &(uint64_t){ 0 }, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
}

/* Parts that are there stay, whatever was placed beside them. */
static void test_parts_stay(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	unsigned char *done;
	size_t parts;

	begin(w);
	send_part(w, 1);
	write_file(w->place, w->bytes, 3);
	assert_int_equal(complete(w, &err), -1);
	assert_int_equal(blobs_upload_begin(w->blobs, w->sha256, BYTES, &done, &parts, &err), 0);
	assert_int_equal(done[0], 0);
	assert_int_equal(done[1], 1);
	mem_free(done);
	assert_int_equal(link(made, w->place), 0);
	assert_int_equal(complete(w, &err), 0); /* and are not needed */
	assert_stored(w);
}

static void test_busy_while_verifying(void **state)
{
	struct world *w = *state;
	struct err err = ERR_INIT;
	struct upload_use *use;

	begin(w);
	assert_int_equal(link(made, w->place), 0);
	use = upload_enter(w->blobs, w->sha256, true, true, &err);
	assert_int_equal(complete(w, &err), -1);
	assert_int_equal(err.code, ERR_BUSY);
	upload_leave(w->blobs, use);
	assert_int_equal(complete(w, &err), 0);
	assert_stored(w);
}

/* --- every operation fails once ---------------------------------------------------------------- */

static unsigned fail_each(struct world *w, void (*arm)(uint64_t nth), enum err_code code)
{
	unsigned nth = 0;
	int rc;

	do {
		struct err err = ERR_INIT;

		begin(w);
		assert_int_equal(link(made, w->place), 0);
		arm(++nth);
		rc = complete(w, &err);
		arm(0);
		if (rc != 0) {
			assert_int_equal(err.code, code);
			unlink(w->place); /* out of memory before it was entered */
			assert_parts_go_on(w);
		}
		assert_stored(w);
		assert_made_is_whole(w);
		assert_int_equal(blobs_delete(w->blobs, w->sha256, &err), 0);
	} while (rc != 0);
	return nth - 1;
}

static void arm_open(uint64_t nth) { file_fail_after(FILE_OPEN, nth); }
static void arm_fsync(uint64_t nth) { file_fail_after(FILE_FSYNC, nth); }
static void arm_rename(uint64_t nth) { file_fail_after(FILE_RENAME, nth); }
static void arm_memory(uint64_t nth) { mem_fail_after(nth); }

static void test_each_operation_fails(void **state)
{
	struct world *w = *state;

	assert_in_range(fail_each(w, arm_open, ERR_IO), 2, 10);
	assert_in_range(fail_each(w, arm_fsync, ERR_IO), 2, 10);
	assert_in_range(fail_each(w, arm_rename, ERR_IO), 1, 1);
	assert_in_range(fail_each(w, arm_memory, ERR_NOMEM), 2, 20);
}

/* --- sweeping -------------------------------------------------------------------------------------- */

static void test_sweep(void **state)
{
	struct world *w = *state;
	const struct timespec old[2] = { { .tv_sec = 1000 }, { .tv_sec = 1000 } };
	struct err err = ERR_INIT;
	char part[PATH_MAX];

	begin(w);
	assert_int_equal(link(made, w->place), 0);
	assert_int_equal(link(made, w->taken), 0); /* killed while verifying */
	assert_int_equal(utimensat(AT_FDCWD, made, old, 0), 0); /* the upload's age counts, not the file's */
	assert_int_equal(blobs_sweep(w->blobs, 3600 * 1000, keep_none, NULL, &err), 0);
	assert_int_equal(files_in(w, "uploads"), 4);
	snprintf(part, sizeof(part), "%s/uploads/%s.part", w->dir, w->sha256);
	assert_int_equal(utimensat(AT_FDCWD, part, old, 0), 0);
	assert_int_equal(blobs_sweep(w->blobs, 3600 * 1000, keep_none, NULL, &err), 0);
	assert_int_equal(files_in(w, "uploads"), 0);
	assert_int_equal(link(made, w->place), 0); /* nobody has begun it */
	assert_int_equal(blobs_sweep(w->blobs, 3600 * 1000, keep_none, NULL, &err), 0);
	assert_int_equal(files_in(w, "uploads"), 0);
	assert_made_is_whole(w);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_a_placed_file_becomes_the_blob), TEST(test_an_old_file_is_a_fresh_blob),
		TEST(test_paths_that_are_told), TEST(test_a_folder_too_deep_to_tell),
		TEST(test_nothing_placed), TEST(test_wrong_digest), TEST(test_wrong_size), TEST(test_symbolic_link),
		TEST(test_folder), TEST(test_fifo), TEST(test_others_may_write), TEST(test_no_way_to_take_it),
		TEST(test_not_begun), TEST(test_parts_stay), TEST(test_busy_while_verifying),
		TEST(test_each_operation_fails), TEST(test_sweep),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
