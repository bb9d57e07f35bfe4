#include "cli/args.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/recipe.h"

const struct arg_spec connection_specs[] = {
	{ "server", "URL", "the coordinator; default: the environment's QUARRY_SERVER" },
	{ "token-file", "FILE", "file that holds the token; default: QUARRY_TOKEN_FILE" },
	{ NULL, NULL, NULL },
};

const struct arg_spec recipe_specs[] = {
	{ "bits", "1..8", "bits per weight (default 4)" },
	{ "group-size", "N", "weights that share a scale; -1 = a whole output channel (default 64)" },
	{ "method", "neuqi|minmax", "how scales and zero-points are found (default neuqi)" },
	{ "zero-point", "float|integer", "kind of zero-point (default float)" },
	{ "symmetric", NULL, "zero-point fixed at the middle" },
	{ "rounding", "ldlq|nearest", "rounding with error feedback, or plain (default ldlq)" },
	{ "effort", "fast|balanced|best", "sets the next six: quality against time (default balanced)" },
	{ "refine", "N", "rounds of refinement after rounding (default 2; best: 4)" },
	{ "distill", "none|block|end-to-end|full", "what is trained against the original (default full; fast: none)" },
	{ "distill-samples", "N", "sequences to train on; 0 = as many as --samples (default 0)" },
	{ "block-epochs", "N", "passes of block distillation (default 1; best: 2)" },
	{ "epochs", "N", "passes of end-to-end distillation (default 3; best: 4)" },
	{ "train-codes", "true|false", "distillation moves codes, not only scales and norms (default true)" },
	{ "propagate", "original|quantized", "whose activations later layers see (default original)" },
	{ "calibration", "FILE", ".jsonl (text or input_ids) or plain text (default: the shipped text)" },
	{ "samples", "N", "calibration sequences (default 128)" },
	{ "seq-len", "N", "tokens per sequence (default 1024, or the model's longest)" },
	{ "eval", "FILE|none", "text to measure perplexity on; may be repeated (default: the shipped text)" },
	{ "eval-windows", "N", "at most so many windows per text; 0 = all" },
	{ "embeddings", "16|8|6|4", "bits of the embedding table; 16 = as the source has it (default 16)" },
	{ "lm-head", "16|8|6|4", "bits of the output head (default 16; a tied head is the embedding)" },
	{ "format", "LIST", "formats to write, comma separated; packed is always written (default dense)" },
	{ "override", "REGEX:...", "other settings for matching modules, as in 'down_proj:bits=4' or ':skip'" },
	{ "seed", "N", "0: the first calibration sequences; else as many at random (default 0)" },
	{ "max-shard-size", "SIZE", "largest output file, as in 2GB (default 5GB)" },
	{ NULL, NULL, NULL },
};

/* --- edit distance -------------------------------------------------------------------------- */

enum { WORD_MAX = 40 };

static unsigned least3(unsigned a, unsigned b, unsigned c)
{
	unsigned low = a < b ? a : b;

	return low < c ? low : c;
}

static unsigned edit_distance(const char *a, const char *b)
{
	unsigned row[WORD_MAX + 1];
	size_t la = strlen(a), lb = strlen(b);

	if (la > WORD_MAX || lb > WORD_MAX)
		return WORD_MAX;
	for (size_t j = 0; j <= lb; j++)
		row[j] = (unsigned)j;
	for (size_t i = 1; i <= la; i++) {
		unsigned diagonal = row[0];

		row[0] = (unsigned)i;
		for (size_t j = 1; j <= lb; j++) {
			unsigned above = row[j];

			row[j] = least3(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
			diagonal = above;
		}
	}
	return row[lb];
}

const char *nearest_word(const char *word, const char *const *candidates, size_t count)
{
	const char *best = NULL;
	unsigned least = 1 + (unsigned)strlen(word) / 2; /* further than that is another word */

	for (size_t i = 0; i < count; i++) {
		unsigned far = edit_distance(word, candidates[i]);

		if (far < least) {
			least = far;
			best = candidates[i];
		}
	}
	return best;
}

/* --- parsing -------------------------------------------------------------------------------- */

static const struct arg_spec *find_spec(const struct arg_spec *specs, const char *name, size_t len)
{
	for (; specs && specs->name; specs++)
		if (strlen(specs->name) == len && memcmp(specs->name, name, len) == 0)
			return specs;
	return NULL;
}

/* Own options come first: a command may give one of the recipe's a meaning of its own. */
static const struct arg_spec *find_option(const struct command *c, const char *name, size_t len, bool *recipe)
{
	const struct arg_spec *spec = find_spec(c->options, name, len);

	*recipe = false;
	if (!spec && c->connects)
		spec = find_spec(connection_specs, name, len);
	if (!spec && c->recipe) {
		spec = find_spec(recipe_specs, name, len);
		*recipe = spec != NULL;
	}
	return spec;
}

static size_t collect_names(const struct arg_spec *specs, const char **names, size_t count)
{
	for (; specs && specs->name && count < ARGS_VALUES_MAX; specs++)
		names[count++] = specs->name;
	return count;
}

static int refuse_unknown(const struct command *c, const char *word, size_t len, struct err *err)
{
	const char *names[ARGS_VALUES_MAX], *nearest;
	char name[WORD_MAX + 1];
	size_t count = collect_names(c->options, names, 0);

	count = c->connects ? collect_names(connection_specs, names, count) : count;
	count = c->recipe ? collect_names(recipe_specs, names, count) : count;
	snprintf(name, sizeof(name), "%.*s", (int)len, word);
	nearest = nearest_word(name, names, count);
	if (nearest)
		return err_set(err, ERR_INVALID, "unknown option --%s; did you mean --%s?", name, nearest);
	return err_set(err, ERR_INVALID, "unknown option --%s; 'quarry %s --help' lists them", name, c->name);
}

static int keep_value(struct args *a, const char *name, const char *value, struct err *err)
{
	if (a->value_count == ARGS_VALUES_MAX)
		return err_set(err, ERR_INVALID, "more than %d options given", ARGS_VALUES_MAX);
	a->values[a->value_count].name = name;
	a->values[a->value_count++].value = value;
	return 0;
}

static bool names_a_file(const char *name)
{
	return strcmp(name, "calibration") == 0 || strcmp(name, "eval") == 0;
}

static int take_option(struct args *a, const struct arg_spec *spec, bool recipe, const char *value,
		       struct err *err)
{
	if (keep_value(a, spec->name, value ? value : "", err) != 0)
		return -1;
	if (!recipe || names_a_file(spec->name))
		return 0;
	if (recipe_option(a->recipe, spec->name, value, err) == 1)
		return err_set(err, ERR_UNSUPPORTED, "--%s is not supported by this version", spec->name);
	return err->code == ERR_NONE ? 0 : -1;
}

/* Parses argv[*at] (begins with "--" or is "-o") and advances *at past what it used up. */
static int parse_option(struct args *a, int argc, char **argv, int *at, struct err *err)
{
	const char *word = strcmp(argv[*at], "-o") == 0 ? "output" : argv[*at] + 2;
	size_t len = strcspn(word, "=");
	const char *value = word[len] == '=' ? word + len + 1 : NULL;
	bool recipe;
	const struct arg_spec *spec = find_option(a->command, word, len, &recipe);

	if (!spec)
		return refuse_unknown(a->command, word, len, err);
	if (!spec->value && value)
		return err_set(err, ERR_INVALID, "--%s takes no value", spec->name);
	if (spec->value && !value) {
		if (*at + 1 >= argc)
			return err_set(err, ERR_INVALID, "--%s needs a value: %s", spec->name, spec->value);
		value = argv[++*at];
	}
	++*at;
	return take_option(a, spec, recipe, value, err);
}

static bool is_option(const char *word)
{
	return (word[0] == '-' && word[1] == '-' && word[2] != '\0') || strcmp(word, "-o") == 0;
}

static int check_positional(const struct args *a, struct err *err)
{
	const struct command *c = a->command;

	if (a->positional_count < c->least)
		return err_set(err, ERR_INVALID, "too few arguments; usage: quarry %s %s", c->name, c->usage);
	if (a->positional_count > c->most)
		return err_set(err, ERR_INVALID, "'%s' is one argument too many; usage: quarry %s %s",
			       a->positional[c->most], c->name, c->usage);
	return 0;
}

int args_parse(struct args *a, const struct command *command, int argc, char **argv, struct err *err)
{
	bool options = true;

	*a = (struct args){ .command = command };
	if (command->recipe && !(a->recipe = json_new_object()))
		return err_set_nomem(err, "the recipe");
	for (int i = 0; i < argc;) {
		if (options && (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)) {
			a->help = true;
			return 0;
		}
		if (options && strcmp(argv[i], "--") == 0) {
			options = false;
			i++;
		} else if (options && is_option(argv[i])) {
			if (parse_option(a, argc, argv, &i, err) != 0)
				return -1;
		} else if (options && argv[i][0] == '-' && argv[i][1] != '\0') {
			return err_set(err, ERR_INVALID, "unknown option %s; 'quarry %s --help' lists them",
				       argv[i], command->name);
		} else if (a->positional_count == ARGS_VALUES_MAX) {
			return err_set(err, ERR_INVALID, "more than %d arguments given", ARGS_VALUES_MAX);
		} else {
			a->positional[a->positional_count++] = argv[i++];
		}
	}
	return check_positional(a, err);
}

void args_deinit(struct args *a)
{
	json_free(a->recipe);
	a->recipe = NULL;
}

/* --- reading -------------------------------------------------------------------------------- */

bool args_has(const struct args *a, const char *name)
{
	return args_nth(a, name, 0) != NULL;
}

const char *args_get(const struct args *a, const char *name, const char *otherwise)
{
	for (size_t i = a->value_count; i > 0; i--)
		if (strcmp(a->values[i - 1].name, name) == 0)
			return a->values[i - 1].value;
	return otherwise;
}

const char *args_nth(const struct args *a, const char *name, size_t nth)
{
	for (size_t i = 0; i < a->value_count; i++)
		if (strcmp(a->values[i].name, name) == 0 && nth-- == 0)
			return a->values[i].value;
	return NULL;
}

int args_int(const struct args *a, const char *name, int64_t min, int64_t max, int64_t otherwise,
	     int64_t *out, struct err *err)
{
	const char *text = args_get(a, name, NULL);
	char *end = NULL;

	*out = otherwise;
	if (!text)
		return 0;
	errno = 0;
	*out = strtoll(text, &end, 10);
	if (errno || end == text || *end || *out < min || *out > max)
		return err_set(err, ERR_INVALID, "--%s '%s' is not a whole number from %lld to %lld", name, text,
			       (long long)min, (long long)max);
	return 0;
}

/* --- help ----------------------------------------------------------------------------------- */

static void print_specs(const char *title, const struct arg_spec *specs)
{
	if (!specs || !specs->name)
		return;
	printf("\n%s:\n", title);
	for (; specs->name; specs++) {
		char left[64];

		snprintf(left, sizeof(left), "--%s%s%s", specs->name, specs->value ? " " : "",
			 specs->value ? specs->value : "");
		if (strlen(left) > 30)
			printf("  %s\n  %30s %s\n", left, "", specs->help);
		else
			printf("  %-30s %s\n", left, specs->help);
	}
}

void args_print_help(const struct command *c)
{
	printf("usage: quarry %s %s\n\n%s\n", c->name, c->usage, c->summary);
	if (c->details)
		printf("\n%s\n", c->details);
	print_specs("Options", c->options);
	if (c->connects)
		print_specs("Connection", connection_specs);
	if (c->recipe)
		print_specs("Recipe", recipe_specs);
	printf("\nExit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n");
}
