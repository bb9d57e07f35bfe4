/* source_dir.c - a checkpoint in a local folder.
 *
 * Invariants:
 *  1. Only plain names are opened, relative to a descriptor of the folder: no name leads out of it.
 *     Links inside the folder are followed; model caches are made of them.
 *  2. Only regular files are read; opening never blocks on a pipe.
 *  3. One file stays open: the last one used, as reads come file by file. Besides it only what other threads still read.
 */
#include "common/source.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/utf8.h"

/* Lives for as long as it is the last one used, or somebody reads it. */
struct open_file {
	int fd;
	size_t users;
	uint64_t bytes;
	char name[256];
	char *path;         /* for messages */
};

struct source_dir {
	struct source base; /* first: the pointer handed out */
	int dir_fd;
	pthread_mutex_t lock; /* guards what follows */
	struct open_file *last; /* one of its users is the source; NULL: none */
};

static void free_file(struct open_file *f)
{
	close(f->fd);
	mem_free(f->path);
	mem_free(f);
}

/* With the lock held; NULL is fine. */
static void let_go(struct open_file *f)
{
	if (f && --f->users == 0)
		free_file(f);
}

/* Takes over `fd`, whatever comes of it. NULL with err set on failure. */
static struct open_file *new_file(const struct source_dir *d, int fd, const char *name, struct err *err)
{
	struct open_file *f = NULL;
	struct stat st;

	if (fstat(fd, &st) != 0)
		err_set_errno(err, errno, "cannot stat %s/%s", d->base.label, name);
	else if (!S_ISREG(st.st_mode))
		err_set(err, ERR_INVALID, "%s/%s is not a regular file", d->base.label, name);
	else if (!(f = mem_alloc(1, sizeof(*f))))
		err_set_nomem(err, "a file");
	if (!f) {
		close(fd);
		return NULL;
	}
	*f = (struct open_file){ .fd = fd, .bytes = (uint64_t)st.st_size, .path = path_join(d->base.label, name) };
	memcpy(f->name, name, strlen(name) + 1);
	if (f->path)
		return f;
	err_set_nomem(err, "a path");
	free_file(f);
	return NULL;
}

/* With the lock held. */
static int open_last(struct source_dir *d, const char *name, struct err *err)
{
	int fd;

	if (d->last && strcmp(d->last->name, name) == 0)
		return 0;
	let_go(d->last);
	d->last = NULL;
	fd = openat(d->dir_fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return err_set_errno(err, errno, "cannot open %s/%s", d->base.label, name);
	d->last = new_file(d, fd, name, err);
	if (!d->last)
		return -1;
	d->last->users = 1;
	return 0;
}

/* The file, for the caller to return_file(); NULL with err set on failure. */
static struct open_file *use_file(struct source_dir *d, const char *name, struct err *err)
{
	struct open_file *f = NULL;
	char shown[UTF8_SHOWN_MAX];

	if (!path_is_plain_name(name)) {
		err_set(err, ERR_INVALID, "\"%s\" is not the plain name of a file in %s: only "
			"letters, digits, '.', '_' and '-' are accepted", utf8_show(shown, name),
			d->base.label);
		return NULL;
	}
	pthread_mutex_lock(&d->lock);
	if (open_last(d, name, err) == 0) {
		f = d->last;
		f->users++;
	}
	pthread_mutex_unlock(&d->lock);
	return f;
}

static void return_file(struct source_dir *d, struct open_file *f)
{
	pthread_mutex_lock(&d->lock);
	let_go(f);
	pthread_mutex_unlock(&d->lock);
}

static int dir_size(struct source *s, const char *file, uint64_t *bytes, struct err *err)
{
	struct source_dir *d = (struct source_dir *)s;
	struct open_file *f = use_file(d, file, err);

	if (!f)
		return -1;
	*bytes = f->bytes;
	return_file(d, f);
	return 0;
}

static int dir_read(struct source *s, const char *file, uint64_t offset, void *bytes, size_t len,
		    struct err *err)
{
	struct source_dir *d = (struct source_dir *)s;
	struct open_file *f = use_file(d, file, err);
	int rc;

	if (!f)
		return -1;
	rc = file_pread(f->fd, bytes, len, offset, f->path, err);
	return_file(d, f);
	return rc;
}

static void dir_close(struct source *s)
{
	struct source_dir *d = (struct source_dir *)s;

	let_go(d->last);
	pthread_mutex_destroy(&d->lock);
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
	d->base.threads = true;
	d->dir_fd = fd;
	pthread_mutex_init(&d->lock, NULL);
	return &d->base;
}
