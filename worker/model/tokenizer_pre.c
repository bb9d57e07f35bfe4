/* "pre_tokenizer" of tokenizer.json: a flat list of stages, sequences resolved. */
#include <string.h>

#include "common/utf8.h"
#include "worker/model/tokenizer_parts.h"

static const char known[] = "Sequence, Split, ByteLevel, Digits and Metaspace";

/* The split of GPT-2, which a ByteLevel with use_regex stands for. */
static const char gpt2_regex[] =
	"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static int load_split(struct stage *s, const struct json *json, struct err *err)
{
	const char *behavior;

	s->kind = STAGE_SPLIT;
	if (json_require_string(json, "behavior", &behavior, err) != 0)
		return err_prefix(err, "pre_tokenizer Split");
	if (split_behavior_from_name(behavior, &s->behavior) != 0)
		return part_unsupported("pre_tokenizer Split: behavior", behavior,
					"Removed, Isolated, MergedWithPrevious, MergedWithNext "
					"and Contiguous", err);
	if (part_bool(json, "invert", "pre_tokenizer Split", &s->invert, err) != 0)
		return -1;
	s->pattern = part_pattern(json_get(json, "pattern"), "pre_tokenizer Split", err);
	return s->pattern ? 0 : -1;
}

static int load_digits(struct stage *s, const struct json *json, struct err *err)
{
	bool individual;

	s->kind = STAGE_DIGITS;
	if (part_bool(json, "individual_digits", "pre_tokenizer Digits", &individual, err) != 0)
		return -1;
	s->behavior = individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
	return 0;
}

static int load_byte_level(struct stage *s, const struct json *json, struct err *err)
{
	bool use_regex = true;

	s->kind = STAGE_BYTE_LEVEL;
	if (part_bool(json, "add_prefix_space", "pre_tokenizer ByteLevel", &s->add_prefix_space, err) != 0)
		return -1;
	if (json_get(json, "use_regex") &&
	    part_bool(json, "use_regex", "pre_tokenizer ByteLevel", &use_regex, err) != 0)
		return -1;
	if (!use_regex)
		return 0;
	s->pattern = pattern_new(gpt2_regex, err);
	return s->pattern ? 0 : -1;
}

/* prepend_scheme, or the older add_prefix_space. */
static int load_prepend(struct stage *s, const struct json *json, struct err *err)
{
	static const char *const names[] = { "never", "first", "always" };
	const char *scheme = json_get_string(json, "prepend_scheme", "always");
	const struct json *older = json_get(json, "add_prefix_space");
	int found = -1;

	for (int i = 0; i < 3; i++) {
		if (strcmp(scheme, names[i]) == 0)
			found = i;
	}
	if (found < 0)
		return part_unsupported("pre_tokenizer Metaspace: prepend_scheme", scheme,
					"never, first and always", err);
	s->prepend = (enum prepend_scheme)found;
	if (older && !json_bool(older, true) && s->prepend != PREPEND_NEVER)
		return err_set(err, ERR_INVALID, "pre_tokenizer Metaspace: add_prefix_space false needs "
			       "prepend_scheme \"never\"");
	return 0;
}

static int load_metaspace(struct stage *s, const struct json *json, struct err *err)
{
	const char *replacement;
	bool split = true;
	size_t n;

	s->kind = STAGE_METASPACE;
	if (json_require_string(json, "replacement", &replacement, err) != 0)
		return err_prefix(err, "pre_tokenizer Metaspace");
	n = *replacement ? utf8_sequence(replacement, strlen(replacement)) : 0;
	if (n == 0 || replacement[n] != '\0')
		return err_set(err, ERR_INVALID,
			       "pre_tokenizer Metaspace: field 'replacement' must be one character");
	memcpy(s->replacement, replacement, n + 1);
	if (load_prepend(s, json, err) != 0)
		return -1;
	if (json_type(json_get(json, "split")) != JSON_NULL &&
	    part_bool(json, "split", "pre_tokenizer Metaspace", &split, err) != 0)
		return -1;
	if (!split)
		return 0;
	s->pattern = pattern_new_literal(s->replacement, n, err);
	return s->pattern ? 0 : -1;
}

static int load_one(struct stages *s, const struct json *json, const char *where, unsigned depth,
		    struct err *err);

static int load_sequence(struct stages *s, const struct json *json, unsigned depth, struct err *err)
{
	const struct json *list = json_get(json, "pretokenizers");

	if (json_type(list) != JSON_ARRAY)
		return err_set(err, ERR_INVALID,
			       "pre_tokenizer: a Sequence needs the list 'pretokenizers'");
	for (const struct json *item = json_first(list); item; item = json_next(item)) {
		if (load_one(s, item, "pre_tokenizer in a Sequence", depth + 1, err) != 0)
			return -1;
	}
	return 0;
}

static int load_one(struct stages *s, const struct json *json, const char *where, unsigned depth,
		    struct err *err)
{
	const char *type = part_type(json, where, err);
	struct stage *item = &s->items[s->count];

	if (!type)
		return -1;
	if (strcmp(type, "Sequence") == 0 && depth < STAGES_MAX)
		return load_sequence(s, json, depth, err);
	if (s->count == STAGES_MAX || depth >= STAGES_MAX)
		return err_set(err, ERR_UNSUPPORTED, "%s: more than %d are not supported", where,
			       STAGES_MAX);
	s->count++;
	if (strcmp(type, "Split") == 0)
		return load_split(item, json, err);
	if (strcmp(type, "ByteLevel") == 0)
		return load_byte_level(item, json, err);
	if (strcmp(type, "Digits") == 0)
		return load_digits(item, json, err);
	if (strcmp(type, "Metaspace") == 0)
		return load_metaspace(item, json, err);
	return part_unsupported(where, type, known, err);
}

/* prepend_scheme "first" asks where a piece began in the original text, which is known only as long
 * as nothing was inserted or taken away before. */
static int check_first(const struct stages *s, bool rewritten, struct err *err)
{
	for (size_t i = 0; i < s->count; i++) {
		const struct stage *stage = &s->items[i];

		if (stage->kind == STAGE_METASPACE && stage->prepend == PREPEND_FIRST && rewritten)
			return err_set(err, ERR_UNSUPPORTED,
				       "pre_tokenizer Metaspace: prepend_scheme \"first\" is not "
				       "supported behind a normalizer or a pre_tokenizer that inserts text");
		if (stage->kind == STAGE_BYTE_LEVEL || stage->kind == STAGE_METASPACE)
			rewritten = true;
	}
	return 0;
}

int stages_load(struct stages *s, const struct json *json, bool has_normalizer, struct err *err)
{
	s->count = 0;
	if (json_type(json) == JSON_NULL)
		return 0;
	if (load_one(s, json, "pre_tokenizer", 0, err) != 0)
		return -1;
	return check_first(s, has_normalizer, err);
}

void stages_deinit(struct stages *s)
{
	for (size_t i = 0; i < s->count; i++)
		pattern_free(s->items[i].pattern);
	*s = (struct stages){ .count = 0 };
}
