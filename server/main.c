/* quarry-server: options, start, signals, stop.
 *
 * Order of start: data folder locked, blob store, engine (database, tokens), HTTP, ready file. Order of stop
 * is the reverse; the engine closes after HTTP, so that every request that was accepted gets its answer.
 * The main thread is also the timer: it waits for a signal at most TICK_MS at a time.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/version.h"
#include "server/app.h"
#include "server/blobs.h"
#include "server/engine.h"
#include "server/http.h"
#include "server/options.h"
#include "server/routes.h"

enum { TICK_MS = 200, EXIT_USAGE = 2 };

struct server {
	struct server_options options;
	pid_t parent;
	int lock_fd;
	struct blobs *blobs;
	struct engine *engine;
	struct app app;
};

/* Signals that stop; blocked in every thread, taken by wait_for_end(). */
static void block_signals(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGHUP);
	pthread_sigmask(SIG_BLOCK, set, NULL);
	signal(SIGPIPE, SIG_IGN);
}

static void raise_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

/* Two servers on one data folder would undo each other's uploads. */
static int lock_data(struct server *s, struct err *err)
{
	char *path;

	if (dir_make(s->options.data, err) != 0)
		return err_prefix(err, "--data");
	path = path_join(s->options.data, "server.lock");
	if (!path)
		return err_set_nomem(err, "a path");
	s->lock_fd = file_open(path, O_RDWR | O_CREAT, 0600, err);
	mem_free(path);
	if (s->lock_fd < 0)
		return -1;
	if (flock(s->lock_fd, LOCK_EX | LOCK_NB) != 0)
		return err_set(err, ERR_CONFLICT,
			       "another quarry-server is using %s; give each its own --data",
			       s->options.data);
	return 0;
}

static void print_token(void *ctx, enum role role, const char *token)
{
	bool *first = ctx;

	if (*first)
		printf("Tokens of this coordinator; they are not shown again:\n");
	*first = false;
	printf("%s: %s\n", role_name(role), token);
}

static int open_engine(struct server *s, struct err *err)
{
	const struct engine_config config = {
		.data_dir = s->options.data, .blobs = s->blobs, .model_roots = s->options.model_roots,
		.tokens_file = s->options.tokens_file, .clock = &clock_system,
		.lease_ms = s->options.lease_s * 1000, .accept_ms = 10000, .max_attempts = 3,
		.background = true,
	};
	bool first = true;

	s->engine = engine_open(&config, print_token, &first, err);
	fflush(stdout);
	return s->engine ? 0 : -1;
}

/* The address as a client on this machine reaches it. */
static void base_url(const struct server *s, char url[320])
{
	const char *listen = s->options.listen;
	int len = (int)(strrchr(listen, ':') - listen);

	if (strncmp(listen, "0.0.0.0:", 8) == 0 || strncmp(listen, "[::]:", 5) == 0) {
		listen = "127.0.0.1";
		len = 9;
	}
	snprintf(url, 320, "http://%.*s:%u", len, listen, http_port(s->app.http));
}

static int announce(const struct server *s, struct err *err)
{
	char url[320], line[324];

	base_url(s, url);
	log_info("serving %s, data in %s", url, s->options.data);
	if (!s->options.ready_file)
		return 0;
	snprintf(line, sizeof(line), "%s\n", url);
	return file_write_signal(s->options.ready_file, line, strlen(line), err);
}

static int start(struct server *s, struct err *err)
{
	const struct app_config app = {
		.listen = s->options.listen, .header_ms = s->options.header_s * 1000,
		.connections = (unsigned)s->options.connections,
		.connections_per_ip = (unsigned)s->options.connections / 2,
		.requests_per_second = (unsigned)s->options.requests_per_s,
	};

	if (lock_data(s, err) != 0)
		return -1;
	s->blobs = blobs_open(s->options.data, err);
	if (!s->blobs || open_engine(s, err) != 0)
		return -1;
	if (app_start(&s->app, &app, s->engine, s->blobs, err) != 0)
		return -1;
	return announce(s, err);
}

static void stop(struct server *s)
{
	app_stop(&s->app);
	if (s->engine)
		engine_close(s->engine);
	app_free(&s->app);
	blobs_close(s->blobs);
	if (s->lock_fd >= 0)
		close(s->lock_fd);
}

static bool parent_gone(const struct server *s)
{
	return s->options.exit_with_parent && getppid() != s->parent;
}

static void wait_for_end(struct server *s, const sigset_t *set)
{
	const struct timespec tick = { .tv_nsec = TICK_MS * 1000000L };
	int signal_number = 0;

	while (signal_number <= 0 && !parent_gone(s)) {
		signal_number = sigtimedwait(set, NULL, &tick);
		app_tick(&s->app);
	}
	log_info("stopping: %s", signal_number > 0 ? strsignal(signal_number) : "the parent process ended");
}

static int run(struct server *s)
{
	struct err err = ERR_INIT;
	sigset_t set;
	int status = 0;

	if (s->options.exit_with_parent)
		prctl(PR_SET_PDEATHSIG, SIGTERM);
	block_signals(&set);
	raise_descriptors();
	log_setup("server", s->options.log_level);
	if (parent_gone(s))
		return 0;
	if (start(s, &err) == 0) {
		wait_for_end(s, &set);
	} else {
		fprintf(stderr, "quarry-server: %s\n", err.text);
		status = 1;
	}
	stop(s);
	return status;
}

int main(int argc, char **argv)
{
	struct server s = { .parent = getppid(), .lock_fd = -1 };
	struct err err = ERR_INIT;

	if (options_parse(&s.options, argc, argv, &err) != 0) {
		fprintf(stderr, "quarry-server: %s\n", err.text);
		return EXIT_USAGE;
	}
	if (s.options.help || s.options.version) {
		fputs(s.options.help ? options_usage : "quarry-server " QUARRY_VERSION "\n", stdout);
		return 0;
	}
	return run(&s);
}
