#include "worker/scratch_file.h"

#include <fcntl.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"

int scratch_file_open(struct scratch_file *f, const char *dir, struct err *err)
{
	*f = (struct scratch_file)SCRATCH_FILE_CLOSED;
	f->path = path_join(dir, ".scratch");
	if (!f->path)
		return err_set_nomem(err, "a path");
	unlink(f->path); /* of a process that ended between the next two lines */
	f->fd = file_open(f->path, O_RDWR | O_CREAT | O_EXCL, 0600, err);
	if (f->fd >= 0 && unlink(f->path) == 0)
		return 0;
	if (f->fd >= 0)
		err_set(err, ERR_IO, "%s cannot be removed", f->path);
	scratch_file_close(f);
	return -1;
}

void scratch_file_close(struct scratch_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	mem_free(f->path);
	*f = (struct scratch_file)SCRATCH_FILE_CLOSED;
}

int scratch_file_write(struct scratch_file *f, uint64_t offset, const void *bytes, size_t len, struct err *err)
{
	return file_pwrite(f->fd, bytes, len, offset, f->path, err);
}

int scratch_file_read(struct scratch_file *f, uint64_t offset, void *bytes, size_t len, struct err *err)
{
	return file_pread(f->fd, bytes, len, offset, f->path, err);
}
