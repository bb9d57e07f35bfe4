#include "worker/task_scratch.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"

static const int64_t DAY_MS = 24 * 60 * 60 * 1000;

char *task_scratch_path(const char *work, const char *task)
{
	char *dir = path_is_plain_name(task) ? path_join(work, "scratch") : NULL;
	char *path = dir ? path_join(dir, task) : NULL;

	mem_free(dir);
	return path;
}

static void drop(const char *path)
{
	struct err err = ERR_INIT;

	if (dir_remove(path, &err) != 0)
		log_warn("%s", err.text);
}

void task_scratch_drop(const char *work, const char *task)
{
	char *path = task_scratch_path(work, task);

	if (path)
		drop(path);
	mem_free(path);
}

static void drop_if_old(const char *dir, const char *name, int64_t now_ms)
{
	char *path = path_join(dir, name);
	struct stat st;

	if (path && lstat(path, &st) == 0 && now_ms - (int64_t)st.st_mtime * 1000 > TASK_SCRATCH_DAYS * DAY_MS) {
		log_info("%s was left %d days ago or more; it is removed", path, TASK_SCRATCH_DAYS);
		drop(path);
	}
	mem_free(path);
}

int task_scratch_prepare(const char *work, int64_t now_ms, struct err *err)
{
	char *path = path_join(work, "scratch");
	struct dirent *item;
	DIR *dir = NULL;
	int rc = path ? dir_make(path, err) : err_set_nomem(err, "a path");

	if (rc == 0 && !(dir = opendir(path)))
		rc = err_set_errno(err, errno, "cannot open folder %s", path);
	while (dir && (item = readdir(dir)))
		if (strcmp(item->d_name, ".") != 0 && strcmp(item->d_name, "..") != 0)
			drop_if_old(path, item->d_name, now_ms);
	if (dir)
		closedir(dir);
	mem_free(path);
	return rc;
}
