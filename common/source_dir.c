/* source_dir.c - a checkpoint in a local folder.
 *
 * Invariants:
 *  1. Only plain names are opened, relative to a descriptor of the folder: no name leads out of it.
 *     Links inside the folder are followed; model caches are made of them.
 *  2. Only regular files are read; opening never blocks on a pipe.
 *  3. At most one file is open at a time: the last one used, as reads come file by file.
 */
#include "common/source.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/utf8.h"

struct source_dir {
	struct source base; /* first: the pointer handed out */
	int dir_fd;
	int file_fd;        /* -1: none open */
	char file_name[256];
	char *file_path;    /* for messages */
	uint64_t file_bytes;
};

static void close_file(struct source_dir *d)
{
	if (d->file_fd >= 0)
		close(d->file_fd);
	d->file_fd = -1;
	mem_free(d->file_path);
	d->file_path = NULL;
}

/* Takes over `fd` on success. */
static int keep_file(struct source_dir *d, int fd, const char *file, struct err *err)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		return err_set_errno(err, errno, "cannot stat %s/%s", d->base.label, file);
	if (!S_ISREG(st.st_mode))
		return err_set(err, ERR_INVALID, "%s/%s is not a regular file", d->base.label, file);
	d->file_path = path_join(d->base.label, file);
	if (!d->file_path)
		return err_set_nomem(err, "a path");
	d->file_fd = fd;
	d->file_bytes = (uint64_t)st.st_size;
	memcpy(d->file_name, file, strlen(file) + 1);
	return 0;
}

static int use_file(struct source_dir *d, const char *file, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];
	int fd;

	if (!path_is_plain_name(file))
		return err_set(err, ERR_INVALID, "\"%s\" is not the plain name of a file in %s: only "
			       "letters, digits, '.', '_' and '-' are accepted", utf8_show(shown, file),
			       d->base.label);
	if (d->file_fd >= 0 && strcmp(d->file_name, file) == 0)
		return 0;
	close_file(d);
	fd = openat(d->dir_fd, file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return err_set_errno(err, errno, "cannot open %s/%s", d->base.label, file);
	if (keep_file(d, fd, file, err) != 0) {
		close(fd);
		return -1;
	}
	return 0;
}

static int dir_size(struct source *s, const char *file, uint64_t *bytes, struct err *err)
{
	struct source_dir *d = (struct source_dir *)s;

	if (use_file(d, file, err) != 0)
		return -1;
	*bytes = d->file_bytes;
	return 0;
}

static int dir_read(struct source *s, const char *file, uint64_t offset, void *bytes, size_t len,
		    struct err *err)
{
	struct source_dir *d = (struct source_dir *)s;

	if (use_file(d, file, err) != 0)
		return -1;
	return file_pread(d->file_fd, bytes, len, offset, d->file_path, err);
}

static void dir_close(struct source *s)
{
	struct source_dir *d = (struct source_dir *)s;

	close_file(d);
	close(d->dir_fd);
	mem_free(d->base.label);
	mem_free(d);
}

/* "dir" without trailing slashes, so that messages read well. */
static char *make_label(const char *dir)
{
	size_t len = strlen(dir);

	while (len > 1 && dir[len - 1] == '/')
		len--;
	return mem_strndup(dir, len);
}

struct source *source_dir_open(const char *dir, struct err *err)
{
	struct source_dir *d;
	int fd = file_open(dir, O_RDONLY | O_DIRECTORY, 0, err);

	if (fd < 0)
		return NULL;
	d = mem_alloc(1, sizeof(*d));
	if (d)
		d->base.label = make_label(dir);
	if (!d || !d->base.label) {
		err_set_nomem(err, "a folder");
		mem_free(d);
		close(fd);
		return NULL;
	}
	d->base.size = dir_size;
	d->base.read = dir_read;
	d->base.close = dir_close;
	d->dir_fd = fd;
	d->file_fd = -1;
	return &d->base;
}
