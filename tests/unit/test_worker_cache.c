/* The worker's blob cache: limits, pins, order of use, restarts. */
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"
#include "worker/cache.h"

static struct cache *open_cache(uint64_t limit)
{
	struct err err = ERR_INIT;
	struct cache *c = cache_open("cache", limit, &err);

	assert_string_equal(err.text, "");
	assert_non_null(c);
	return c;
}

/* A name that looks like a digest: the cache never hashes. */
static const char *name_of(char letter)
{
	static char names[8][DIGEST_HEX];
	static unsigned next;
	char *name = names[next++ % 8];

	memset(name, letter, DIGEST_HEX - 1);
	name[DIGEST_HEX - 1] = '\0';
	return name;
}

static void write_bytes(const char *path, size_t bytes)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	for (size_t i = 0; i < bytes; i++)
		fputc('x', f);
	assert_int_equal(fclose(f), 0);
}

static void add(struct cache *c, char letter, size_t bytes)
{
	struct err err = ERR_INIT;

	write_bytes("made", bytes);
	assert_int_equal(cache_add(c, name_of(letter), "made", &err), 0);
	assert_int_equal(unlink("made"), 0);
}

static void write_part(struct cache *c, char letter, size_t bytes)
{
	char *path = cache_part_path(c, name_of(letter));

	write_bytes(path, bytes);
	mem_free(path);
}

static bool on_disk(struct cache *c, char letter)
{
	char *path = cache_path(c, name_of(letter));
	bool is = file_exists(path);

	mem_free(path);
	return is;
}

static enum cache_state look(struct cache *c, char letter)
{
	uint64_t bytes;

	return cache_find(c, name_of(letter), &bytes);
}

static int fresh(void **state)
{
	(void)state;
	return dir_remove("cache", NULL);
}

static void test_add_and_find(void **state)
{
	struct cache *c = open_cache(1000);
	uint64_t bytes = 0;

	(void)state;
	assert_int_equal(look(c, 'a'), CACHE_ABSENT);
	add(c, 'a', 10);
	assert_int_equal(cache_find(c, name_of('a'), &bytes), CACHE_READY);
	assert_int_equal(bytes, 10);
	add(c, 'a', 10); /* again: no harm */
	assert_int_equal(cache_bytes(c), 10);
	cache_close(c);
}

static void test_least_recently_used_goes_first(void **state)
{
	struct cache *c = open_cache(100);

	(void)state;
	add(c, 'a', 40);
	add(c, 'b', 40);
	assert_int_equal(look(c, 'a'), CACHE_READY); /* now b is older */
	add(c, 'c', 40);
	assert_true(on_disk(c, 'a'));
	assert_false(on_disk(c, 'b'));
	assert_int_equal(look(c, 'b'), CACHE_ABSENT);
	assert_int_equal(cache_bytes(c), 80);
	cache_make_room(c, 50);
	assert_false(on_disk(c, 'a'));
	assert_true(on_disk(c, 'c'));
	cache_make_room(c, UINT64_MAX);
	assert_int_equal(cache_bytes(c), 0);
	cache_close(c);
}

static void test_pinned_stays(void **state)
{
	struct cache *c = open_cache(50);

	(void)state;
	add(c, 'a', 40);
	assert_int_equal(cache_pin(c, name_of('a')), 0);
	assert_int_equal(cache_pin(c, name_of('a')), 0);
	add(c, 'b', 40); /* itself unpinned: it gives way */
	assert_true(on_disk(c, 'a'));
	cache_unpin(c, name_of('a'));
	cache_make_room(c, 50);
	assert_true(on_disk(c, 'a'));
	cache_unpin(c, name_of('a'));
	cache_make_room(c, 50);
	assert_false(on_disk(c, 'a'));
	cache_unpin(c, name_of('a')); /* one too many: nothing happens */
	cache_close(c);
}

static void test_downloads(void **state)
{
	struct cache *c = open_cache(100);
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(cache_pin(c, name_of('d')), 0);
	write_part(c, 'd', 30);
	assert_int_equal(cache_finish_part(c, name_of('d'), &err), 0);
	assert_int_equal(look(c, 'd'), CACHE_READY);
	assert_int_equal(cache_bytes(c), 30);
	cache_unpin(c, name_of('d'));
	assert_int_equal(look(c, 'd'), CACHE_READY);
	/* one that is cut off counts when nobody waits for it any more, and may be evicted */
	assert_int_equal(cache_pin(c, name_of('e')), 0);
	write_part(c, 'e', 60);
	assert_int_equal(cache_bytes(c), 30);
	cache_unpin(c, name_of('e'));
	assert_int_equal(cache_bytes(c), 90);
	assert_int_equal(look(c, 'e'), CACHE_ABSENT);
	assert_int_equal(look(c, 'd'), CACHE_READY);
	add(c, 'f', 50);
	assert_int_equal(cache_bytes(c), 80);
	assert_int_equal(cache_finish_part(c, name_of('e'), &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	cache_close(c);
}

static void test_restart(void **state)
{
	struct cache *c = open_cache(100);
	const char *recent[4];
	struct timespec times[2] = { { .tv_sec = 1000000 }, { .tv_sec = 1000000 } };
	size_t count;
	char *path;

	(void)state;
	add(c, 'a', 20);
	add(c, 'b', 20);
	path = cache_path(c, name_of('b'));
	assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0); /* used long ago */
	mem_free(path);
	write_part(c, 'e', 20);
	cache_close(c);
	write_bytes("cache/not-a-digest", 5);

	c = open_cache(100);
	assert_int_equal(cache_bytes(c), 60);
	cache_recent(c, recent, 4, &count);
	assert_int_equal(count, 2);
	assert_string_equal(recent[0], name_of('a'));
	assert_string_equal(recent[1], name_of('b'));
	cache_recent(c, recent, 1, &count);
	assert_int_equal(count, 1);
	assert_int_equal(look(c, 'a'), CACHE_UNPROVEN);
	cache_verified(c, name_of('a'), true);
	assert_int_equal(look(c, 'a'), CACHE_READY);
	cache_verified(c, name_of('b'), false);
	assert_int_equal(look(c, 'b'), CACHE_ABSENT);
	assert_false(on_disk(c, 'b'));
	cache_close(c);

	c = open_cache(30); /* a smaller limit is kept at once */
	assert_in_range(cache_bytes(c), 0, 30);
	assert_true(file_exists("cache/not-a-digest"));
	cache_close(c);
}

/* --- links to files of the coordinator's store ------------------------------------------------------------- */

static ino_t inode_of(const char *path)
{
	struct stat st;

	assert_int_equal(lstat(path, &st), 0);
	return st.st_ino;
}

static ino_t cached_inode(struct cache *c, char letter)
{
	char *path = cache_path(c, name_of(letter));
	ino_t inode = inode_of(path);

	mem_free(path);
	return inode;
}

static unsigned files_in_cache(void)
{
	unsigned count = 0;
	struct dirent *entry;
	DIR *d = opendir("cache");

	assert_non_null(d);
	while ((entry = readdir(d)))
		count += entry->d_name[0] != '.';
	closedir(d);
	return count;
}

static void test_link(void **state)
{
	struct cache *c = open_cache(100);
	struct timespec times[2] = { { .tv_sec = 1000000 }, { .tv_sec = 1000000 } };
	struct err err = ERR_INIT;
	struct stat st;

	(void)state;
	write_bytes("stored", 30);
	assert_int_equal(utimensat(AT_FDCWD, "stored", times, 0), 0);
	assert_int_equal(cache_pin(c, name_of('d')), 0);
	write_part(c, 'd', 10); /* a download that was begun is not needed any more */
	assert_int_equal(cache_link(c, name_of('d'), "stored", 30, &err), 0);
	cache_unpin(c, name_of('d'));
	assert_int_equal(look(c, 'd'), CACHE_READY);
	assert_int_equal(cached_inode(c, 'd'), inode_of("stored"));
	assert_int_equal(cache_bytes(c), 30); /* counts although it shares its bytes */
	assert_int_equal(stat("stored", &st), 0);
	assert_int_not_equal(st.st_mtim.tv_sec, 1000000); /* used now, for the next process */
	assert_int_equal(cache_link(c, name_of('d'), "stored", 30, &err), 0); /* again: no harm */
	assert_int_equal(cache_bytes(c), 30);
	assert_int_equal(stat("stored", &st), 0);
	assert_int_equal(st.st_nlink, 2);
	add(c, 'e', 90); /* and gives way like any other */
	assert_false(on_disk(c, 'd'));
	assert_int_equal(stat("stored", &st), 0);
	assert_int_equal(st.st_size, 30);
	cache_close(c);
}

/* The part of a download that an earlier process left goes with the link. */
static void test_link_instead_of_an_old_part(void **state)
{
	struct cache *c = open_cache(100);
	struct err err = ERR_INIT;

	(void)state;
	write_part(c, 'd', 10);
	cache_close(c);
	c = open_cache(100);
	assert_int_equal(cache_bytes(c), 10);
	write_bytes("stored", 30);
	assert_int_equal(cache_link(c, name_of('d'), "stored", 30, &err), 0);
	assert_int_equal(cache_bytes(c), 30);
	assert_int_equal(files_in_cache(), 1);
	cache_close(c);
}

static void refuse_link(struct cache *c, const char *path, uint64_t bytes, enum err_code code)
{
	struct err err = ERR_INIT;

	assert_int_equal(cache_link(c, name_of('d'), path, bytes, &err), -1);
	assert_int_equal(err.code, code);
	if (!strstr(err.text, path))
		fail_msg("\"%s\" is not in \"%s\"", path, err.text);
	assert_int_equal(look(c, 'd'), CACHE_ABSENT);
	assert_int_equal(cache_bytes(c), 0);
	assert_int_equal(files_in_cache(), 0);
}

static void test_links_that_cannot_be(void **state)
{
	struct cache *c = open_cache(100);
	struct err err = ERR_INIT;

	(void)state;
	write_bytes("stored", 30);
	refuse_link(c, "no such file", 30, ERR_NOT_FOUND);
	refuse_link(c, "stored", 29, ERR_CONFLICT);
	refuse_link(c, "stored", 31, ERR_CONFLICT);
	refuse_link(c, "/proc/self/status", 0, ERR_IO); /* another file system */
	refuse_link(c, "cache", 30, ERR_IO); /* a folder */
	unlink("symbolic");
	assert_int_equal(symlink("stored", "symbolic"), 0);
	refuse_link(c, "symbolic", 30, ERR_CONFLICT);
	refuse_link(c, "symbolic", 6, ERR_CONFLICT); /* not by its own size either */
	unlink("fifo");
	assert_int_equal(mkfifo("fifo", 0666), 0);
	refuse_link(c, "fifo", 0, ERR_CONFLICT); /* and it is not waited for a writer */
	file_fail_after(FILE_OPEN, 1);
	assert_int_equal(cache_link(c, name_of('d'), "stored", 30, &err), -1); /* may not be read */
	file_fail_after(FILE_OPEN, 0);
	assert_int_equal(files_in_cache(), 0);
	assert_int_equal(mkdir("cache/taken", 0777), 0);
	assert_int_equal(cache_link(c, "taken", "stored", 30, &err), -1); /* its name is a folder's */
	assert_non_null(strstr(err.text, "cannot rename"));
	assert_int_equal(files_in_cache(), 1);
	assert_int_equal(cache_link(c, name_of('d'), "stored", 30, &err), 0);
	cache_close(c);
}

/* Killed between linking and looking: what lies there never counts. */
static void test_half_a_link(void **state)
{
	char name[DIGEST_HEX + 16];
	struct cache *c = open_cache(100);

	(void)state;
	cache_close(c);
	snprintf(name, sizeof(name), "cache/%s.link", name_of('d'));
	write_bytes(name, 30);
	c = open_cache(100);
	assert_int_equal(cache_bytes(c), 0);
	assert_int_equal(look(c, 'd'), CACHE_ABSENT);
	assert_int_equal(files_in_cache(), 0);
	cache_close(c);
}

static void test_link_without_memory(void **state)
{
	struct err err = ERR_INIT;
	bool done = false;
	uint64_t n;

	(void)state;
	write_bytes("stored", 30);
	for (n = 1; !done && n < 100; n++) {
		struct cache *c = open_cache(100);

		mem_fail_after(n);
		done = cache_link(c, name_of('d'), "stored", 30, &err) == 0;
		mem_fail_after(0);
		assert_int_equal(cache_bytes(c), done ? 30 : 0);
		if (!done)
			assert_int_equal(err.code, ERR_NOMEM);
		cache_close(c);
		assert_int_equal(dir_remove("cache", NULL), 0);
	}
	assert_true(done);
	assert_in_range(n, 4, 99);
}

static void test_own_output_replaces_unproven(void **state)
{
	struct cache *c = open_cache(100);
	uint64_t bytes;

	(void)state;
	write_bytes("cache/old", 1);
	add(c, 'a', 20);
	cache_close(c);
	c = open_cache(100);
	assert_int_equal(look(c, 'a'), CACHE_UNPROVEN);
	add(c, 'a', 25);
	assert_int_equal(cache_find(c, name_of('a'), &bytes), CACHE_READY);
	assert_int_equal(bytes, 25);
	assert_int_equal(cache_bytes(c), 25);
	cache_close(c);
}

static void test_errors(void **state)
{
	struct err err = ERR_INIT;
	struct cache *c;

	(void)state;
	write_bytes("file", 1);
	assert_null(cache_open("file/cache", 10, &err));
	assert_non_null(strstr(err.text, "file"));
	c = open_cache(10);
	assert_int_equal(cache_add(c, name_of('a'), "no such file", &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(cache_bytes(c), 0);
	cache_close(c);
}

/* Every allocation fails once; what was done before still holds. */
static void test_without_memory(void **state)
{
	bool done = false;
	uint64_t n;

	(void)state;
	for (n = 1; !done && n < 200; n++) {
		struct err err = ERR_INIT;
		struct cache *c;

		assert_int_equal(dir_remove("cache", NULL), 0);
		write_bytes("made", 5);
		mem_fail_after(n);
		c = cache_open("cache", 100, &err);
		done = c && cache_add(c, name_of('a'), "made", &err) == 0 && cache_pin(c, name_of('b')) == 0;
		mem_fail_after(0);
		if (!c)
			assert_int_equal(err.code, ERR_NOMEM);
		cache_close(c);
	}
	assert_true(done);
	assert_in_range(n, 4, 199);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_add_and_find, fresh),
		cmocka_unit_test_setup(test_least_recently_used_goes_first, fresh),
		cmocka_unit_test_setup(test_pinned_stays, fresh),
		cmocka_unit_test_setup(test_downloads, fresh),
		cmocka_unit_test_setup(test_restart, fresh),
		cmocka_unit_test_setup(test_link, fresh),
		cmocka_unit_test_setup(test_link_instead_of_an_old_part, fresh),
		cmocka_unit_test_setup(test_links_that_cannot_be, fresh),
		cmocka_unit_test_setup(test_half_a_link, fresh),
		cmocka_unit_test_setup(test_link_without_memory, fresh),
		cmocka_unit_test_setup(test_own_output_replaces_unproven, fresh),
		cmocka_unit_test_setup(test_errors, fresh),
		cmocka_unit_test_setup(test_without_memory, fresh),
	};

	return cmocka_run_group_tests_name("worker cache", tests, NULL, NULL);
}
