#include "server/options.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "server/listen.h"

const char options_usage[] =
	"usage: quarry-server --data DIR [options]\n"
	"\n"
	"Runs the coordinator: takes jobs, hands out tasks, keeps results. Stops on SIGTERM or SIGINT.\n"
	"\n"
	"  --data DIR              where the database and the blobs lie (made when missing)\n"
	"  --listen ADDR:PORT      where to serve HTTP; port 0 takes a free one (127.0.0.1:8750)\n"
	"  --model-root DIR        models below this folder may be registered by path; may be repeated\n"
	"  --tokens FILE           first tokens, one \"role:token\" a line; otherwise one per role is made\n"
	"                          and printed on the first start, and never again\n"
	"  --ready-file FILE       write the base URL to FILE once requests are served\n"
	"  --exit-with-parent      stop when the parent process ends\n"
	"  --lease-seconds N       a task whose worker is silent for so long is given to another (60)\n"
	"  --header-timeout N      seconds a client has to send a request's headers (15)\n"
	"  --connections N         connections at one time, half of them from one address (1024)\n"
	"  --requests-per-second N requests from one address, over any two seconds; 0 = no limit (5000)\n"
	"  --log-level LEVEL       debug, info, warn or error (info)\n"
	"  --help, --version\n";

enum {
	OPT_DATA = 1, OPT_LISTEN, OPT_ROOT, OPT_TOKENS, OPT_READY, OPT_PARENT, OPT_LEASE, OPT_HEADER,
	OPT_CONNECTIONS, OPT_RATE, OPT_LOG, OPT_HELP, OPT_VERSION
};

static const struct option long_options[] = {
	{ "data", required_argument, NULL, OPT_DATA },
	{ "listen", required_argument, NULL, OPT_LISTEN },
	{ "model-root", required_argument, NULL, OPT_ROOT },
	{ "tokens", required_argument, NULL, OPT_TOKENS },
	{ "ready-file", required_argument, NULL, OPT_READY },
	{ "exit-with-parent", no_argument, NULL, OPT_PARENT },
	{ "lease-seconds", required_argument, NULL, OPT_LEASE },
	{ "header-timeout", required_argument, NULL, OPT_HEADER },
	{ "connections", required_argument, NULL, OPT_CONNECTIONS },
	{ "requests-per-second", required_argument, NULL, OPT_RATE },
	{ "log-level", required_argument, NULL, OPT_LOG },
	{ "help", no_argument, NULL, OPT_HELP },
	{ "version", no_argument, NULL, OPT_VERSION },
	{ NULL, 0, NULL, 0 },
};

static int parse_count(const char *name, const char *text, int64_t least, int64_t most, int64_t *out,
		       struct err *err)
{
	char *end;
	long long n = strtoll(text, &end, 10);

	if (end == text || *end || n < least || n > most)
		return err_set(err, ERR_INVALID, "--%s %s: expected a whole number from %lld to %lld", name,
			       text,
			       (long long)least, (long long)most);
	*out = n;
	return 0;
}

static int parse_level(const char *text, enum log_level *out, struct err *err)
{
	static const char *const names[] = { "debug", "info", "warn", "error" };

	for (int i = 0; i < 4; i++)
		if (strcmp(text, names[i]) == 0) {
			*out = (enum log_level)i;
			return 0;
		}
	return err_set(err, ERR_INVALID, "--log-level %s: expected debug, info, warn or error", text);
}

static int add_root(struct server_options *o, const char *dir, struct err *err)
{
	size_t n = 0;

	while (o->model_roots[n])
		n++;
	if (n == MODEL_ROOTS_MAX)
		return err_set(err, ERR_INVALID, "--model-root may be given at most %d times",
			       MODEL_ROOTS_MAX);
	o->model_roots[n] = dir;
	return 0;
}

static int take_option(struct server_options *o, int option, struct err *err)
{
	switch (option) {
	case OPT_DATA: o->data = optarg; return 0;
	case OPT_LISTEN: o->listen = optarg; return listen_check(optarg, err);
	case OPT_ROOT: return add_root(o, optarg, err);
	case OPT_TOKENS: o->tokens_file = optarg; return 0;
	case OPT_READY: o->ready_file = optarg; return 0;
	case OPT_PARENT: o->exit_with_parent = true; return 0;
	case OPT_LEASE: return parse_count("lease-seconds", optarg, 1, 86400, &o->lease_s, err);
	case OPT_HEADER: return parse_count("header-timeout", optarg, 1, 3600, &o->header_s, err);
	case OPT_CONNECTIONS: return parse_count("connections", optarg, 4, 65536, &o->connections, err);
	case OPT_RATE:
		return parse_count("requests-per-second", optarg, 0, 1000000, &o->requests_per_s, err);
	case OPT_LOG: return parse_level(optarg, &o->log_level, err);
	case OPT_HELP: o->help = true; return 0;
	case OPT_VERSION: o->version = true; return 0;
	default: return err_set(err, ERR_INVALID, "option not understood");
	}
}

/* What getopt_long() disliked about argv[at]. */
static int bad_option(int option, const char *text, struct err *err)
{
	if (option == ':')
		return err_set(err, ERR_INVALID, "option %s needs a value; see quarry-server --help", text);
	return err_set(err, ERR_INVALID, "option %s is not known; see quarry-server --help", text);
}

int options_parse(struct server_options *o, int argc, char **argv, struct err *err)
{
	int option;

	*o = (struct server_options){
		.listen = "127.0.0.1:8750", .lease_s = 60, .header_s = 15, .connections = 1024,
		.requests_per_s = 5000,
		.log_level = LOG_INFO,
	};
	optind = 1;
	opterr = 0;
	while ((option = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
		if (option == ':' || option == '?')
			return bad_option(option, argv[optind - 1], err);
		if (take_option(o, option, err) != 0)
			return -1;
	}
	if (o->help || o->version)
		return 0;
	if (optind < argc)
		return err_set(err, ERR_INVALID, "%s is not an option; see quarry-server --help",
			       argv[optind]);
	if (!o->data)
		return err_set(err, ERR_INVALID,
			       "--data DIR is missing: say where the database and the blobs lie");
	return 0;
}
