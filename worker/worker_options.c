#include "worker/worker_options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"

enum { CHECKPOINT_SECONDS_MAX = 86400, DEVICE_MAX = 1023 };

const char worker_usage[] =
	"usage: quarry-worker --server URL --work DIR [options]\n"
	"\n"
	"Takes tasks from a coordinator, computes them, hands in the results. On SIGTERM it takes no more,\n"
	"finishes or gives back the task at hand, hands in what is finished, and stops; a second SIGTERM stops it\n"
	"at once. Results that could not be handed in stay in DIR for the next start.\n"
	"\n"
	"  --server URL         the coordinator: http://HOST:PORT or https://HOST:PORT\n"
	"  --token-file FILE    file that holds a token with the role worker\n"
	"  --work DIR           folder of this worker alone: cache, results not handed in yet (made when missing)\n"
	"  --backend NAME       what computes: cpu, ref, or cuda in a program built with it (default: cpu)\n"
	"  --device N           the GPU that this worker uses, counted from 0 (0)\n"
	"  --gpu-memory BYTES   limit of the GPU's memory (default: what there is)\n"
	"  --threads N          compute threads (default: one per core this process may use)\n"
	"  --cache-size BYTES   limit of the blob cache, e.g. 500MB, 20GiB (20GB)\n"
	"  --memory BYTES       memory reported to the coordinator (default: what the machine has)\n"
	"  --name NAME          name in lists (default: host name and a number kept in DIR)\n"
	"  --no-local-models    read checkpoints from the coordinator even where the same folder is visible, and make\n"
	"                       no hard links to its blobs\n"
	"  --checkpoint-seconds N  leave a checkpoint of a long task with the coordinator every N seconds at most (60)\n"
	"  --no-wait            give up when the coordinator cannot be reached at the start\n"
	"  --exit-with-parent   stop when the parent process ends\n"
	"  --log-level LEVEL    debug, info, warn or error (info)\n"
	"  --help, --version\n";

enum {
	OPT_SERVER = 1, OPT_TOKEN, OPT_WORK, OPT_BACKEND, OPT_THREADS, OPT_CACHE, OPT_MEMORY, OPT_DEVICE,
	OPT_GPU_MEMORY, OPT_NAME,
	OPT_NO_LOCAL, OPT_CHECKPOINT, OPT_NO_WAIT, OPT_PARENT, OPT_LOG, OPT_HELP, OPT_VERSION
};

static const struct option long_options[] = {
	{ "server", required_argument, NULL, OPT_SERVER },
	{ "token-file", required_argument, NULL, OPT_TOKEN },
	{ "work", required_argument, NULL, OPT_WORK },
	{ "backend", required_argument, NULL, OPT_BACKEND },
	{ "threads", required_argument, NULL, OPT_THREADS },
	{ "cache-size", required_argument, NULL, OPT_CACHE },
	{ "memory", required_argument, NULL, OPT_MEMORY },
	{ "device", required_argument, NULL, OPT_DEVICE },
	{ "gpu-memory", required_argument, NULL, OPT_GPU_MEMORY },
	{ "name", required_argument, NULL, OPT_NAME },
	{ "no-local-models", no_argument, NULL, OPT_NO_LOCAL },
	{ "checkpoint-seconds", required_argument, NULL, OPT_CHECKPOINT },
	{ "no-wait", no_argument, NULL, OPT_NO_WAIT },
	{ "exit-with-parent", no_argument, NULL, OPT_PARENT },
	{ "log-level", required_argument, NULL, OPT_LOG },
	{ "help", no_argument, NULL, OPT_HELP },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ NULL, 0, NULL, 0 },
};

static int unit_factor(const char *unit, uint64_t *factor)
{
	static const struct { const char *name; uint64_t factor; } units[] = {
		{ "", 1 }, { "B", 1 },
		{ "kB", 1000 }, { "KB", 1000 }, { "MB", 1000000 }, { "GB", 1000000000 },
		{ "TB", 1000000000000 },
		{ "KiB", (uint64_t)1 << 10 }, { "MiB", (uint64_t)1 << 20 }, { "GiB", (uint64_t)1 << 30 },
		{ "TiB", (uint64_t)1 << 40 },
	};

	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
		if (strcmp(unit, units[i].name) == 0) {
			*factor = units[i].factor;
			return 0;
		}
	return -1;
}

int worker_parse_bytes(const char *text, uint64_t *bytes)
{
	unsigned long long n;
	uint64_t factor;
	char *unit;

	errno = 0;
	n = strtoull(text, &unit, 10);
	if (!isdigit((unsigned char)*text) || errno != 0 || unit_factor(unit, &factor) != 0)
		return -1;
	return u64_mul(n, factor, bytes) ? 0 : -1;
}

static int take_bytes(const char *name, uint64_t *bytes, struct err *err)
{
	if (worker_parse_bytes(optarg, bytes) != 0 || *bytes == 0)
		return err_set(err, ERR_INVALID, "--%s %s: expected bytes, such as 500MB or 20GiB", name, optarg);
	return 0;
}

static int take_number(const char *name, int least, int most, int *out, struct err *err)
{
	char *end;
	long n = strtol(optarg, &end, 10);

	if (end == optarg || *end || n < least || n > most)
		return err_set(err, ERR_INVALID, "--%s %s: expected a whole number from %d to %d", name, optarg, least,
			       most);
	*out = (int)n;
	return 0;
}

static int take_name(const char **name, struct err *err)
{
	size_t len = strlen(optarg);

	for (size_t i = 0; i < len; i++)
		if ((unsigned char)optarg[i] < ' ' || optarg[i] == 0x7f)
			len = 0;
	if (len == 0 || len > 128)
		return err_set(err, ERR_INVALID, "--name: expected 1 to 128 printable characters");
	*name = optarg;
	return 0;
}

static int take_level(enum log_level *out, struct err *err)
{
	static const char *const names[] = { "debug", "info", "warn", "error" };

	for (int i = 0; i < 4; i++)
		if (strcmp(optarg, names[i]) == 0) {
			*out = (enum log_level)i;
			return 0;
		}
	return err_set(err, ERR_INVALID, "--log-level %s: expected debug, info, warn or error", optarg);
}

static int take_option(struct worker_options *o, int option, struct err *err)
{
	switch (option) {
	case OPT_SERVER: o->server = optarg; return 0;
	case OPT_TOKEN: o->token_file = optarg; return 0;
	case OPT_WORK: o->work = optarg; return 0;
	case OPT_BACKEND: o->backend = optarg; return 0;
	case OPT_THREADS: return take_number("threads", 1, 1024, &o->threads, err);
	case OPT_CACHE: return take_bytes("cache-size", &o->cache_bytes, err);
	case OPT_MEMORY: return take_bytes("memory", &o->memory_bytes, err);
	case OPT_DEVICE: return take_number("device", 0, DEVICE_MAX, &o->device, err);
	case OPT_GPU_MEMORY: return take_bytes("gpu-memory", &o->gpu_memory, err);
	case OPT_NAME: return take_name(&o->name, err);
	case OPT_NO_LOCAL: o->read_paths = false; return 0;
	case OPT_CHECKPOINT:
		return take_number("checkpoint-seconds", 0, CHECKPOINT_SECONDS_MAX, &o->checkpoint_seconds, err);
	case OPT_NO_WAIT: o->wait_for_server = false; return 0;
	case OPT_PARENT: o->exit_with_parent = true; return 0;
	case OPT_LOG: return take_level(&o->log_level, err);
	case OPT_HELP: o->help = true; return 0;
	case OPT_VERSION: o->version = true; return 0;
	default: return err_set(err, ERR_INVALID, "option not understood");
	}
}

static int check_required(const struct worker_options *o, struct err *err)
{
	if (!o->server)
		return err_set(err, ERR_INVALID, "--server URL is missing: say where the coordinator is");
	if (!o->work || !*o->work)
		return err_set(err, ERR_INVALID, "--work DIR is missing: say where cache and results may lie");
	return 0;
}

int worker_options_parse(struct worker_options *o, int argc, char **argv, struct err *err)
{
	int option;

	*o = (struct worker_options){
		.device = -1, .cache_bytes = 20000000000, .checkpoint_seconds = 60, .read_paths = true,
		.wait_for_server = true, .log_level = LOG_INFO,
	};
	optind = 1;
	opterr = 0;
	while ((option = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
		if (option == ':')
			return err_set(err, ERR_INVALID, "option %s needs a value; see quarry-worker --help",
				       argv[optind - 1]);
		if (option == '?')
			return err_set(err, ERR_INVALID, "option %s is not known; see quarry-worker --help",
				       argv[optind - 1]);
		if (take_option(o, option, err) != 0)
			return -1;
	}
	if (o->help || o->version)
		return 0;
	if (optind < argc)
		return err_set(err, ERR_INVALID, "%s is not an option; see quarry-worker --help", argv[optind]);
	return check_required(o, err);
}
