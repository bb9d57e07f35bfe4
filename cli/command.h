/* command.h - one row of the command table, and what every command shares.
 *
 * To add a command: cmd_<name>.c that defines `const struct command cmd_<name>`, a declaration here, a line
 * in the table of main.c, a row in README.md.
 * A command prints its result on stdout and progress on stderr. It returns an exit status; when that is
 * not EXIT_OK, main() prints err's sentence (an empty one prints nothing).
 */
#ifndef QUARRY_CLI_COMMAND_H
#define QUARRY_CLI_COMMAND_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

/* Documented in README.md and `quarry --help`; never renumbered. */
enum exit_status {
	EXIT_OK = 0,
	EXIT_FAILED = 1,        /* understood, not done: the sentence says why */
	EXIT_USAGE = 2,         /* the command line itself is wrong */
	EXIT_INTERRUPTED = 130, /* Ctrl-C, SIGTERM or SIGHUP */
};

/* One option: "--name VALUE", or a flag when `value` is NULL. */
struct arg_spec {
	const char *name;       /* without dashes; NULL ends a table */
	const char *value;      /* what --help calls the value */
	const char *help;
};

struct args;

struct command {
	const char *name;
	const char *usage;              /* what follows the name: "MODEL_DIR -o OUT_DIR [options]" */
	const char *summary;            /* one line for the list */
	const char *details;            /* paragraph for --help, may be NULL */
	const struct arg_spec *options; /* may be NULL */
	bool connects;                  /* also takes --server and --token-file */
	bool recipe;                    /* also takes every recipe option */
	size_t least, most;             /* positional arguments */
	enum exit_status (*run)(const struct args *args, struct err *err);
};

extern const struct command cmd_quantize, cmd_eval, cmd_submit, cmd_jobs, cmd_show, cmd_watch, cmd_cancel,
	cmd_retry, cmd_fetch, cmd_workers, cmd_convert, cmd_inspect, cmd_dequantize;

#endif
