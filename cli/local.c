#include "cli/local.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/child.h"
#include "cli/command.h"
#include "cli/interrupt.h"
#include "cli/place.h"
#include "cli/text.h"
#include "common/alloc.h"
#include "common/clock.h"
#include "common/digest.h"
#include "common/file.h"

enum {
	READY_MS = 60000, RESTART_PAUSE_MS = 1000, DRAIN_MS = 10000, STOP_MS = 10000, HURRY_MS = 500, AT_ONCE_MS = 1000,
	ARGV_MAX = 32, TOKEN_BYTES = 24,
	EXIT_NO_DEVICE = 3,             /* of a worker: there is nothing to compute on */
};

/* What the blob caches of all local workers may take together. */
static const long long CACHE_BYTES = 20000000000;

/* A child with what it takes to start it again. */
struct member {
	struct child child;
	char name[32];                  /* "server", "worker-1" */
	char log[PATH_MAX];
	int restarts;
	int64_t started_ms;
	bool down;                      /* has ended, waits for its restart */
};

struct local {
	struct local_config config;
	char folder[PATH_MAX];
	char programs[PATH_MAX];        /* the folder of the executables */
	char listen[64], url[128];
	bool temporary;
	int lock_fd;
	struct client *client;
	struct member server;
	struct member workers[LOCAL_WORKERS_MAX];
};

static int64_t now_ms(void)
{
	return clock_system.mono_ms(clock_system.ctx);
}

/* folder/name in `out`. */
static int inside(const char *folder, const char *name, char out[PATH_MAX], struct err *err)
{
	if ((size_t)snprintf(out, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX)
		return err_set(err, ERR_INVALID, "the path %s/%s is too long", folder, name);
	return 0;
}

/* --- the folder ------------------------------------------------------------------------------ */

static int find_programs(struct local *l, struct err *err)
{
	ssize_t len = readlink("/proc/self/exe", l->programs, sizeof(l->programs) - 1);
	char *slash;

	if (len < 0)
		return err_set_errno(err, errno, "cannot read /proc/self/exe");
	l->programs[len] = '\0';
	slash = strrchr(l->programs, '/');
	if (slash)
		*slash = '\0';
	return 0;
}

static int make_temporary(struct local *l, struct err *err)
{
	if (temporary_folder(l->folder, err) != 0)
		return -1;
	l->temporary = true;
	return 0;
}

static int make_work_folder(struct local *l, struct err *err)
{
	char full[PATH_MAX];

	if (dir_make(l->config.work_dir, err) != 0)
		return err_prefix(err, "--work");
	if (!realpath(l->config.work_dir, full))
		return err_set_errno(err, errno, "--work %s", l->config.work_dir);
	snprintf(l->folder, sizeof(l->folder), "%s", full);
	return 0;
}

static int lock_folder(struct local *l, struct err *err)
{
	char path[PATH_MAX];

	if (inside(l->folder, "lock", path, err) != 0)
		return -1;
	l->lock_fd = file_open(path, O_RDWR | O_CREAT, 0600, err);
	if (l->lock_fd < 0)
		return -1;
	if (flock(l->lock_fd, LOCK_EX | LOCK_NB) != 0)
		return err_set(err, ERR_CONFLICT, "another quarry process uses the work folder %s", l->folder);
	return 0;
}

static int make_subfolders(struct local *l, struct err *err)
{
	char path[PATH_MAX];

	if (inside(l->folder, "server", path, err) != 0 || dir_make(path, err) != 0 ||
	    inside(l->folder, "log", path, err) != 0 || dir_make(path, err) != 0)
		return -1;
	for (int i = 0; i < l->config.workers; i++)
		if (inside(l->folder, l->workers[i].name, path, err) != 0 || dir_make(path, err) != 0)
			return -1;
	return 0;
}

/* --- tokens ---------------------------------------------------------------------------------- */

static int write_token(struct local *l, const char *role, const char *token, struct err *err)
{
	char name[32], path[PATH_MAX];

	snprintf(name, sizeof(name), "token.%s", role);
	if (inside(l->folder, name, path, err) != 0)
		return -1;
	return file_write_atomic_mode(path, token, strlen(token), 0600, err);
}

static int make_tokens(struct local *l, struct err *err)
{
	char submitter[2 * TOKEN_BYTES + 1], worker[2 * TOKEN_BYTES + 1], lines[256], path[PATH_MAX];

	if (inside(l->folder, "tokens", path, err) != 0)
		return -1;
	if (file_exists(path))
		return 0; /* written last: the role files are there too */
	if (random_hex(submitter, TOKEN_BYTES) != 0 || random_hex(worker, TOKEN_BYTES) != 0)
		return err_set(err, ERR_INTERNAL, "the system gives no random bytes");
	snprintf(lines, sizeof(lines), "submitter:%s\nworker:%s\n", submitter, worker);
	if (write_token(l, "submitter", submitter, err) != 0 || write_token(l, "worker", worker, err) != 0)
		return -1;
	return file_write_atomic_mode(path, lines, strlen(lines), 0600, err);
}

static char *read_token(struct local *l, const char *role, struct err *err)
{
	char name[32], path[PATH_MAX];
	size_t len;

	snprintf(name, sizeof(name), "token.%s", role);
	if (inside(l->folder, name, path, err) != 0)
		return NULL;
	return file_read_all(path, 256, &len, err);
}

/* --- starting -------------------------------------------------------------------------------- */

static int start_member(struct local *l, struct member *m, const char *program, const char **argv,
			struct err *err)
{
	char path[PATH_MAX], log[64];

	snprintf(log, sizeof(log), "log/%s.log", m->name);
	if (inside(l->programs, program, path, err) != 0 || inside(l->folder, log, m->log, err) != 0)
		return -1;
	argv[0] = path;
	m->started_ms = now_ms();
	m->down = false;
	return child_start(&m->child, argv, m->log, err);
}

static int start_server(struct local *l, struct err *err)
{
	char data[PATH_MAX], tokens[PATH_MAX], ready[PATH_MAX];
	/* A local worker that dies is back in a second: its lease need not live a minute. */
	const char *argv[ARGV_MAX] = { NULL, "--data", data, "--listen", l->listen, "--model-root",
				       l->config.model_dir, "--tokens", tokens, "--ready-file", ready,
				       "--lease-seconds", "20", "--exit-with-parent" };
	size_t used = 14;

	if (inside(l->folder, "server", data, err) != 0 || inside(l->folder, "tokens", tokens, err) != 0 ||
	    inside(l->folder, "ready", ready, err) != 0)
		return -1;
	if (l->config.reference_dir) {
		argv[used++] = "--model-root";
		argv[used++] = l->config.reference_dir;
	}
	unlink(ready);
	return start_member(l, &l->server, "quarry-server", argv, err);
}

static int usable_cores(void)
{
	cpu_set_t set;
	int count = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;

	return count > 0 ? count : 1;
}

/* The cores split evenly, the first workers taking what is left over. */
static int threads_of(const struct local *l, int index)
{
	int cores = usable_cores(), each = cores / l->config.workers;
	int threads = each + (index < cores % l->config.workers);

	return threads > 0 ? threads : 1;
}

static int start_worker(struct local *l, int index, struct err *err)
{
	struct member *m = &l->workers[index];
	char token[PATH_MAX], work[PATH_MAX], threads[16], device[16], cache[32];
	const char *argv[ARGV_MAX] = { NULL, "--server", l->url, "--token-file", token, "--work", work,
				       "--threads", threads, "--cache-size", cache, "--name", m->name,
				       "--exit-with-parent" };
	size_t used = 14;

	if (l->config.backend) {
		argv[used++] = "--backend";
		argv[used++] = l->config.backend;
	}
	if (l->config.memory) {
		argv[used++] = "--memory";
		argv[used++] = l->config.memory;
	}
	if (l->config.gpu_memory) {
		argv[used++] = "--gpu-memory";
		argv[used++] = l->config.gpu_memory;
	}
	if (l->config.device_count > 0) {
		snprintf(device, sizeof(device), "%d", l->config.devices[index % l->config.device_count]);
		argv[used++] = "--device";
		argv[used++] = device;
	}
	snprintf(threads, sizeof(threads), "%d", threads_of(l, index));
	snprintf(cache, sizeof(cache), "%lld", CACHE_BYTES / l->config.workers);
	if (inside(l->folder, "token.worker", token, err) != 0 || inside(l->folder, m->name, work, err) != 0)
		return -1;
	return start_member(l, m, "quarry-worker", argv, err);
}

/* The sentence for a child that ended: how, and its last words. */
static int ended_error(const struct member *m, const char *what, struct err *err)
{
	char ending[64], words[512];

	child_ending(m->child.status, ending, sizeof(ending));
	child_last_words(m->log, words, sizeof(words));
	return err_set(err, ERR_INTERNAL, "the local %s %s (%s)%s%s", m->name, what, ending,
		       *words ? ": " : "", words);
}

/* The ready file holds the URL; its port is kept for restarts. */
static int read_url(struct local *l, const char *path, struct err *err)
{
	size_t len = 0;
	char *text = file_read_all(path, 512, &len, err);
	unsigned port = 0;

	if (!text)
		return -1;
	text[strcspn(text, "\r\n")] = '\0';
	if (sscanf(text, "http://127.0.0.1:%u", &port) != 1 || port == 0 || port > 65535) {
		mem_free(text);
		return err_set(err, ERR_INTERNAL, "the local server says something odd in %s", path);
	}
	mem_free(text);
	snprintf(l->url, sizeof(l->url), "http://127.0.0.1:%u", port);
	snprintf(l->listen, sizeof(l->listen), "127.0.0.1:%u", port);
	return 0;
}

static int await_server(struct local *l, struct err *err)
{
	int64_t until = now_ms() + READY_MS;
	char ready[PATH_MAX];

	if (inside(l->folder, "ready", ready, err) != 0)
		return -1;
	while (!file_exists(ready)) {
		if (interrupt_check(err) != 0)
			return -1;
		if (!child_running(&l->server.child))
			return ended_error(&l->server, "did not start", err);
		if (now_ms() > until)
			return err_set(err, ERR_TIMEOUT, "the local server is not ready after %d s; see %s",
				       READY_MS / 1000, l->server.log);
		interruptible_sleep_ms(10);
	}
	return read_url(l, ready, err);
}

static int connect_client(struct local *l, struct err *err)
{
	char *token = read_token(l, "submitter", err);

	if (!token)
		return -1;
	l->client = client_new(l->url, token, err);
	mem_free(token);
	return l->client ? 0 : -1;
}

static int start_all(struct local *l, struct err *err)
{
	if (find_programs(l, err) != 0 ||
	    (l->config.work_dir ? make_work_folder(l, err) : make_temporary(l, err)) != 0 ||
	    lock_folder(l, err) != 0 || make_subfolders(l, err) != 0 || make_tokens(l, err) != 0 ||
	    start_server(l, err) != 0 || await_server(l, err) != 0 || connect_client(l, err) != 0)
		return -1;
	for (int i = 0; i < l->config.workers; i++)
		if (start_worker(l, i, err) != 0)
			return -1;
	return 0;
}

struct local *local_start(const struct local_config *config, struct err *err)
{
	struct local *l = mem_alloc(1, sizeof(*l));

	if (!l) {
		err_set_nomem(err, "the local fleet");
		return NULL;
	}
	l->config = *config;
	l->lock_fd = -1;
	snprintf(l->listen, sizeof(l->listen), "127.0.0.1:0");
	snprintf(l->server.name, sizeof(l->server.name), "server");
	for (int i = 0; i < config->workers; i++)
		snprintf(l->workers[i].name, sizeof(l->workers[i].name), "worker-%d", i + 1);
	if (start_all(l, err) != 0) {
		local_stop(l);
		return NULL;
	}
	return l;
}

struct client *local_client(struct local *l)
{
	return l->client;
}

const char *local_folder(const struct local *l)
{
	return l->folder;
}

/* --- looking after ---------------------------------------------------------------------------- */

/* true when the member has to be started again now. */
static bool needs_restart(struct member *m, struct err *err)
{
	struct err why = ERR_INIT;

	if (!m->down && child_running(&m->child))
		return false;
	if (!m->down) {
		m->down = true;
		ended_error(m, "ended", &why);
		if (WIFEXITED(m->child.status) && (WEXITSTATUS(m->child.status) == EXIT_USAGE ||
						   WEXITSTATUS(m->child.status) == EXIT_NO_DEVICE)) {
			err_set(err, ERR_INTERNAL, "%s", why.text); /* it would say the same again */
			return false;
		}
		if (m->restarts == LOCAL_RESTARTS_MAX) {
			err_set(err, ERR_INTERNAL, "%s; given up after %d restarts", why.text, m->restarts);
			return false;
		}
		print_note("%s; it is started again", why.text);
	}
	if (now_ms() - m->started_ms < RESTART_PAUSE_MS)
		return false;
	m->restarts++;
	return true;
}

int local_tend(struct local *l, struct err *err)
{
	if (needs_restart(&l->server, err) && (start_server(l, err) != 0 || await_server(l, err) != 0))
		return -1;
	for (int i = 0; i < l->config.workers && err->code == ERR_NONE; i++)
		if (needs_restart(&l->workers[i], err) && start_worker(l, i, err) != 0)
			return -1;
	return err->code == ERR_NONE ? 0 : -1;
}

/* --- stopping --------------------------------------------------------------------------------- */

/* After a polite request: time to follow it, a second one ("at once"), then force. */
static void stop_member(struct member *m, int64_t grace_ms)
{
	int64_t until = now_ms() + grace_ms;

	while (now_ms() < until && interrupt_count() < 2)
		if (child_wait(&m->child, 50))
			return;
	child_signal(&m->child, SIGTERM);
	if (child_wait(&m->child, AT_ONCE_MS))
		return;
	child_signal(&m->child, SIGKILL);
	child_wait(&m->child, STOP_MS);
}

void local_stop(struct local *l)
{
	struct err err = ERR_INIT;
	/* What a temporary fleet holds is thrown away: no reason to wait for it. */
	int64_t grace_ms = l->temporary ? HURRY_MS : DRAIN_MS;

	for (int i = 0; i < l->config.workers; i++)
		child_signal(&l->workers[i].child, SIGTERM);
	for (int i = 0; i < l->config.workers; i++)
		stop_member(&l->workers[i], grace_ms);
	child_signal(&l->server.child, SIGTERM);
	stop_member(&l->server, grace_ms);
	client_free(l->client);
	if (l->lock_fd >= 0)
		close(l->lock_fd);
	if (l->temporary && dir_remove(l->folder, &err) != 0)
		print_note("warning: %s", err.text);
	mem_free(l);
}
