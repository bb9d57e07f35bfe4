/* quarry-worker: options, the work folder, start and stop of the agent.
 *
 * Exit status: 0 after a drain, 1 when it could not serve, 2 for a wrong command line, 3 when what it names to
 * compute on cannot be used now (no GPU, no driver). A worker whose device was lost starts its program anew
 * (restart.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/clock.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/log.h"
#include "common/version.h"
#include "worker/agent.h"
#include "worker/client.h"
#include "worker/restart.h"
#include "worker/worker_options.h"

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_NO_DEVICE = 3, TOKEN_FILE_MAX = 4096, NAME_MAX_BYTES = 256 };

struct worker {
	struct worker_options options;
	struct agent_config config;
	char name[NAME_MAX_BYTES];
	int lock_fd;
	char **argv;                    /* to start with again */
};

/* --- the work folder ------------------------------------------------------------------------------------ */

static int lock_work(struct worker *w, struct err *err)
{
	char *path;

	if (dir_make(w->options.work, err) != 0)
		return err_prefix(err, "--work");
	path = path_join(w->options.work, "lock");
	if (!path)
		return err_set_nomem(err, "a path");
	w->lock_fd = file_open(path, O_RDWR | O_CREAT, 0644, err);
	mem_free(path);
	if (w->lock_fd < 0)
		return err_prefix(err, "--work");
	if (flock(w->lock_fd, LOCK_EX | LOCK_NB) != 0)
		return err_set(err, ERR_CONFLICT, "another quarry-worker is using %s; give each its own --work",
			       w->options.work);
	return 0;
}

static int make_name(char name[NAME_MAX_BYTES], const char *path, struct err *err)
{
	char host[128] = "worker", hex[9];

	gethostname(host, sizeof(host) - 1);
	if (random_hex(hex, 4) != 0)
		return err_set(err, ERR_INTERNAL, "no random bytes for a worker's name");
	snprintf(name, NAME_MAX_BYTES, "%s-%s", host, hex);
	return file_write_atomic(path, name, strlen(name), err);
}

/* The name must outlive restarts: with it the coordinator knows the worker again. */
static int find_name(struct worker *w, struct err *err)
{
	char *path = path_join(w->options.work, "name"), *text;
	size_t len;
	int rc = 0;

	if (!path)
		return err_set_nomem(err, "a path");
	text = file_exists(path) ? file_read_all(path, NAME_MAX_BYTES - 1, &len, err) : NULL;
	if (text && len > 0)
		snprintf(w->name, sizeof(w->name), "%s", text);
	else
		rc = make_name(w->name, path, err);
	mem_free(text);
	mem_free(path);
	return rc;
}

/* --- settings -------------------------------------------------------------------------------------------- */

/* The first line of the file, without blanks at its end. */
static char *read_token(const char *path, struct err *err)
{
	size_t len, end;
	char *text = file_read_all(path, TOKEN_FILE_MAX, &len, err);

	if (!text) {
		err_prefix(err, "--token-file");
		return NULL;
	}
	end = strcspn(text, "\r\n");
	while (end > 0 && (text[end - 1] == ' ' || text[end - 1] == '\t'))
		end--;
	text[end] = '\0';
	if (end > 0)
		return text;
	err_set(err, ERR_INVALID, "--token-file %s holds no token in its first line", path);
	mem_free(text);
	return NULL;
}

static int set_client(struct worker *w, struct err *err)
{
	char *token = NULL;
	int rc;

	if (w->options.token_file && !(token = read_token(w->options.token_file, err)))
		return -1;
	rc = client_config_init(&w->config.client, w->options.server, token, "quarry-worker/" QUARRY_VERSION,
				err);
	if (rc != 0 && token && strstr(err->text, "token"))
		err_prefix(err, "--token-file %s", w->options.token_file);
	mem_free(token);
	return rc;
}

static int usable_cores(void)
{
	cpu_set_t set;
	int n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;

	return n > 0 ? n : 1;
}

static uint64_t machine_memory(void)
{
	long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);

	return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
}

static int configure(struct worker *w, struct err *err)
{
	const struct worker_options *o = &w->options;

	w->config.token_file = o->token_file;
	w->config.work = o->work;
	w->config.version = QUARRY_VERSION;
	w->config.clock = &clock_system;
	w->config.compute.threads = o->threads ? o->threads : usable_cores();
	w->config.compute.device = o->device < 0 ? 0 : o->device;
	w->config.compute.device_memory = o->gpu_memory;
	w->config.memory_bytes = o->memory_bytes ? o->memory_bytes : machine_memory();
	w->config.cache_bytes = o->cache_bytes;
	w->config.read_paths = o->read_paths;
	w->config.wait_for_server = o->wait_for_server;
	w->config.checkpoint_ms = (int64_t)o->checkpoint_seconds * 1000;
	if (set_client(w, err) != 0 || lock_work(w, err) != 0)
		return -1;
	w->config.name = o->name ? o->name : w->name;
	return o->name ? 0 : find_name(w, err);
}

/* --- running ---------------------------------------------------------------------------------------------- */

/* A new process in the place of this one; -1 when there were too many, or it cannot be. */
static int start_anew(struct worker *w, const struct err *why, struct err *err)
{
	const struct clock *clock = w->config.clock;

	if (restart_note(w->options.work, clock->wall_ms(clock->ctx), err) != 0)
		return err_prefix(err, "the device was lost (%s)", why->text);
	log_warn("starting anew, to use the device again");
	return restart_exec(w->argv, err);
}

static int end(struct worker *w, struct agent *agent, int rc, struct err *err)
{
	struct err why;
	bool lost = agent_lost_device(agent, &why), freed = agent_free(agent);

	if (rc == 0 && lost)
		rc = start_anew(w, &why, err);
	if (freed)
		return rc;
	if (rc != 0)
		fprintf(stderr, "quarry-worker: %s\n", err->text);
	log_warn("the compute thread did not stop in time; ending without it");
	_exit(rc == 0 ? 0 : EXIT_FAILED);
}

/* The exit status; err is set unless it is 0. */
static int serve(struct worker *w, struct err *err)
{
	struct agent *agent;

	if (configure(w, err) != 0)
		return EXIT_FAILED;
	agent = agent_new(&w->config, err);
	if (!agent)
		return err->code == ERR_UNAVAILABLE ? EXIT_NO_DEVICE :
		       err->code == ERR_INVALID ? EXIT_USAGE : EXIT_FAILED;
	return end(w, agent, agent_run(agent, err), err) == 0 ? 0 : EXIT_FAILED;
}

static int run(struct worker *w, pid_t parent)
{
	struct err err = ERR_INIT;
	int status;

	log_setup("worker", w->options.log_level);
	signal(SIGPIPE, SIG_IGN);
	if (w->options.exit_with_parent) {
		w->config.parent = (int)parent;
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		if (getppid() != parent)
			return 0; /* it ended before it could be watched */
	}
	status = serve(w, &err);
	if (status != 0)
		fprintf(stderr, "quarry-worker: %s\n", err.text);
	client_config_deinit(&w->config.client);
	if (w->lock_fd >= 0)
		close(w->lock_fd);
	return status;
}

static int choose_backend(struct worker *w, struct err *err)
{
	const struct worker_options *o = &w->options;
	const struct backend_ops *ops = o->backend ? backend_find(o->backend, err) : backend_list[0];

	if (!ops)
		return err_prefix(err, "--backend %s", o->backend);
	w->config.backend = ops;
	if (ops->describe || (o->device < 0 && o->gpu_memory == 0))
		return 0;
	return err_set(err, ERR_INVALID, "--%s is for a backend with devices of its own, and %s has none",
		       o->device >= 0 ? "device" : "gpu-memory", ops->name);
}

int main(int argc, char **argv)
{
	struct worker w = { .lock_fd = -1, .argv = argv };
	struct err err = ERR_INIT;
	pid_t parent = getppid();

	if (worker_options_parse(&w.options, argc, argv, &err) != 0) {
		fprintf(stderr, "quarry-worker: %s\n", err.text);
		return EXIT_USAGE;
	}
	if (w.options.help || w.options.version) {
		fputs(w.options.help ? worker_usage : "quarry-worker " QUARRY_VERSION "\n", stdout);
		return 0;
	}
	if (choose_backend(&w, &err) != 0) {
		fprintf(stderr, "quarry-worker: %s\n", err.text);
		return EXIT_USAGE;
	}
	return run(&w, parent);
}
