#include "cli/place.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/fetch.h"
#include "common/file.h"

static void trim_slashes(char *path)
{
	size_t len = strlen(path);

	while (len > 1 && path[len - 1] == '/')
		path[--len] = '\0';
}

/* `path` without its last component; false when nothing is left of it. */
static bool cut_last(char *path)
{
	char *slash = strrchr(path, '/');

	if (!slash || slash == path)
		return false;
	*slash = '\0';
	trim_slashes(path);
	return true;
}

static bool is_there(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0;
}

int place_make(struct place *p, const char *path, struct err *err)
{
	const int n = snprintf(p->final, sizeof(p->final), "%s", path);

	p->staging[0] = '\0';
	if (fetch_check_target(path, NULL, err) != 0)
		return -1;
	if (n < 0 || (size_t)n + 32 > sizeof(p->staging))
		return err_set(err, ERR_INVALID, "the path %s is too long", path);
	trim_slashes(p->final);
	snprintf(p->kept, sizeof(p->kept), "%s", p->final);
	while (cut_last(p->kept) && !is_there(p->kept))
		;
	memcpy(p->staging, p->final, sizeof(p->staging));
	snprintf(p->staging + strlen(p->staging), 32, ".partial-%ld", (long)getpid());
	if (dir_remove(p->staging, err) == 0 && dir_make(p->staging, err) == 0)
		return 0;
	place_drop(p);
	return -1;
}

int place_keep(struct place *p, struct err *err)
{
	if (file_rename_durable(p->staging, p->final, err) != 0)
		return -1;
	p->staging[0] = '\0';
	return 0;
}

void place_drop(struct place *p)
{
	char parent[PATH_MAX];

	if (!p->staging[0])
		return;
	dir_remove(p->staging, NULL);
	memcpy(parent, p->staging, sizeof(parent));
	while (cut_last(parent) && strlen(parent) > strlen(p->kept) && rmdir(parent) == 0)
		;
	p->staging[0] = '\0';
}

int temporary_folder(char out[PATH_MAX], struct err *err)
{
	const char *base = getenv("TMPDIR");
	int n;

	if (!base || !*base)
		base = access("/var/tmp", W_OK) == 0 ? "/var/tmp" : "/tmp";
	n = snprintf(out, PATH_MAX, "%s/quarry-XXXXXX", base);
	if (n < 0 || n >= PATH_MAX)
		return err_set(err, ERR_INVALID, "the path %s is too long", base);
	if (mkdtemp(out))
		return 0;
	err_set_errno(err, errno, "cannot make a temporary folder in %s", base);
	out[0] = '\0';
	return -1;
}
