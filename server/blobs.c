/* Content-addressed files.
 *
 * Invariants:
 *  1. A file below blobs/ under a digest's name holds exactly those bytes, on disk: it gets its name
 *     only after verify and fsync, and a failed fsync of its folder takes the name away again.
 *  2. blobs_open() flushes every folder, so that a name that a crash left in memory only is on disk
 *     before anybody can ask for it.
 *  3. Names come from digest_is_hex() strings only; nothing a client sends becomes a path otherwise.
 *  4. Nobody writes into a file that has its name: workers on this host may have hard links to it (and set its times).
 * Owns DATA/blobs and DATA/uploads. Must not know SQL, HTTP or jobs.
 */
#include "server/blobs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "server/blobs_store.h"

int blob_path(const struct blobs *b, const char *sha256, char out[PATH_MAX], struct err *err)
{
	int n;

	if (!digest_is_hex(sha256))
		return err_set(err, ERR_INVALID,
			       "a blob is named by the 64 lower-case hex characters of its SHA-256");
	n = snprintf(out, PATH_MAX, "%s/%.2s/%s", b->blobs_dir, sha256, sha256);
	if (n < 0 || n >= PATH_MAX)
		return err_set(err, ERR_INVALID, "the data folder's path is too long: %s", b->blobs_dir);
	return 0;
}

int blob_make_folder(struct blobs *b, const char *sha256, struct err *err)
{
	char path[PATH_MAX];

	if (blob_path(b, sha256, path, err) != 0)
		return -1;
	*strrchr(path, '/') = '\0';
	if (mkdir(path, 0777) != 0)
		return errno == EEXIST ? 0 : err_set_errno(err, errno, "cannot make folder %s", path);
	if (file_sync_parent(path, err) == 0)
		return 0;
	rmdir(path); /* a later call must flush it, not find it */
	return -1;
}

/* Calls visit(path, name) for each entry of a folder that does not start with a dot; stops at -1. */
static int each_entry(const char *dir, int (*visit)(void *ctx, const char *path, const char *name),
		      void *ctx, struct err *err)
{
	DIR *d = opendir(dir);
	struct dirent *entry;
	int rc = 0;

	if (!d)
		return err_set_errno(err, errno, "cannot open folder %s", dir);
	while (rc == 0 && (entry = readdir(d))) {
		char *path;

		if (entry->d_name[0] == '.')
			continue;
		path = path_join(dir, entry->d_name);
		rc = path ? visit(ctx, path, entry->d_name) : err_set_nomem(err, "a path");
		mem_free(path);
	}
	closedir(d);
	return rc;
}

static int flush_folder(void *ctx, const char *path, const char *name)
{
	struct err *err = ctx;
	int fd, rc;

	if (strlen(name) != 2)
		return 0;
	fd = file_open(path, O_RDONLY | O_DIRECTORY, 0, err);
	rc = fd < 0 ? -1 : file_sync(fd, path, err);
	if (fd >= 0)
		close(fd);
	return rc;
}

struct blobs *blobs_open(const char *data_dir, struct err *err)
{
	struct blobs *b = mem_alloc(1, sizeof(*b));

	if (!b) {
		err_set_nomem(err, "the blob store");
		return NULL;
	}
	pthread_mutex_init(&b->lock, NULL);
	pthread_cond_init(&b->freed, NULL);
	b->blobs_dir = path_join(data_dir, "blobs");
	b->uploads_dir = path_join(data_dir, "uploads");
	if (!b->blobs_dir || !b->uploads_dir) {
		err_set_nomem(err, "the blob store");
		goto fail;
	}
	if (dir_make(b->blobs_dir, err) != 0 || dir_make(b->uploads_dir, err) != 0 ||
	    file_sync_parent(b->blobs_dir, err) != 0 ||
	    each_entry(b->blobs_dir, flush_folder, err, err) != 0)
		goto fail;
	b->seen_blobs = realpath(b->blobs_dir, NULL);
	b->seen_uploads = realpath(b->uploads_dir, NULL);
	return b;
fail:
	blobs_close(b);
	return NULL;
}

void blobs_close(struct blobs *b)
{
	if (!b)
		return;
	pthread_cond_destroy(&b->freed);
	pthread_mutex_destroy(&b->lock);
	mem_free(b->blobs_dir);
	mem_free(b->uploads_dir);
	free(b->seen_blobs); /* realpath() made them */
	free(b->seen_uploads);
	mem_free(b);
}

bool blobs_seen_path(const struct blobs *b, const char *sha256, char out[PATH_MAX])
{
	int n;

	if (!b->seen_blobs || !digest_is_hex(sha256))
		return false;
	n = snprintf(out, PATH_MAX, "%s/%.2s/%s", b->seen_blobs, sha256, sha256);
	return n > 0 && n < PATH_MAX;
}

bool blobs_has(struct blobs *b, const char *sha256, uint64_t *bytes)
{
	char path[PATH_MAX];
	struct stat st;

	if (blob_path(b, sha256, path, NULL) != 0 || stat(path, &st) != 0 || !S_ISREG(st.st_mode))
		return false;
	if (bytes)
		*bytes = (uint64_t)st.st_size;
	return true;
}

int blobs_open_fd(struct blobs *b, const char *sha256, uint64_t *bytes, struct err *err)
{
	char path[PATH_MAX];
	struct stat st;
	int fd;

	if (blob_path(b, sha256, path, err) != 0)
		return -1;
	if (!blobs_has(b, sha256, NULL))
		return err_set(err, ERR_NOT_FOUND, "no blob %s is stored", sha256);
	fd = file_open(path, O_RDONLY | O_NOFOLLOW, 0, err);
	if (fd < 0)
		return -1;
	if (fstat(fd, &st) != 0) {
		err_set_errno(err, errno, "cannot stat %s", path);
		close(fd);
		return -1;
	}
	*bytes = (uint64_t)st.st_size;
	return fd;
}

int blobs_put(struct blobs *b, const void *bytes, size_t len, char sha256[DIGEST_HEX], struct err *err)
{
	char path[PATH_MAX];

	if (digest_of(bytes, len, sha256) != 0)
		return err_set_nomem(err, "a digest");
	if (blobs_has(b, sha256, NULL))
		return 0;
	if (blob_path(b, sha256, path, err) != 0 || blob_make_folder(b, sha256, err) != 0)
		return -1;
	if (file_write_atomic(path, bytes, len, err) != 0) {
		unlink(path); /* the name may be there without having reached the disk */
		return -1;
	}
	return 0;
}

int blobs_delete(struct blobs *b, const char *sha256, struct err *err)
{
	char path[PATH_MAX];

	if (blob_path(b, sha256, path, err) != 0)
		return -1;
	if (unlink(path) != 0 && errno != ENOENT)
		return err_set_errno(err, errno, "cannot remove %s", path);
	return 0;
}

/* --- sweeping ------------------------------------------------------------------- */

struct sweep {
	int64_t oldest_ms;
	bool (*keep)(void *ctx, const char *sha256);
	void *ctx;
	struct err *err;
};

static int sweep_blob(void *ctx, const char *path, const char *name)
{
	const struct sweep *s = ctx;
	struct stat st;

	/* Age protects a blob between its rename and its row; ".tmp" is what a crash in blobs_put() left. */
	if (stat(path, &st) != 0 || (int64_t)st.st_mtime * 1000 > s->oldest_ms)
		return 0;
	if (digest_is_hex(name) ? s->keep(s->ctx, name) : !strstr(name, ".tmp"))
		return 0;
	if (unlink(path) != 0 && errno != ENOENT)
		return err_set_errno(s->err, errno, "cannot remove %s", path);
	return 0;
}

static int sweep_folder(void *ctx, const char *path, const char *name)
{
	struct sweep *s = ctx;

	return strlen(name) == 2 ? each_entry(path, sweep_blob, s, s->err) : 0;
}

int blobs_sweep(struct blobs *b, int64_t age_ms, bool (*keep)(void *ctx, const char *sha256), void *ctx,
		struct err *err)
{
	struct timespec now;
	struct sweep s = { .keep = keep, .ctx = ctx, .err = err };

	clock_gettime(CLOCK_REALTIME, &now); /* compared with the file system's times, not the engine's */
	s.oldest_ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000 - age_ms;
	if (upload_sweep(b, s.oldest_ms, err) != 0)
		return -1;
	return each_entry(b->blobs_dir, sweep_folder, &s, err);
}
