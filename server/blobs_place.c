/* Uploads without sending: a worker on this host makes a hard link to its file at <sha256>.placed and says so.
 *
 * Invariants:
 *  1. What becomes a blob was verified under a name (<sha256>.taken) that nobody is told and nobody else uses: the file at
 *     <sha256>.placed may be exchanged at any time, also by an honest worker with the same bytes.
 *  2. Parts are never written into a placed file: it is the worker's own too. It becomes a blob, or is removed.
 *  3. Only a regular file that belongs to the coordinator's user, and that nobody else may write, becomes a blob. Whoever
 *     may write to it after it was verified (a worker under the same user that kept it open) may write to the files below
 *     blobs/ anyway; a worker under another user sends its bytes.
 *  4. A file whose flush failed does not become a blob by another attempt at flushing it: it is removed, and the bytes are sent.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "server/blobs_store.h"

bool blobs_place_path(const struct blobs *b, const char *sha256, char out[PATH_MAX])
{
	int n;

	if (!b->seen_uploads || !digest_is_hex(sha256))
		return false;
	n = snprintf(out, PATH_MAX, "%s/%s.placed", b->seen_uploads, sha256);
	return n > 0 && n < PATH_MAX;
}

/* Moves it where nobody else will exchange it. */
static int take(const struct upload_files *f, const char *sha256, struct err *err)
{
	remove(f->taken); /* of a coordinator that was killed here */
	if (rename(f->placed, f->taken) == 0)
		return 0;
	if (errno == ENOENT)
		return err_set(err, ERR_CONFLICT, "no file was placed for upload u_%s; send its parts", sha256);
	return err_set_errno(err, errno, "cannot take %s", f->placed);
}

static int check_file(const struct upload_files *f, const char *sha256, uint64_t bytes, struct err *err)
{
	struct stat st;

	if (lstat(f->taken, &st) != 0)
		return err_set_errno(err, errno, "cannot stat %s", f->taken);
	if (!S_ISREG(st.st_mode))
		return err_set(err, ERR_CONFLICT, "what was placed for upload u_%s is no regular file; send its parts",
			       sha256);
	if (st.st_uid != geteuid() || (st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
		return err_set(err, ERR_CONFLICT,
			       "another user may write to the file placed for upload u_%s; send its parts", sha256);
	if ((uint64_t)st.st_size != bytes)
		return err_set(err, ERR_CONFLICT, "the file placed for upload u_%s has %llu bytes, not %llu; send its parts",
			       sha256, (unsigned long long)st.st_size, (unsigned long long)bytes);
	return 0;
}

static int flush(const char *path, struct err *err)
{
	int fd = file_open(path, O_RDONLY | O_NOFOLLOW, 0, err);
	int rc = fd < 0 ? -1 : upload_flush(fd, path, err);

	if (fd >= 0)
		close(fd);
	return rc;
}

static int take_placed(struct blobs *b, const struct upload_files *f, const char *sha256, uint64_t bytes, struct err *err)
{
	if (take(f, sha256, err) != 0 || check_file(f, sha256, bytes, err) != 0 ||
	    upload_verify(f->taken, sha256, err) != 1 || flush(f->taken, err) != 0)
		return -1;
	return upload_name(b, f->taken, sha256, err);
}

static int store_placed(struct blobs *b, const struct upload_files *f, const char *sha256, uint64_t *bytes, struct err *err)
{
	if (upload_size(f, sha256, bytes, err) == 0 && take_placed(b, f, sha256, *bytes, err) == 0)
		return 0;
	remove(f->placed);
	remove(f->taken);
	return -1;
}

int blobs_place_complete(struct blobs *b, const char *sha256, uint64_t *bytes, struct err *err)
{
	return upload_complete(b, sha256, store_placed, bytes, err);
}
