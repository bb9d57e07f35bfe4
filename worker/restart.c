#include "worker/restart.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"

enum { NOTE_MAX = 4096, DESCRIPTORS_MOST = 1 << 16 };

/* Those of the window, oldest first; one of the future, by a clock that was set, counts too. */
static size_t recent(const char *text, int64_t now_ms, int64_t out[RESTARTS_MOST])
{
	size_t count = 0;

	while (text && count < RESTARTS_MOST) {
		char *end;
		long long at = strtoll(text, &end, 10);

		if (end == text || *end != '\n' || at < 0)
			break;
		if (now_ms - at < RESTART_WINDOW_MS)
			out[count++] = at;
		text = end + 1;
	}
	return count;
}

static int note(const char *path, int64_t now_ms, struct err *err)
{
	char text[NOTE_MAX];
	int64_t at[RESTARTS_MOST];
	size_t len, used = 0, count;
	char *old = NULL;

	if (file_exists(path) && !(old = file_read_all(path, NOTE_MAX - 1, &len, err)))
		return -1;
	count = recent(old, now_ms, at);
	mem_free(old);
	if (count == RESTARTS_MOST)
		return err_set(err, ERR_UNAVAILABLE, "started anew %d times within an hour already", RESTARTS_MOST);
	for (size_t i = 0; i < count; i++)
		used += (size_t)snprintf(text + used, sizeof(text) - used, "%" PRId64 "\n", at[i]);
	used += (size_t)snprintf(text + used, sizeof(text) - used, "%" PRId64 "\n", now_ms);
	return file_write_atomic(path, text, used, err);
}

int restart_note(const char *work, int64_t now_ms, struct err *err)
{
	char *path = path_join(work, "restarts");
	int rc = path ? note(path, now_ms, err) : err_set_nomem(err, "a path");

	mem_free(path);
	return rc;
}

/* A driver's own may be among them, and with them the device's memory. */
static void close_on_exec(void)
{
	long most = sysconf(_SC_OPEN_MAX);

	if (most < 0 || most > DESCRIPTORS_MOST)
		most = DESCRIPTORS_MOST;
	for (int fd = STDERR_FILENO + 1; fd < most; fd++)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
}

int restart_exec(char **argv, struct err *err)
{
	close_on_exec();
	execv("/proc/self/exe", argv);
	return err_set_errno(err, errno, "cannot start the program again");
}
