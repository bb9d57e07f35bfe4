/* Resumable uploads: parts land at their offsets in any order, completing makes the blob.
 *
 * Invariants:
 *  1. A part's byte in <sha256>.parts is set only after all its bytes were written.
 *  2. Part writers share an upload; begin, complete and sweep have it alone. Verifying can take seconds,
 *     so whoever comes meanwhile gets ERR_BUSY instead of blocking an event thread.
 *  3. After a failed fsync the kernel may forget dirty pages, so the upload is dropped, not retried in place.
 *  4. A failed operation leaves either the upload as it was or no upload; never a named blob.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "server/blobs_store.h"

enum { UPLOAD_PARTS_MAX = 1 << 20 };
static const uint64_t disk_reserve_bytes = 64u << 20; /* the database must always be able to grow */

/* --- who is in which upload ------------------------------------------------------ */

static struct upload_use *use_find(struct blobs *b, const char *sha256)
{
	struct upload_use *use = b->uses;

	while (use && strcmp(use->sha256, sha256) != 0)
		use = use->next;
	return use;
}

static struct upload_use *use_add(struct blobs *b, const char *sha256)
{
	struct upload_use *use = mem_alloc(1, sizeof(*use));

	if (!use)
		return NULL;
	memcpy(use->sha256, sha256, DIGEST_HEX);
	use->next = b->uses;
	b->uses = use;
	return use;
}

struct upload_use *upload_enter(struct blobs *b, const char *sha256, bool exclusive, bool verifying,
				struct err *err)
{
	struct upload_use *use;

	if (!digest_is_hex(sha256)) {
		err_set(err, ERR_INVALID,
			"an upload is named u_ and the 64 lower-case hex characters of its SHA-256");
		return NULL;
	}
	pthread_mutex_lock(&b->lock);
	while ((use = use_find(b, sha256)) && (use->exclusive || exclusive)) {
		if (use->verifying) {
			err_set(err, ERR_BUSY, "upload u_%s is being verified; ask again in a moment",
				sha256);
			use = NULL;
			goto out;
		}
		pthread_cond_wait(&b->freed, &b->lock);
	}
	if (!use && !(use = use_add(b, sha256))) {
		err_set_nomem(err, "an upload");
		goto out;
	}
	use->users++;
	use->exclusive = exclusive;
	use->verifying = verifying;
out:
	pthread_mutex_unlock(&b->lock);
	return use;
}

void upload_leave(struct blobs *b, struct upload_use *use)
{
	pthread_mutex_lock(&b->lock);
	if (--use->users == 0) {
		struct upload_use **link = &b->uses;

		while (*link != use)
			link = &(*link)->next;
		*link = use->next;
		mem_free(use);
		pthread_cond_broadcast(&b->freed);
	}
	pthread_mutex_unlock(&b->lock);
}

/* --- the files of an upload --------------------------------------------------------- */

static bool upload_path(const struct blobs *b, const char *sha256, const char *ending, char out[PATH_MAX])
{
	int n = snprintf(out, PATH_MAX, "%s/%s%s", b->uploads_dir, sha256, ending);

	return n > 0 && n < PATH_MAX;
}

int upload_paths(const struct blobs *b, const char *sha256, struct upload_files *f, struct err *err)
{
	if (upload_path(b, sha256, ".part", f->data) && upload_path(b, sha256, ".parts", f->marks) &&
	    upload_path(b, sha256, ".placed", f->placed) && upload_path(b, sha256, ".taken", f->taken))
		return 0;
	return err_set(err, ERR_INVALID, "the data folder's path is too long: %s", b->uploads_dir);
}

void upload_drop(const struct upload_files *f)
{
	unlink(f->marks); /* first: marks without data would promise parts that are not there */
	unlink(f->data);
	remove(f->placed);
	remove(f->taken);
}

static uint64_t parts_of(uint64_t bytes)
{
	return bytes / BLOB_PART_BYTES + (bytes % BLOB_PART_BYTES != 0);
}

int upload_size(const struct upload_files *f, const char *sha256, uint64_t *bytes, struct err *err)
{
	uint64_t marks;

	if (file_size(f->data, bytes, NULL) != 0 || file_size(f->marks, &marks, NULL) != 0 ||
	    marks != parts_of(*bytes))
		return err_set(err, ERR_NOT_FOUND, "no upload u_%s is open; begin it with POST /v1/uploads",
			       sha256);
	return 0;
}

static int make_data(const char *path, uint64_t bytes, struct err *err)
{
	int fd = file_open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644, err);
	int rc = 0;

	if (fd < 0)
		return -1;
	if (ftruncate(fd, (off_t)bytes) != 0)
		rc = err_set_errno(err, errno, "cannot make %s of %llu bytes", path,
				   (unsigned long long)bytes);
	close(fd);
	return rc;
}

static int make_marks(const char *path, size_t parts, struct err *err)
{
	int fd = file_open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644, err);
	unsigned char *zeros = fd < 0 ? NULL : mem_alloc(parts, 1);
	int rc = -1;

	if (fd >= 0 && !zeros)
		err_set_nomem(err, "an upload");
	else if (fd >= 0)
		rc = file_pwrite(fd, zeros, parts, 0, path, err);
	mem_free(zeros);
	if (fd >= 0)
		close(fd);
	return rc;
}

static int upload_make(struct blobs *b, const struct upload_files *f, uint64_t bytes, struct err *err)
{
	uint64_t free_bytes;

	upload_drop(f);
	if (disk_free(b->uploads_dir, &free_bytes, err) != 0)
		return -1;
	if (free_bytes < disk_reserve_bytes || bytes > free_bytes - disk_reserve_bytes)
		return err_set(err, ERR_NOSPC,
			       "the disk has %llu bytes free; an upload of %llu bytes does not fit",
			       (unsigned long long)free_bytes, (unsigned long long)bytes);
	if (make_data(f->data, bytes, err) != 0 || make_marks(f->marks, parts_of(bytes), err) != 0) {
		upload_drop(f);
		return -1;
	}
	return 0;
}

static unsigned char *read_marks(const struct upload_files *f, size_t parts, struct err *err)
{
	size_t len = 0;
	unsigned char *marks = (unsigned char *)file_read_all(f->marks, UPLOAD_PARTS_MAX, &len, err);

	if (marks && len != parts) {
		err_set(err, ERR_CORRUPT, "%s has %zu bytes; there are %zu parts", f->marks, len, parts);
		mem_free(marks);
		return NULL;
	}
	return marks;
}

/* --- requests ---------------------------------------------------------------------- */

int blobs_upload_begin(struct blobs *b, const char *sha256, uint64_t bytes, unsigned char **parts_done,
		       size_t *parts, struct err *err)
{
	struct upload_files f;
	struct upload_use *use;
	uint64_t have;
	int rc = 0;

	if (parts_of(bytes) > UPLOAD_PARTS_MAX)
		return err_set(err, ERR_TOO_LARGE, "an upload may have at most %llu bytes, this one has %llu",
			       (unsigned long long)UPLOAD_PARTS_MAX * BLOB_PART_BYTES,
			       (unsigned long long)bytes);
	use = upload_enter(b, sha256, true, false, err);
	if (!use)
		return -1;
	rc = upload_paths(b, sha256, &f, err);
	if (rc == 0 && (upload_size(&f, sha256, &have, NULL) != 0 || have != bytes))
		rc = upload_make(b, &f, bytes, err);
	if (rc == 0) {
		*parts = (size_t)parts_of(bytes);
		*parts_done = read_marks(&f, *parts, err);
		rc = *parts_done ? 0 : -1;
	}
	upload_leave(b, use);
	return rc;
}

/* Bytes that part `part` must have; -1 when there is no such part. */
static int part_length(uint64_t bytes, size_t part, uint64_t *length, struct err *err)
{
	uint64_t parts = parts_of(bytes);

	if (part >= parts)
		return err_set(err, ERR_INVALID,
			       "there is no part %zu: these %llu bytes have %llu parts, counted from 0",
			       part, (unsigned long long)bytes, (unsigned long long)parts);
	*length = part + 1 < parts ? BLOB_PART_BYTES : bytes - (uint64_t)part * BLOB_PART_BYTES;
	return 0;
}

static int write_at(const char *path, int flags, const void *bytes, size_t len, uint64_t offset,
		    struct err *err)
{
	int fd = file_open(path, O_WRONLY | flags, 0, err);
	int rc = fd < 0 ? -1 : file_pwrite(fd, bytes, len, offset, path, err);

	if (fd >= 0)
		close(fd);
	return rc;
}

int blobs_upload_write(struct blobs *b, const char *sha256, size_t part, uint64_t offset,
		       const void *bytes, size_t len, struct err *err)
{
	struct upload_files f;
	uint64_t total, length = 0;
	struct upload_use *use = upload_enter(b, sha256, false, false, err);
	int rc = -1;

	if (!use)
		return -1;
	if (upload_paths(b, sha256, &f, err) != 0 || upload_size(&f, sha256, &total, err) != 0 ||
	    part_length(total, part, &length, err) != 0)
		goto out;
	if (offset > length || len > length - offset)
		err_set(err, ERR_TOO_LARGE, "part %zu of this upload has %llu bytes; more were sent", part,
			(unsigned long long)length);
	else
		rc = write_at(f.data, 0, bytes, len, (uint64_t)part * BLOB_PART_BYTES + offset, err);
out:
	upload_leave(b, use);
	return rc;
}

int blobs_upload_part_done(struct blobs *b, const char *sha256, size_t part, uint64_t got, struct err *err)
{
	struct upload_files f;
	uint64_t total, length = 0;
	struct upload_use *use = upload_enter(b, sha256, false, false, err);
	int rc = -1;

	if (!use)
		return -1;
	if (upload_paths(b, sha256, &f, err) != 0 || upload_size(&f, sha256, &total, err) != 0 ||
	    part_length(total, part, &length, err) != 0)
		goto out;
	if (got != length)
		err_set(err, ERR_INVALID, "part %zu of this upload must have %llu bytes, %llu came", part,
			(unsigned long long)length, (unsigned long long)got);
	else
		rc = write_at(f.marks, 0, "\1", 1, part, err);
out:
	upload_leave(b, use);
	return rc;
}

/* --- completing --------------------------------------------------------------------- */

static int check_parts(const struct upload_files *f, uint64_t bytes, struct err *err)
{
	size_t parts = (size_t)parts_of(bytes);
	unsigned char *marks = read_marks(f, parts, err);
	int rc = marks ? 0 : -1;

	for (size_t i = 0; rc == 0 && i < parts; i++)
		if (!marks[i])
			rc = err_set(err, ERR_CONFLICT, "part %zu of %zu has not been uploaded", i, parts);
	mem_free(marks);
	return rc;
}

int upload_verify(const char *path, const char *sha256, struct err *err)
{
	char hex[DIGEST_HEX];

	if (digest_file(path, hex, NULL, err) != 0)
		return -1;
	if (strcmp(hex, sha256) == 0)
		return 1;
	err_set(err, ERR_CORRUPT, "the uploaded bytes have SHA-256 %s, not %s; upload them again", hex, sha256);
	return 0;
}

static int check_digest(const struct upload_files *f, const char *sha256, struct err *err)
{
	int right = upload_verify(f->data, sha256, err);

	if (right == 0)
		upload_drop(f);
	return right == 1 ? 0 : -1;
}

int upload_flush(int fd, const char *path, struct err *err)
{
	futimens(fd, NULL);
	return file_sync(fd, path, err);
}

static int flush_data(const struct upload_files *f, struct err *err)
{
	int fd = file_open(f->data, O_WRONLY, 0, err);
	int rc;

	if (fd < 0)
		return -1;
	rc = upload_flush(fd, f->data, err);
	close(fd);
	if (rc != 0)
		upload_drop(f);
	return rc;
}

int upload_name(struct blobs *b, const char *path, const char *sha256, struct err *err)
{
	char name[PATH_MAX];

	if (blob_path(b, sha256, name, err) != 0 || blob_make_folder(b, sha256, err) != 0)
		return -1;
	if (file_rename_durable(path, name, err) == 0)
		return 0;
	if (file_exists(name) && rename(name, path) != 0)
		unlink(name);
	return -1;
}

static int complete_inside(struct blobs *b, const char *sha256, upload_store_fn store, uint64_t *bytes, struct err *err)
{
	struct upload_files f;

	if (upload_paths(b, sha256, &f, err) != 0)
		return -1;
	if (blobs_has(b, sha256, bytes)) { /* repeated, or a second uploader was faster */
		upload_drop(&f);
		return 0;
	}
	if (store(b, &f, sha256, bytes, err) != 0)
		return -1;
	upload_drop(&f);
	return 0;
}

int upload_complete(struct blobs *b, const char *sha256, upload_store_fn store, uint64_t *bytes, struct err *err)
{
	struct upload_use *use = upload_enter(b, sha256, true, true, err);
	int rc;

	if (!use)
		return -1;
	rc = complete_inside(b, sha256, store, bytes, err);
	upload_leave(b, use);
	return rc;
}

static int store_parts(struct blobs *b, const struct upload_files *f, const char *sha256, uint64_t *bytes, struct err *err)
{
	if (upload_size(f, sha256, bytes, err) != 0 || check_parts(f, *bytes, err) != 0 ||
	    check_digest(f, sha256, err) != 0 || flush_data(f, err) != 0)
		return -1;
	return upload_name(b, f->data, sha256, err);
}

int blobs_upload_complete(struct blobs *b, const char *sha256, uint64_t *bytes, struct err *err)
{
	return upload_complete(b, sha256, store_parts, bytes, err);
}

/* --- sweeping ------------------------------------------------------------------------ */

static void sweep_one(struct blobs *b, const char *name, int64_t oldest_ms)
{
	char sha256[DIGEST_HEX];
	struct upload_files f;
	struct upload_use *use;
	struct stat st;

	snprintf(sha256, sizeof(sha256), "%.64s", name);
	use = upload_enter(b, sha256, true, false, NULL);
	if (!use)
		return;
	if (upload_paths(b, sha256, &f, NULL) == 0 &&
	    (stat(f.data, &st) != 0 || (int64_t)st.st_mtime * 1000 <= oldest_ms))
		upload_drop(&f);
	upload_leave(b, use);
}

int upload_sweep(struct blobs *b, int64_t oldest_ms, struct err *err)
{
	DIR *d = opendir(b->uploads_dir);
	struct dirent *entry;

	if (!d)
		return err_set_errno(err, errno, "cannot open folder %s", b->uploads_dir);
	while ((entry = readdir(d)))
		if (strlen(entry->d_name) > 64 && entry->d_name[64] == '.')
			sweep_one(b, entry->d_name, oldest_ms);
	closedir(d);
	return 0;
}
