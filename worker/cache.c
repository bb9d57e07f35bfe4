/* A table of what the folder holds. It is small (hundreds to some thousands of blobs), so an array is searched;
 * `used` counts up with every use and orders eviction. Cut-off downloads are entries too
 * (part = true): they count and are evicted like blobs. */
#include "worker/cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"

enum { ENTRIES_MAX = 1 << 20 };

struct entry {
	char sha256[DIGEST_HEX];
	bool whole;             /* <sha256> exists */
	bool proven;            /* its digest was checked by this process */
	bool part;              /* <sha256>.part may exist */
	unsigned pins;
	uint64_t bytes;         /* of the whole blob */
	uint64_t part_bytes;    /* of a part left by an earlier process */
	int64_t used;           /* larger = later */
};

struct cache {
	char *dir;
	uint64_t limit;
	uint64_t bytes;         /* sum over whole blobs and old parts */
	int64_t last_use;
	struct entry *entries;
	size_t count, cap;
};

/* --- entries ----------------------------------------------------------------------------------------- */

static struct entry *find(const struct cache *c, const char *sha256)
{
	for (size_t i = 0; i < c->count; i++)
		if (memcmp(c->entries[i].sha256, sha256, DIGEST_HEX - 1) == 0)
			return &c->entries[i];
	return NULL;
}

static struct entry *find_or_add(struct cache *c, const char *sha256)
{
	struct entry *e = find(c, sha256);

	if (e)
		return e;
	if (c->count == c->cap) {
		size_t cap = c->cap ? c->cap * 2 : 64;
		struct entry *grown = cap <= ENTRIES_MAX ? mem_realloc(c->entries, cap, sizeof(*grown)) : NULL;

		if (!grown)
			return NULL;
		c->entries = grown;
		c->cap = cap;
	}
	e = &c->entries[c->count++];
	*e = (struct entry){ .pins = 0 };
	snprintf(e->sha256, sizeof(e->sha256), "%s", sha256);
	return e;
}

/* Takes out an entry that stands for nothing any more. */
static void drop_if_empty(struct cache *c, struct entry *e)
{
	if (!e->whole && !e->part && e->pins == 0)
		*e = c->entries[--c->count];
}

char *cache_path(const struct cache *c, const char *sha256)
{
	return path_join(c->dir, sha256);
}

char *cache_part_path(const struct cache *c, const char *sha256)
{
	char name[DIGEST_HEX + 8];

	snprintf(name, sizeof(name), "%s.part", sha256);
	return path_join(c->dir, name);
}

static char *link_path(const struct cache *c, const char *sha256)
{
	char name[DIGEST_HEX + 8];

	snprintf(name, sizeof(name), "%s.link", sha256);
	return path_join(c->dir, name);
}

static void remove_file(char *path)
{
	if (path && unlink(path) != 0 && errno != ENOENT)
		log_warn("cannot remove %s from the cache: %s", path, strerror(errno));
	mem_free(path);
}

static void forget_whole(struct cache *c, struct entry *e)
{
	if (!e->whole)
		return;
	remove_file(cache_path(c, e->sha256));
	c->bytes -= e->bytes;
	e->whole = e->proven = false;
	e->bytes = 0;
}

static void forget_part(struct cache *c, struct entry *e)
{
	if (!e->part)
		return;
	remove_file(cache_part_path(c, e->sha256));
	c->bytes -= e->part_bytes;
	e->part = false;
	e->part_bytes = 0;
}

static void touch(struct cache *c, struct entry *e)
{
	char *path = e->whole ? cache_path(c, e->sha256) : NULL;

	e->used = ++c->last_use;
	if (path)
		utimensat(AT_FDCWD, path, NULL, 0); /* for the next process; best effort */
	mem_free(path);
}

/* --- opening ------------------------------------------------------------------------------------------ */

/* What an earlier process left: true for "<64 hex>" with the ending "", ".part" or ".link". */
static bool split_name(const char *name, char sha256[DIGEST_HEX], const char **ending)
{
	if (strlen(name) < DIGEST_HEX - 1)
		return false;
	snprintf(sha256, DIGEST_HEX, "%.64s", name);
	*ending = name + DIGEST_HEX - 1;
	return digest_is_hex(sha256) &&
	       (**ending == '\0' || strcmp(*ending, ".part") == 0 || strcmp(*ending, ".link") == 0);
}

static int take_over(struct cache *c, const char *name, struct err *err)
{
	char sha256[DIGEST_HEX];
	const char *ending;
	struct stat st;
	struct entry *e;
	char *path;
	int rc;

	if (!split_name(name, sha256, &ending))
		return 0;
	path = path_join(c->dir, name);
	if (strcmp(ending, ".link") == 0) { /* never became a blob */
		remove_file(path);
		return 0;
	}
	rc = path ? lstat(path, &st) : -1;
	mem_free(path);
	if (rc != 0 || !S_ISREG(st.st_mode))
		return 0;
	e = find_or_add(c, sha256);
	if (!e)
		return err_set_nomem(err, "the cache's table");
	if (*ending) {
		e->part = true;
		e->part_bytes = (uint64_t)st.st_size;
	} else {
		e->whole = true;
		e->bytes = (uint64_t)st.st_size;
	}
	c->bytes += (uint64_t)st.st_size;
	if (e->used < st.st_mtim.tv_sec * 1000 + st.st_mtim.tv_nsec / 1000000)
		e->used = st.st_mtim.tv_sec * 1000 + st.st_mtim.tv_nsec / 1000000;
	return 0;
}

static int by_use(const void *a, const void *b)
{
	int64_t x = ((const struct entry *)a)->used, y = ((const struct entry *)b)->used;

	return (x > y) - (x < y);
}

static int scan(struct cache *c, struct err *err)
{
	DIR *dir = opendir(c->dir);
	struct dirent *item;
	int rc = 0;

	if (!dir)
		return err_set_errno(err, errno, "cannot open the cache folder %s", c->dir);
	while (rc == 0 && (item = readdir(dir)))
		rc = take_over(c, item->d_name, err);
	closedir(dir);
	if (c->count > 1)
		qsort(c->entries, c->count, sizeof(*c->entries), by_use);
	for (size_t i = 0; i < c->count; i++)
		c->entries[i].used = ++c->last_use;
	return rc;
}

struct cache *cache_open(const char *dir, uint64_t limit_bytes, struct err *err)
{
	struct cache *c = mem_alloc(1, sizeof(*c));

	if (!c || !(c->dir = mem_strdup(dir))) {
		err_set_nomem(err, "the cache");
		goto fail;
	}
	c->limit = limit_bytes;
	if (dir_make(dir, err) != 0 || scan(c, err) != 0)
		goto fail;
	cache_make_room(c, 0);
	return c;
fail:
	cache_close(c);
	return NULL;
}

void cache_close(struct cache *c)
{
	if (!c)
		return;
	mem_free(c->entries);
	mem_free(c->dir);
	mem_free(c);
}

/* --- use ------------------------------------------------------------------------------------------------ */

enum cache_state cache_find(struct cache *c, const char *sha256, uint64_t *bytes)
{
	struct entry *e = find(c, sha256);

	if (!e || !e->whole)
		return CACHE_ABSENT;
	touch(c, e);
	*bytes = e->bytes;
	return e->proven ? CACHE_READY : CACHE_UNPROVEN;
}

int cache_pin(struct cache *c, const char *sha256)
{
	struct entry *e = find_or_add(c, sha256);

	if (!e)
		return -1;
	e->pins++;
	return 0;
}

void cache_unpin(struct cache *c, const char *sha256)
{
	struct entry *e = find(c, sha256);

	if (!e || e->pins == 0)
		return;
	e->pins--;
	/* A download that was cut off: from now on its bytes count, and may be evicted. */
	if (e->pins == 0 && !e->whole) {
		char *path = cache_part_path(c, sha256);
		uint64_t bytes;

		if (path && file_size(path, &bytes, NULL) == 0) {
			c->bytes = c->bytes - e->part_bytes + bytes;
			e->part = true;
			e->part_bytes = bytes;
			e->used = ++c->last_use;
		}
		mem_free(path);
	}
	drop_if_empty(c, e);
}

void cache_verified(struct cache *c, const char *sha256, bool right)
{
	struct entry *e = find(c, sha256);

	if (!e || !e->whole)
		return;
	if (right) {
		e->proven = true;
		return;
	}
	log_warn("%s in the cache does not have that digest any more; it is fetched again", sha256);
	forget_whole(c, e);
	drop_if_empty(c, e);
}

/* The file dir/<sha256> is there now, verified. */
static int became_whole(struct cache *c, const char *sha256, struct err *err)
{
	struct entry *e = find_or_add(c, sha256);
	char *path = cache_path(c, sha256);
	uint64_t bytes = 0;
	int rc = -1;

	if (!e || !path)
		err_set_nomem(err, "the cache's table");
	else
		rc = file_size(path, &bytes, err);
	if (rc == 0) {
		if (e->whole)
			c->bytes -= e->bytes;
		e->whole = e->proven = true;
		e->bytes = bytes;
		e->used = ++c->last_use;
		c->bytes += bytes;
	}
	mem_free(path);
	return rc;
}

int cache_finish_part(struct cache *c, const char *sha256, struct err *err)
{
	char *part = cache_part_path(c, sha256), *path = cache_path(c, sha256);
	struct entry *e = find(c, sha256);
	int rc = -1;

	if (!part || !path) {
		err_set_nomem(err, "a path");
	} else if (rename(part, path) != 0) {
		err_set_errno(err, errno, "cannot rename %s", part);
	} else {
		if (e) {
			c->bytes -= e->part_bytes;
			e->part = false;
			e->part_bytes = 0;
		}
		rc = became_whole(c, sha256, err);
	}
	mem_free(part);
	mem_free(path);
	return rc;
}

int cache_add(struct cache *c, const char *sha256, const char *path, struct err *err)
{
	struct entry *e = find(c, sha256);
	char *to;
	int rc = 0;

	if (e && e->whole && e->proven) {
		e->used = ++c->last_use;
		return 0;
	}
	to = cache_path(c, sha256);
	if (!to)
		return err_set_nomem(err, "a path");
	unlink(to); /* an unproven file of that name gives way */
	if (link(path, to) != 0)
		rc = err_set_errno(err, errno, "cannot link %s into the cache", path);
	mem_free(to);
	if (rc == 0)
		rc = became_whole(c, sha256, err);
	if (rc == 0)
		cache_make_room(c, 0);
	return rc;
}

/* The new name may be a link to anything. */
static int check_link(const char *name, const char *path, uint64_t bytes, struct err *err)
{
	struct stat st;
	int fd;

	if (lstat(name, &st) != 0)
		return err_set_errno(err, errno, "cannot stat %s", name);
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != bytes)
		return err_set(err, ERR_CONFLICT, "%s is no regular file of %llu bytes", path, (unsigned long long)bytes);
	fd = file_open(name, O_RDONLY | O_NOFOLLOW, 0, err);
	if (fd < 0)
		return -1;
	close(fd);
	return 0;
}

int cache_link(struct cache *c, const char *sha256, const char *path, uint64_t bytes, struct err *err)
{
	char *name = link_path(c, sha256), *to = cache_path(c, sha256);
	struct entry *e = find(c, sha256);
	int rc = -1;

	if (!name || !to) {
		err_set_nomem(err, "a path");
	} else if (linkat(AT_FDCWD, path, AT_FDCWD, name, 0) != 0) { /* 0: no symbolic link is followed */
		err_set_errno(err, errno, "cannot link %s into the cache", path);
	} else if (check_link(name, path, bytes, err) == 0 && (rc = rename(name, to)) != 0) {
		err_set_errno(err, errno, "cannot rename %s", name);
	}
	if (name)
		unlink(name); /* what is wrong; or the same file as `to`, which rename() leaves alone */
	if (rc == 0 && e)
		forget_part(c, e);
	if (rc == 0)
		rc = became_whole(c, sha256, err);
	if (rc == 0)
		touch(c, find(c, sha256));
	mem_free(name);
	mem_free(to);
	return rc;
}

/* The least recently used blob or part that nobody holds. */
static struct entry *oldest(const struct cache *c)
{
	struct entry *best = NULL;

	for (size_t i = 0; i < c->count; i++) {
		struct entry *e = &c->entries[i];

		if (e->pins == 0 && (e->whole || e->part) && (!best || e->used < best->used))
			best = e;
	}
	return best;
}

void cache_make_room(struct cache *c, uint64_t bytes)
{
	uint64_t goal = bytes < c->limit ? c->limit - bytes : 0;
	struct entry *e;

	while (c->bytes > goal && (e = oldest(c))) {
		log_debug("cache: %s (%llu bytes) is evicted", e->sha256, (unsigned long long)e->bytes);
		forget_whole(c, e);
		forget_part(c, e);
		drop_if_empty(c, e);
	}
}

void cache_recent(const struct cache *c, const char **sha256, size_t max, size_t *count)
{
	int64_t below = INT64_MAX;

	for (*count = 0; *count < max; ++*count) {
		const struct entry *best = NULL;

		for (size_t i = 0; i < c->count; i++) {
			const struct entry *e = &c->entries[i];

			if (e->whole && e->used < below && (!best || e->used > best->used))
				best = e;
		}
		if (!best)
			break;
		below = best->used;
		sha256[*count] = best->sha256;
	}
}

uint64_t cache_bytes(const struct cache *c)
{
	return c->bytes;
}
