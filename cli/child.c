#include "cli/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/file.h"

/* Between fork and exec: only calls that are safe there. Writes errno to `tell` on failure. */
static _Noreturn void become(const char *const *argv, int log_fd, int tell, pid_t parent)
{
	int null_fd = open("/dev/null", O_RDONLY), reason;
	ssize_t ignored;

	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_DFL);
	if (getppid() == parent && null_fd >= 0 && dup2(null_fd, STDIN_FILENO) >= 0 &&
	    dup2(log_fd, STDOUT_FILENO) >= 0 && dup2(log_fd, STDERR_FILENO) >= 0)
		execv(argv[0], (char *const *)(uintptr_t)argv);
	reason = errno;
	ignored = write(tell, &reason, sizeof(reason));
	(void)ignored;
	_exit(127);
}

/* 0 when exec succeeded (the pipe closes), else the child's errno. */
static int read_reason(int fd)
{
	int reason = 0;
	ssize_t got;

	do
		got = read(fd, &reason, sizeof(reason));
	while (got < 0 && errno == EINTR);
	return got == (ssize_t)sizeof(reason) ? reason : 0;
}

static int fork_and_exec(struct child *c, const char *const *argv, int log_fd, struct err *err)
{
	int tell[2], reason;
	pid_t parent = getpid();

	if (pipe2(tell, O_CLOEXEC) != 0)
		return err_set_errno(err, errno, "cannot make a pipe");
	c->pid = fork();
	if (c->pid == 0)
		become(argv, log_fd, tell[1], parent);
	close(tell[1]);
	reason = c->pid < 0 ? errno : read_reason(tell[0]);
	close(tell[0]);
	if (c->pid > 0 && reason != 0)
		waitpid(c->pid, &c->status, 0);
	if (reason != 0) {
		c->pid = 0;
		return err_set_errno(err, reason, "cannot start %s", argv[0]);
	}
	return 0;
}

int child_start(struct child *c, const char *const *argv, const char *log_path, struct err *err)
{
	int log_fd = file_open(log_path, O_WRONLY | O_CREAT | O_APPEND, 0600, err), rc;

	*c = (struct child){ 0 };
	if (log_fd < 0)
		return -1;
	rc = fork_and_exec(c, argv, log_fd, err);
	close(log_fd);
	return rc;
}

bool child_running(struct child *c)
{
	if (c->pid > 0 && waitpid(c->pid, &c->status, WNOHANG) == c->pid)
		c->pid = 0;
	return c->pid > 0;
}

void child_signal(const struct child *c, int signum)
{
	if (c->pid > 0)
		kill(c->pid, signum);
}

bool child_wait(struct child *c, int64_t ms)
{
	int64_t until = clock_system.mono_ms(clock_system.ctx) + ms;
	const struct timespec slice = { .tv_nsec = 5000000 };

	while (child_running(c)) {
		if (clock_system.mono_ms(clock_system.ctx) >= until)
			return false;
		nanosleep(&slice, NULL);
	}
	return true;
}

const char *child_ending(int status, char *out, size_t cap)
{
	if (WIFSIGNALED(status))
		snprintf(out, cap, "signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
	else
		snprintf(out, cap, "exit status %d", WEXITSTATUS(status));
	return out;
}

/* "2026-01-31T12:00:00.123Z error worker text" -> "text" */
static const char *skip_stamp(const char *line)
{
	if (strlen(line) < 26 || line[10] != 'T' || line[23] != 'Z')
		return line;
	for (int word = 0; word < 3; word++) {
		const char *space = strchr(line, ' ');

		if (!space)
			return line;
		line = space + 1;
	}
	return line;
}

static void copy_last_line(char *tail, char *out, size_t cap)
{
	size_t len = strlen(tail);
	char *line;

	while (len > 0 && (tail[len - 1] == '\n' || tail[len - 1] == ' '))
		tail[--len] = '\0';
	line = strrchr(tail, '\n');
	snprintf(out, cap, "%s", skip_stamp(line ? line + 1 : tail));
}

const char *child_last_words(const char *log_path, char *out, size_t cap)
{
	char tail[2049];
	struct stat st;
	int fd = open(log_path, O_RDONLY | O_CLOEXEC);
	ssize_t got = -1;

	out[0] = '\0';
	if (fd < 0)
		return out;
	if (fstat(fd, &st) == 0)
		got = pread(fd, tail, sizeof(tail) - 1, st.st_size > 2048 ? st.st_size - 2048 : 0);
	close(fd);
	if (got > 0) {
		tail[got] = '\0';
		copy_last_line(tail, out, cap);
	}
	return out;
}
