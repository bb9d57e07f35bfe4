/* recipe_option.c - "--name value" into the JSON in which recipes are submitted.
 *
 * Only the spelling is handled here: each form turns text into a JSON value. What values are right
 * is decided where recipes are read, so a value is tried there before it is kept.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/recipe.h"
#include "common/utf8.h"

enum form {
	FORM_INTEGER, FORM_SIZE, FORM_WORD, FORM_FLAG,
	FORM_LIST,     /* comma separated; replaces */
	FORM_REPEATED, /* each use adds one text */
	FORM_OVERRIDE, /* each use adds one */
};

static const struct option { const char *name; enum form form; } options[] = {
	{ "bits", FORM_INTEGER }, { "group_size", FORM_INTEGER }, { "method", FORM_WORD },
	{ "zero_point", FORM_WORD }, { "symmetric", FORM_FLAG }, { "rounding", FORM_WORD },
	{ "effort", FORM_WORD }, { "refine", FORM_INTEGER }, { "distill", FORM_WORD },
	{ "distill_samples", FORM_INTEGER }, { "block_epochs", FORM_INTEGER }, { "epochs", FORM_INTEGER },
	{ "train_codes", FORM_FLAG }, { "propagate", FORM_WORD },
	{ "samples", FORM_INTEGER }, { "seq_len", FORM_INTEGER }, { "seed", FORM_INTEGER },
	{ "max_shard_size", FORM_SIZE }, { "calibration", FORM_WORD }, { "eval", FORM_REPEATED },
	{ "eval_windows", FORM_INTEGER }, { "embeddings", FORM_INTEGER }, { "lm_head", FORM_INTEGER },
	{ "format", FORM_LIST }, { "override", FORM_OVERRIDE },
};

static const struct option *find_option(const char *name)
{
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		const char *a = options[i].name, *b = name;

		while (*a && *a == (*b == '-' ? '_' : *b))
			a++, b++;
		if (!*a && !*b)
			return &options[i];
	}
	return NULL;
}

/* --- forms -------------------------------------------------------------------- */

static struct json *out_of_memory(struct json *value, struct err *err)
{
	if (!value)
		err_set_nomem(err, "an option");
	return value;
}

static struct json *refuse(struct err *err, const char *text, const char *what)
{
	char shown[UTF8_SHOWN_MAX];

	err_set(err, ERR_INVALID, "\"%s\" is not %s", utf8_show(shown, text), what);
	return NULL;
}

static struct json *form_integer(const char *text, struct err *err)
{
	char *end;
	long long number;

	errno = 0;
	number = strtoll(text, &end, 10);
	if (end == text || *end || errno || number > 1ll << 53 || number < -(1ll << 53))
		return refuse(err, text, "an integer");
	return out_of_memory(json_new_number((double)number), err);
}

/* "5GB", "500MB", "2GiB", or plain bytes. */
static struct json *form_size(const char *text, struct err *err)
{
	static const struct { const char *name; uint64_t bytes; } units[] = {
		{ "", 1 }, { "B", 1 }, { "KB", 1000 }, { "MB", 1000000 }, { "GB", 1000000000 },
		{ "TB", 1000000000000 }, { "KiB", 1ull << 10 }, { "MiB", 1ull << 20 },
		{ "GiB", 1ull << 30 }, { "TiB", 1ull << 40 },
	};
	size_t digits = strspn(text, "0123456789");
	uint64_t number = digits > 0 && digits < 17 ? strtoull(text, NULL, 10) : 0;

	for (size_t i = 0; digits && i < sizeof(units) / sizeof(units[0]); i++)
		if (strcasecmp(text + digits, units[i].name) == 0 &&
		    u64_mul(number, units[i].bytes, &number) && number <= 1ull << 53 && number > 0)
			return out_of_memory(json_new_number((double)number), err);
	return refuse(err, text, "a size such as 5GB, 500MB or 2GiB");
}

static struct json *form_flag(const char *text, struct err *err)
{
	if (text && strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
		return refuse(err, text, "true or false");
	return out_of_memory(json_new_bool(!text || strcmp(text, "true") == 0), err);
}

static int push_piece(struct json *array, const char *text, size_t len)
{
	char *piece = mem_strndup(text, len);
	int rc = piece ? json_push(array, json_new_string(piece)) : -1;

	mem_free(piece);
	return rc;
}

static struct json *form_list(const char *text, struct err *err)
{
	struct json *array = json_new_array();
	int rc = array ? 0 : -1;

	for (const char *p = text; rc == 0; p++) {
		size_t len = strcspn(p, ",");

		rc = push_piece(array, p, len);
		p += len;
		if (!*p)
			break;
	}
	if (rc == 0)
		return array;
	json_free(array);
	return out_of_memory(NULL, err);
}

/* --- overrides ---------------------------------------------------------------- */

/* "key=value" into the object. */
static int set_pair(struct json *object, const char *text, struct err *err)
{
	static const char what[] = "a setting such as bits=4, group_size=64, method=neuqi, "
				   "zero_point=integer, symmetric=true, rounding=nearest, or \"skip\"";
	const char *equals = strchr(text, '=');
	char *key = equals ? mem_strndup(text, (size_t)(equals - text)) : NULL;
	const struct option *option = key ? find_option(key) : NULL;
	int rc = -1;

	if (equals && !key)
		err_set_nomem(err, "an option");
	else if (!option || option - options > 5) /* the settings of a module come first */
		refuse(err, text, what);
	else if (json_get(object, option->name))
		err_set(err, ERR_INVALID, "\"%s\" is given twice", option->name);
	else
		rc = recipe_option(object, key, equals + 1, err);
	mem_free(key);
	return rc;
}

static int set_pairs(struct json *object, const char *text, struct err *err)
{
	char *copy, *save = NULL;
	int rc = 0;

	if (strcmp(text, "skip") == 0)
		return json_set_bool(object, "skip", true) == 0 ? 0 : err_set_nomem(err, "an option");
	copy = mem_strdup(text);
	if (!copy)
		return err_set_nomem(err, "an option");
	for (char *p = strtok_r(copy, ",", &save); rc == 0 && p; p = strtok_r(NULL, ",", &save))
		rc = set_pair(object, p, err);
	mem_free(copy);
	return rc;
}

/* "REGEX:settings"; the last colon divides, as patterns may hold some. */
static struct json *form_override(const char *text, struct err *err)
{
	const char *colon = strrchr(text, ':');
	struct json *object;
	char *regex;
	int rc = -1;

	if (!colon)
		return refuse(err, text, "an override such as REGEX:bits=4,group_size=64 or REGEX:skip");
	object = json_new_object();
	regex = mem_strndup(text, (size_t)(colon - text));
	if (!object || !regex || json_set_string(object, "match", regex) != 0)
		err_set_nomem(err, "an option");
	else
		rc = set_pairs(object, colon + 1, err);
	mem_free(regex);
	if (rc == 0)
		return object;
	json_free(object);
	return NULL;
}

static struct json *to_value(const struct option *option, const char *text, struct err *err)
{
	switch (option->form) {
	case FORM_INTEGER:
		return form_integer(text, err);
	case FORM_SIZE:
		return form_size(text, err);
	case FORM_WORD:
	case FORM_REPEATED:
		return out_of_memory(json_new_string(text), err);
	case FORM_FLAG:
		return form_flag(text, err);
	case FORM_LIST:
		return form_list(text, err);
	case FORM_OVERRIDE:
		return form_override(text, err);
	}
	return NULL;
}

/* --- keeping a value ---------------------------------------------------------- */

/* A copy of the object's array under `name` with `value` added; takes over `value`. */
static struct json *extended(const struct json *object, const char *name, struct json *value,
			     struct err *err)
{
	const struct json *old = json_get(object, name);
	struct json *array = json_type(old) == JSON_ARRAY ? json_copy(old) : json_new_array();

	if (json_push(array, value) == 0)
		return array;
	json_free(array);
	return out_of_memory(NULL, err);
}

/* Whether a recipe with just this field would be accepted. */
static int try_value(const char *name, const struct json *value, struct err *err)
{
	struct json *object = json_new_object();
	struct recipe scratch;
	int rc = -1;

	if (json_set(object, name, json_copy(value)) != 0) {
		err_set_nomem(err, "an option");
	} else if (recipe_from_json(&scratch, object, NULL, err) == 0) {
		recipe_deinit(&scratch);
		rc = 0;
	}
	json_free(object);
	return rc;
}

static int keep(struct json *object, const struct option *option, const char *text, struct err *err)
{
	struct json *value = to_value(option, text, err);

	if (value && (option->form == FORM_REPEATED || option->form == FORM_OVERRIDE))
		value = extended(object, option->name, value, err);
	if (!value)
		return -1;
	if (try_value(option->name, value, err) != 0) {
		json_free(value);
		return -1;
	}
	json_remove(object, option->name);
	if (json_set(object, option->name, value) != 0)
		return err_set_nomem(err, "an option");
	return 0;
}

int recipe_option(struct json *object, const char *name, const char *value, struct err *err)
{
	const struct option *option = find_option(name);

	if (!option)
		return 1;
	if (!value && option->form != FORM_FLAG)
		return err_set(err, ERR_INVALID, "--%s needs a value", name);
	if (keep(object, option, value, err) != 0)
		return err_prefix(err, "--%s", name);
	return 0;
}
