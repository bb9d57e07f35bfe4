#include "common/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/alloc.h"

/* --- fault injection ---------------------------------------------------------- */

enum { FILE_OPS = FILE_RENAME + 1 };

static const char *const op_names[FILE_OPS] = {
	[FILE_OPEN] = "open", [FILE_READ] = "read", [FILE_WRITE] = "write",
	[FILE_FSYNC] = "fsync", [FILE_RENAME] = "rename",
};
static atomic_uint_fast64_t op_countdown[FILE_OPS];

void file_fail_after(enum file_op op, uint64_t nth)
{
	atomic_store(&op_countdown[op], nth);
}

__attribute__((constructor)) static void file_read_environment(void)
{
	const char *text = getenv("QUARRY_FAIL_IO");
	const char *colon = text ? strchr(text, ':') : NULL;

	for (int op = 0; colon && op < FILE_OPS; op++)
		if (strlen(op_names[op]) == (size_t)(colon - text) &&
		    strncmp(op_names[op], text, (size_t)(colon - text)) == 0)
			file_fail_after((enum file_op)op, strtoull(colon + 1, NULL, 10));
}

/* 0, or -1 with errno set when this operation is the one to fail. */
static int op_check(enum file_op op)
{
	uint64_t left = atomic_load(&op_countdown[op]);

	while (left != 0 && !atomic_compare_exchange_weak(&op_countdown[op], &left, left - 1))
		;
	if (left != 1)
		return 0;
	errno = op == FILE_WRITE ? ENOSPC : EIO;
	return -1;
}

/* --- descriptors -------------------------------------------------------------- */

int file_open(const char *path, int flags, mode_t mode, struct err *err)
{
	int fd = op_check(FILE_OPEN) == 0 ? open(path, flags | O_CLOEXEC, mode) : -1;

	if (fd < 0)
		return err_set_errno(err, errno, "cannot open %s", path);
	return fd;
}

int file_pread(int fd, void *bytes, size_t len, uint64_t offset, const char *path, struct err *err)
{
	size_t done = 0;

	while (done < len) {
		ssize_t got = op_check(FILE_READ) == 0
			? pread(fd, (char *)bytes + done, len - done, (off_t)(offset + done)) : -1;

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return err_set_errno(err, errno, "cannot read %s", path);
		if (got == 0)
			return err_set(err, ERR_CORRUPT, "%s ends at byte %llu, %zu bytes short", path,
				       (unsigned long long)(offset + done), len - done);
		done += (size_t)got;
	}
	return 0;
}

int file_pwrite(int fd, const void *bytes, size_t len, uint64_t offset, const char *path,
		struct err *err)
{
	size_t done = 0;

	while (done < len) {
		ssize_t put = op_check(FILE_WRITE) == 0
			? pwrite(fd, (const char *)bytes + done, len - done, (off_t)(offset + done)) : -1;

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return err_set_errno(err, errno, "cannot write %s", path);
		done += (size_t)put;
	}
	return 0;
}

int file_sync(int fd, const char *path, struct err *err)
{
	if (op_check(FILE_FSYNC) != 0 || fsync(fd) != 0)
		return err_set_errno(err, errno, "cannot flush %s to disk", path);
	return 0;
}

int file_sync_parent(const char *path, struct err *err)
{
	char *parent = mem_strdup(path);
	char *slash;
	int fd, rc;

	if (!parent)
		return err_set_nomem(err, "a path");
	slash = strrchr(parent, '/');
	if (slash)
		slash[slash == parent] = '\0';
	fd = file_open(slash ? parent : ".", O_RDONLY | O_DIRECTORY, 0, err);
	rc = fd < 0 ? -1 : file_sync(fd, parent, err);
	if (fd >= 0)
		close(fd);
	mem_free(parent);
	return rc;
}

static int rename_checked(const char *from, const char *to, struct err *err)
{
	if (op_check(FILE_RENAME) != 0 || rename(from, to) != 0)
		return err_set_errno(err, errno, "cannot rename %s to %s", from, to);
	return 0;
}

int file_rename_durable(const char *from, const char *to, struct err *err)
{
	return rename_checked(from, to, err) == 0 ? file_sync_parent(to, err) : -1;
}

/* --- whole files -------------------------------------------------------------- */

char *file_read_all(const char *path, size_t limit, size_t *len, struct err *err)
{
	struct stat st;
	char *bytes = NULL;
	int fd = file_open(path, O_RDONLY, 0, err);

	if (fd < 0)
		return NULL;
	if (fstat(fd, &st) != 0) {
		err_set_errno(err, errno, "cannot stat %s", path);
	} else if (!S_ISREG(st.st_mode)) {
		err_set(err, ERR_INVALID, "%s is not a regular file", path);
	} else if ((uint64_t)st.st_size > limit) {
		err_set(err, ERR_TOO_LARGE, "%s has %lld bytes; at most %zu are accepted", path,
			(long long)st.st_size, limit);
	} else if (!(bytes = mem_alloc((size_t)st.st_size + 1, 1))) {
		err_set_nomem(err, path);
	} else if (file_pread(fd, bytes, (size_t)st.st_size, 0, path, err) != 0) {
		mem_free(bytes);
		bytes = NULL;
	} else {
		*len = (size_t)st.st_size;
	}
	close(fd);
	return bytes;
}

static int write_temp(const char *temp, const void *bytes, size_t len, mode_t mode, struct err *err)
{
	int fd = file_open(temp, O_WRONLY | O_CREAT | O_TRUNC, mode, err);
	int rc;

	if (fd < 0)
		return -1;
	rc = file_pwrite(fd, bytes, len, 0, temp, err);
	if (rc == 0)
		rc = file_sync(fd, temp, err);
	close(fd);
	return rc;
}

/* A name beside `path` that nobody else uses. */
static int temp_name(char temp[PATH_MAX], const char *path, struct err *err)
{
	static atomic_uint serial;
	int n = snprintf(temp, PATH_MAX, "%s.%ld.%u.tmp", path, (long)getpid(), atomic_fetch_add(&serial, 1));

	if (n < 0 || n >= PATH_MAX)
		return err_set(err, ERR_INVALID, "path too long: %s", path);
	return 0;
}

int file_write_atomic_mode(const char *path, const void *bytes, size_t len, mode_t mode,
			   struct err *err)
{
	char temp[PATH_MAX];

	if (temp_name(temp, path, err) != 0)
		return -1;
	if (write_temp(temp, bytes, len, mode, err) != 0 ||
	    file_rename_durable(temp, path, err) != 0) {
		unlink(temp);
		return -1;
	}
	return 0;
}

int file_write_signal(const char *path, const void *bytes, size_t len, struct err *err)
{
	char temp[PATH_MAX];

	if (temp_name(temp, path, err) != 0)
		return -1;
	if (write_temp(temp, bytes, len, 0644, err) != 0 || rename_checked(temp, path, err) != 0) {
		unlink(temp);
		return -1;
	}
	return 0;
}

int file_write_atomic(const char *path, const void *bytes, size_t len, struct err *err)
{
	return file_write_atomic_mode(path, bytes, len, 0644, err);
}

bool file_exists(const char *path)
{
	return access(path, F_OK) == 0;
}

int file_size(const char *path, uint64_t *bytes, struct err *err)
{
	struct stat st;

	if (stat(path, &st) != 0)
		return err_set_errno(err, errno, "cannot stat %s", path);
	if (!S_ISREG(st.st_mode))
		return err_set(err, ERR_INVALID, "%s is not a regular file", path);
	*bytes = (uint64_t)st.st_size;
	return 0;
}

int disk_free(const char *path, uint64_t *bytes, struct err *err)
{
	struct statvfs vfs;

	if (statvfs(path, &vfs) != 0)
		return err_set_errno(err, errno, "cannot read the free space of %s", path);
	*bytes = (uint64_t)vfs.f_bavail * vfs.f_frsize;
	return 0;
}

/* --- folders and paths -------------------------------------------------------- */

int dir_make(const char *path, struct err *err)
{
	char *copy = mem_strdup(path);
	struct stat st;

	if (!copy)
		return err_set_nomem(err, "a path");
	for (char *p = copy + 1; *p; p++) {
		if (*p != '/')
			continue;
		*p = '\0';
		if (mkdir(copy, 0777) != 0 && errno != EEXIST)
			break;
		*p = '/';
	}
	mem_free(copy);
	if (mkdir(path, 0777) != 0 && errno != EEXIST)
		return err_set_errno(err, errno, "cannot make folder %s", path);
	if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode))
		return err_set(err, ERR_INVALID, "%s is not a folder", path);
	return 0;
}

static int remove_children(const char *path, struct err *err)
{
	DIR *dir = opendir(path);
	struct dirent *entry;
	int rc = 0;

	if (!dir)
		return err_set_errno(err, errno, "cannot open folder %s", path);
	while (rc == 0 && (entry = readdir(dir))) {
		char *child;

		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		child = path_join(path, entry->d_name);
		rc = child ? dir_remove(child, err) : err_set_nomem(err, "a path");
		mem_free(child);
	}
	closedir(dir);
	return rc;
}

int dir_remove(const char *path, struct err *err)
{
	struct stat st;

	if (lstat(path, &st) != 0)
		return errno == ENOENT ? 0 : err_set_errno(err, errno, "cannot stat %s", path);
	if (S_ISDIR(st.st_mode) && remove_children(path, err) != 0)
		return -1;
	if (remove(path) != 0 && errno != ENOENT)
		return err_set_errno(err, errno, "cannot remove %s", path);
	return 0;
}

bool dir_is_empty(const char *path)
{
	DIR *dir = opendir(path);
	struct dirent *entry;
	bool empty = true;

	if (!dir)
		return errno == ENOENT;
	while (empty && (entry = readdir(dir)))
		empty = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
	closedir(dir);
	return empty;
}

char *path_join(const char *dir, const char *name)
{
	size_t len = strlen(dir) + strlen(name) + 2;
	char *path = mem_alloc(len, 1);

	if (path)
		snprintf(path, len, "%s/%s", dir, name);
	return path;
}

bool path_is_plain_name(const char *name)
{
	size_t len = strlen(name);

	return len > 0 && len <= 255 && name[0] != '.' &&
	       strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == len;
}
