/* args.h - the command line, parsed against a command's tables.
 *
 * "--name value", "--name=value", flags, "-o" for --output, "-h" for --help, "--" ends options. An unknown
 * option is refused with the nearest known one; one given twice keeps all values (args_get: the last).
 * Recipe options go through recipe_option() into a JSON object, the form in which recipes travel;
 * --calibration and --eval are files here and become data sets later, so they are kept as text.
 */
#ifndef QUARRY_CLI_ARGS_H
#define QUARRY_CLI_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cli/command.h"
#include "common/err.h"
#include "common/json.h"

enum { ARGS_VALUES_MAX = 128 };

struct args {
	const struct command *command;
	struct { const char *name, *value; } values[ARGS_VALUES_MAX]; /* borrowed from argv and tables */
	size_t value_count;
	const char *positional[ARGS_VALUES_MAX];
	size_t positional_count;
	struct json *recipe;    /* owned; NULL when the command takes none */
	bool help;
};

/* argv[0] is the first word after the command's name. */
int args_parse(struct args *a, const struct command *command, int argc, char **argv, struct err *err);
void args_deinit(struct args *a);

bool args_has(const struct args *a, const char *name);
/* The last value given, or `otherwise`. */
const char *args_get(const struct args *a, const char *name, const char *otherwise);
/* The nth (from 0) value of a repeated option, or NULL. */
const char *args_nth(const struct args *a, const char *name, size_t nth);
/* A whole number within min..max; `otherwise` when absent. */
int args_int(const struct args *a, const char *name, int64_t min, int64_t max, int64_t otherwise,
	     int64_t *out, struct err *err);

/* Prints usage, options and details of a command. */
void args_print_help(const struct command *command);

/* The candidate fewest edits away from `word`, when that is near enough to be a slip; else NULL. */
const char *nearest_word(const char *word, const char *const *candidates, size_t count);

/* The recipe options, for help and for suggestions. Ends with name NULL. */
extern const struct arg_spec recipe_specs[];
extern const struct arg_spec connection_specs[];

#endif
