/* recipe.c - the table of options, and a recipe to and from JSON.
 *
 * `fields` is the one list: its order is the canonical order of the JSON, after "kind" and the
 * settings that modules share (recipe_fields.c).
 */
#include "common/recipe.h"

#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/recipe_fields.h"
#include "common/utf8.h"

#define INTEGER_MAX ((int64_t)1 << 53)

static const char *const kind_words[] = { "quantize", "evaluate", NULL };
static const char *const effort_words[] = { "fast", "balanced", "best", NULL };
static const char *const distill_words[] = { "none", "block", "end-to-end", "full", NULL };
static const char *const propagate_words[] = { "original", "quantized", NULL };
/* The names of output_formats (formats/output.h), which this folder does not see; a test holds the lists equal. */
const char *const recipe_format_words[] = {
	"packed", "mlx", "gguf", "compressed-tensors", "gptq", "awq", "dense", "dense-f16", "dense-f32", NULL,
};

enum field_type {
	FIELD_WORD,      /* an enum, by `words` */
	FIELD_INT64, FIELD_UINT64,
	FIELD_TABLE,     /* 16, 8, 6 or 4; 0 too where that is the minimum */
	FIELD_BOOL,
	FIELD_TEXT,
	FIELD_OPTIONAL,  /* a text or null */
	FIELD_EVALS, FIELD_FORMATS, FIELD_OVERRIDES,
};

static const struct field {
	const char *name;
	enum field_type type;
	size_t offset;
	int64_t min, max;
	const char *const *words;
} fields[] = {
	{ "effort", FIELD_WORD, offsetof(struct recipe, effort), 0, 0, effort_words },
	{ "refine", FIELD_INT64, offsetof(struct recipe, refine), 0, 32, NULL },
	{ "distill", FIELD_WORD, offsetof(struct recipe, distill), 0, 0, distill_words },
	{ "distill_samples", FIELD_INT64, offsetof(struct recipe, distill_samples), 0, 1000000, NULL },
	{ "block_epochs", FIELD_INT64, offsetof(struct recipe, block_epochs), 1, 64, NULL },
	{ "epochs", FIELD_INT64, offsetof(struct recipe, epochs), 1, 64, NULL },
	{ "train_codes", FIELD_BOOL, offsetof(struct recipe, train_codes), 0, 0, NULL },
	{ "propagate", FIELD_WORD, offsetof(struct recipe, propagate), 0, 0, propagate_words },
	{ "samples", FIELD_INT64, offsetof(struct recipe, samples), 1, 1000000, NULL },
	{ "seq_len", FIELD_INT64, offsetof(struct recipe, seq_len), 0, 1 << 20, NULL },
	{ "seed", FIELD_UINT64, offsetof(struct recipe, seed), 0, INTEGER_MAX, NULL },
	{ "max_shard_size", FIELD_UINT64, offsetof(struct recipe, max_shard_size), 1, INTEGER_MAX, NULL },
	{ "calibration", FIELD_TEXT, offsetof(struct recipe, calibration), 0, 0, NULL },
	{ "eval", FIELD_EVALS, 0, 0, 0, NULL },
	{ "eval_windows", FIELD_INT64, offsetof(struct recipe, eval_windows), 0, INTEGER_MAX, NULL },
	{ "reference", FIELD_OPTIONAL, offsetof(struct recipe, reference), 0, 0, NULL },
	{ "embeddings", FIELD_TABLE, offsetof(struct recipe, embeddings), 4, 16, NULL },
	{ "lm_head", FIELD_TABLE, offsetof(struct recipe, lm_head), 0, 16, NULL },
	{ "format", FIELD_FORMATS, 0, 0, 0, NULL },
	{ "override", FIELD_OVERRIDES, 0, 0, 0, NULL },
};

enum { FIELD_COUNT = sizeof(fields) / sizeof(fields[0]), BUILTIN_WINDOWS = 16 };

const char *effort_name(enum effort e)
{
	return effort_words[e];
}

const char *distill_name(enum distill d)
{
	return distill_words[d];
}

const char *propagate_name(enum propagate p)
{
	return propagate_words[p];
}

static void *member(const struct recipe *r, const struct field *field)
{
	return (char *)(uintptr_t)r + field->offset;
}

/* --- life --------------------------------------------------------------------- */

/* Texts stay NULL when memory is short; recipe_from_json() then says so. */
void recipe_init(struct recipe *r)
{
	*r = (struct recipe){
		.kind = RECIPE_QUANTIZE, .bits = 4, .group_size = 64, .method = METHOD_NEUQI,
		.zero_point = ZERO_FLOAT, .rounding = ROUND_LDLQ, .propagate = PROPAGATE_ORIGINAL,
		.samples = 128, .max_shard_size = 5000000000u, .eval_windows = BUILTIN_WINDOWS,
		.embeddings = 16,
	};
	recipe_apply_effort(r, EFFORT_BALANCED);
	r->calibration = mem_strdup("builtin");
	r->evals[0] = mem_strdup("builtin");
	r->eval_count = r->evals[0] != NULL;
	r->formats = mem_alloc(1, sizeof(*r->formats));
	if (r->formats)
		r->formats[0] = mem_strdup("dense");
	r->format_count = r->formats && r->formats[0];
}

static void clear_evals(struct recipe *r)
{
	while (r->eval_count > 0)
		mem_free(r->evals[--r->eval_count]);
}

static void clear_formats(struct recipe *r)
{
	while (r->format_count > 0)
		mem_free(r->formats[--r->format_count]);
	mem_free(r->formats);
	r->formats = NULL;
}

void recipe_deinit(struct recipe *r)
{
	clear_evals(r);
	clear_formats(r);
	for (size_t i = 0; i < r->override_count; i++)
		mem_free(r->overrides[i].regex);
	mem_free(r->overrides);
	mem_free(r->calibration);
	mem_free(r->reference);
	*r = (struct recipe){ 0 };
}

/* --- from JSON ---------------------------------------------------------------- */

static int read_text(struct findings *f, const char *key, const struct json *value, char **out)
{
	const char *text = json_string(value, "");
	char *copy;

	if (!*text || strlen(text) >= RECIPE_NAME_MAX)
		return findings_add(f, ERR_INVALID, "\"%s\" must be a text of 1 to %d bytes", key,
				    RECIPE_NAME_MAX - 1);
	copy = mem_strdup(text);
	if (!copy)
		return recipe_nomem(f);
	mem_free(*out);
	*out = copy;
	return 0;
}

static bool says_none(const struct json *value)
{
	return strcmp(json_string(value, ""), "none") == 0;
}

/* One name, several in an array, or "none". */
static int read_evals(struct findings *f, const struct json *value, struct recipe *r)
{
	const struct json *one = json_type(value) == JSON_ARRAY ? json_first(value) : value;
	size_t count = json_type(value) == JSON_ARRAY ? json_size(value) : 1;

	if (count > RECIPE_EVALS_MAX)
		return findings_add(f, ERR_INVALID, "\"eval\" names %zu texts; at most %d are accepted",
				    count,
				    RECIPE_EVALS_MAX);
	clear_evals(r);
	if (count == 0 || (count == 1 && says_none(one)))
		return 0;
	for (size_t i = 0; i < count; i++, one = json_next(one)) {
		if (says_none(one))
			return findings_add(f, ERR_INVALID, "\"eval\" names \"none\" beside other texts");
		r->evals[i] = NULL;
		if (read_text(f, "eval", one, &r->evals[i]) != 0)
			return -1;
		r->eval_count++;
	}
	return 0;
}

static int check_format(struct findings *f, const char *name, const struct recipe *r)
{
	char shown[UTF8_SHOWN_MAX], list[160];
	int known = 0;

	while (recipe_format_words[known] && strcmp(recipe_format_words[known], name) != 0)
		known++;
	recipe_join_words(recipe_format_words, list, sizeof(list));
	if (!recipe_format_words[known])
		return findings_add(f, ERR_INVALID, "\"format\" names \"%s\", which is unknown; accepted are %s",
				    utf8_show(shown, name), list);
	for (size_t i = 0; i < r->format_count; i++)
		if (strcmp(r->formats[i], name) == 0)
			return findings_add(f, ERR_INVALID, "\"format\" names \"%s\" twice", name);
	return 0;
}

static int read_formats(struct findings *f, const struct json *value, struct recipe *r)
{
	size_t count = json_size(value);

	if (json_type(value) != JSON_ARRAY || count == 0 || count > 16)
		return findings_add(f, ERR_INVALID, "\"format\" must be an array of 1 to 16 names");
	clear_formats(r);
	r->formats = mem_alloc(count, sizeof(*r->formats));
	if (!r->formats)
		return recipe_nomem(f);
	for (const struct json *m = json_first(value); m; m = json_next(m)) {
		if (check_format(f, json_string(m, ""), r) != 0)
			continue;
		if (read_text(f, "format", m, &r->formats[r->format_count]) != 0)
			return -1;
		r->format_count++;
	}
	return 0;
}

static int read_number(struct findings *f, const struct field *field, const struct json *value,
		       struct recipe *r)
{
	int64_t number;

	if (recipe_read_int(f, field->name, value, field->min, field->max, &number) != 0)
		return -1;
	if (field->type == FIELD_INT64)
		*(int64_t *)member(r, field) = number;
	else
		*(uint64_t *)member(r, field) = (uint64_t)number;
	return 0;
}

static int read_table(struct findings *f, const struct field *field, const struct json *value, struct recipe *r)
{
	const double bits = json_number(value, -1);

	if (bits != 16 && bits != 8 && bits != 6 && bits != 4 && (bits != 0 || field->min > 0))
		return findings_add(f, ERR_INVALID, "\"%s\" must be 16 (as the source has it), 8, 6 or 4%s", field->name,
				    field->min > 0 ? "" : ", or 0 for the default");
	*(int64_t *)member(r, field) = (int64_t)bits;
	return 0;
}

static int read_bool(struct findings *f, const struct field *field, const struct json *value,
		     struct recipe *r)
{
	if (json_type(value) != JSON_BOOL)
		return findings_add(f, ERR_INVALID, "\"%s\" must be true or false", field->name);
	*(bool *)member(r, field) = json_bool(value, false);
	return 0;
}

static int read_optional(struct findings *f, const struct field *field, const struct json *value,
			 struct recipe *r)
{
	char **text = member(r, field);

	if (json_type(value) != JSON_NULL)
		return read_text(f, field->name, value, text);
	mem_free(*text);
	*text = NULL;
	return 0;
}

static int read_enum(struct findings *f, const struct field *field, const struct json *value,
		     struct recipe *r)
{
	int word = recipe_read_word(f, field->name, value, field->words);

	if (word < 0)
		return -1;
	*(unsigned *)member(r, field) = (unsigned)word;
	return 0;
}

static int read_field(struct findings *f, const struct field *field, const struct json *value,
		      struct recipe *r)
{
	switch (field->type) {
	case FIELD_WORD:
		return read_enum(f, field, value, r);
	case FIELD_INT64:
	case FIELD_UINT64:
		return read_number(f, field, value, r);
	case FIELD_TABLE:
		return read_table(f, field, value, r);
	case FIELD_BOOL:
		return read_bool(f, field, value, r);
	case FIELD_TEXT:
		return read_text(f, field->name, value, (char **)member(r, field));
	case FIELD_OPTIONAL:
		return read_optional(f, field, value, r);
	case FIELD_EVALS:
		return read_evals(f, value, r);
	case FIELD_FORMATS:
		return read_formats(f, value, r);
	case FIELD_OVERRIDES:
		return recipe_overrides_read(f, value, r);
	}
	return -1;
}

static const struct field *find_field(const char *name)
{
	for (int i = 0; i < FIELD_COUNT; i++)
		if (strcmp(fields[i].name, name) == 0)
			return &fields[i];
	return NULL;
}

static int read_member(struct findings *f, const struct json *value, struct recipe *r,
		       struct recipe_override *settings)
{
	const char *key = json_key(value);
	const struct field *field = find_field(key);
	char shown[UTF8_SHOWN_MAX];
	int kind;

	if (field)
		return read_field(f, field, value, r);
	if (strcmp(key, "kind") == 0) {
		kind = recipe_read_word(f, key, value, kind_words);
		r->kind = kind == RECIPE_EVALUATE ? RECIPE_EVALUATE : RECIPE_QUANTIZE;
		return kind < 0 ? -1 : 0;
	}
	if (recipe_setting_read(f, key, value, settings) <= 0)
		return 0;
	return findings_add(f, ERR_INVALID, "\"%s\" is no field of a recipe", utf8_show(shown, key));
}

/* The bundle comes before the fields that may change it; a word that is none is reported with them. */
static void read_effort(const struct json *object, struct recipe *r)
{
	const char *word = json_get_string(object, "effort", "");

	for (int e = 0; e < EFFORTS; e++)
		if (strcmp(effort_words[e], word) == 0)
			recipe_apply_effort(r, (enum effort)e);
}

/* What depends on several fields. */
static void finish(struct findings *f, struct recipe *r, const struct json *object,
		   const struct recipe_override *settings)
{
	struct recipe_override all = *settings;

	if (all.bits)
		r->bits = all.bits;
	if (all.group_size)
		r->group_size = all.group_size;
	if (all.method >= 0)
		r->method = (enum init_method)all.method;
	if (all.zero_point >= 0)
		r->zero_point = (enum zero_point)all.zero_point;
	if (all.symmetric >= 0)
		r->symmetric = all.symmetric;
	if (all.rounding >= 0)
		r->rounding = (enum rounding)all.rounding;
	if (r->seq_len == 1)
		findings_add(f, ERR_INVALID, "\"seq_len\" must be at least 2, or 0 for the default");
	if (r->reference && r->kind != RECIPE_EVALUATE)
		findings_add(f, ERR_INVALID, "\"reference\" is for kind \"evaluate\"; a quantize job compares with the model "
			     "it quantizes");
	if (!json_get(object, "eval_windows") && json_get(object, "eval") &&
	    !(r->eval_count == 1 && strcmp(r->evals[0], "builtin") == 0))
		r->eval_windows = 0;
}

int recipe_from_json(struct recipe *r, const struct json *object, struct problems *problems,
		     struct err *err)
{
	struct findings f = { .list = problems, .err = err };
	struct recipe_override settings = RECIPE_KEEP_ALL;

	recipe_init(r);
	if (!r->calibration || !r->eval_count || !r->format_count)
		recipe_nomem(&f);
	else if (json_type(object) != JSON_OBJECT)
		findings_add(&f, ERR_INVALID, "a recipe must be a JSON object");
	else
		read_effort(object, r);
	for (const struct json *m = json_first(object); m && !f.failed; m = json_next(m))
		read_member(&f, m, r, &settings);
	if (!f.failed)
		finish(&f, r, object, &settings);
	if (findings_result(&f) == 0)
		return 0;
	recipe_deinit(r);
	return -1;
}

/* --- to JSON ------------------------------------------------------------------ */

static struct json *write_texts(char *const *texts, size_t count)
{
	struct json *array = json_new_array();

	for (size_t i = 0; array && i < count; i++) {
		if (json_push(array, json_new_string(texts[i])) != 0) {
			json_free(array);
			return NULL;
		}
	}
	return array;
}

static struct json *write_optional(const char *text)
{
	return text ? json_new_string(text) : json_new_null();
}

static struct json *write_field(const struct field *field, const struct recipe *r)
{
	switch (field->type) {
	case FIELD_WORD:
		return json_new_string(field->words[*(const unsigned *)member(r, field)]);
	case FIELD_INT64:
	case FIELD_TABLE:
		return json_new_number((double)*(const int64_t *)member(r, field));
	case FIELD_UINT64:
		return json_new_number((double)*(const uint64_t *)member(r, field));
	case FIELD_BOOL:
		return json_new_bool(*(const bool *)member(r, field));
	case FIELD_TEXT:
		return json_new_string(*(char *const *)member(r, field));
	case FIELD_OPTIONAL:
		return write_optional(*(char *const *)member(r, field));
	case FIELD_EVALS:
		return write_texts(r->evals, r->eval_count);
	case FIELD_FORMATS:
		return write_texts(r->formats, r->format_count);
	case FIELD_OVERRIDES:
		return recipe_overrides_write(r);
	}
	return NULL;
}

static int write_fields(const struct recipe *r, struct json *object)
{
	struct recipe_override settings = {
		.bits = r->bits, .group_size = r->group_size, .method = (int)r->method,
		.zero_point = (int)r->zero_point, .symmetric = r->symmetric, .rounding = (int)r->rounding,
	};

	if (json_set_string(object, "kind", kind_words[r->kind]) != 0 ||
	    recipe_settings_write(&settings, object) != 0)
		return -1;
	for (int i = 0; i < FIELD_COUNT; i++)
		if (json_set(object, fields[i].name, write_field(&fields[i], r)) != 0)
			return -1;
	return 0;
}

struct json *recipe_to_json(const struct recipe *r)
{
	struct json *object = json_new_object();

	if (object && write_fields(r, object) != 0) {
		json_free(object);
		return NULL;
	}
	return object;
}
