/* child.h - a program of ours run as a child process: its own process group (Ctrl-C on the terminal reaches
 * only the client, which then stops its children in order), no standard input, output to a log file, and
 * killed by the kernel when the client dies, whatever the reason.
 */
#ifndef QUARRY_CLI_CHILD_H
#define QUARRY_CLI_CHILD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

struct child {
	pid_t pid;      /* 0 = not running */
	int status;     /* of waitpid, when it has ended */
};

/* Starts argv[0] (a path); argv ends with NULL; output is appended to log_path. */
int child_start(struct child *c, const char *const *argv, const char *log_path, struct err *err);
/* false when it has ended (c->pid is 0 then and c->status set). */
bool child_running(struct child *c);
void child_signal(const struct child *c, int signum);
/* Waits until it has ended; false after `ms`. */
bool child_wait(struct child *c, int64_t ms);
/* "exit status 1" or "signal 9 (Killed)" */
const char *child_ending(int status, char *out, size_t cap);
/* The last line of a log that says something, without its time stamp; "" when there is none. */
const char *child_last_words(const char *log_path, char *out, size_t cap);

#endif
