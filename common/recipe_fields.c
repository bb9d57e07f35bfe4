#include "common/recipe_fields.h"

#include <stdio.h>
#include <string.h>

#include "common/utf8.h"

const char *const recipe_method_words[] = { "neuqi", "minmax", NULL };
const char *const recipe_zero_point_words[] = { "float", "integer", NULL };
const char *const recipe_rounding_words[] = { "ldlq", "nearest", NULL };

const char *init_method_name(enum init_method m)
{
	return recipe_method_words[m];
}

const char *zero_point_name(enum zero_point z)
{
	return recipe_zero_point_words[z];
}

const char *rounding_name(enum rounding r)
{
	return recipe_rounding_words[r];
}

int recipe_nomem(struct findings *f)
{
	struct err nomem = ERR_INIT;

	err_set_nomem(&nomem, "a recipe");
	return findings_add_err(f, &nomem);
}

int recipe_read_int(struct findings *f, const char *key, const struct json *value, int64_t min,
		    int64_t max, int64_t *out)
{
	if (json_int(value, out) && *out >= min && *out <= max)
		return 0;
	return findings_add(f, ERR_INVALID, "\"%s\" must be an integer from %lld to %lld", key,
			    (long long)min,
			    (long long)max);
}

void recipe_join_words(const char *const *words, char *out, size_t size)
{
	size_t used = 0;

	out[0] = '\0';
	for (size_t i = 0; words[i] && used < size; i++) {
		const char *between = i == 0 ? "" : words[i + 1] ? ", " : " or ";

		used += (size_t)snprintf(out + used, size - used, "%s%s", between, words[i]);
	}
}

int recipe_read_word(struct findings *f, const char *key, const struct json *value,
		     const char *const *words)
{
	const char *word = json_string(value, "");
	char shown[UTF8_SHOWN_MAX], list[128];

	for (int i = 0; words[i]; i++)
		if (strcmp(words[i], word) == 0)
			return i;
	recipe_join_words(words, list, sizeof(list));
	return findings_add(f, ERR_INVALID, "\"%s\" must be %s, not \"%s\"", key, list,
			    utf8_show(shown, word));
}

/* --- the settings of a module ------------------------------------------------- */

static int read_bits(struct findings *f, const struct json *value, struct recipe_override *out)
{
	int64_t bits;

	if (recipe_read_int(f, "bits", value, 1, 8, &bits) != 0)
		return -1;
	out->bits = (int)bits;
	return 0;
}

static int read_group_size(struct findings *f, const struct json *value, struct recipe_override *out)
{
	int64_t size;

	if (json_int(value, &size) && (size == -1 || (size >= 1 && size <= GROUP_SIZE_MAX))) {
		out->group_size = size;
		return 0;
	}
	return findings_add(f, ERR_INVALID, "\"group_size\" must be an integer from 1 to %d, or -1 for one "
			    "group per output channel", GROUP_SIZE_MAX);
}

static int read_symmetric(struct findings *f, const struct json *value, struct recipe_override *out)
{
	if (json_type(value) != JSON_BOOL)
		return findings_add(f, ERR_INVALID, "\"symmetric\" must be true or false");
	out->symmetric = json_bool(value, false);
	return 0;
}

static int read_choice(struct findings *f, const char *key, const struct json *value,
		       const char *const *words, int *out)
{
	int choice = recipe_read_word(f, key, value, words);

	if (choice < 0)
		return -1;
	*out = choice;
	return 0;
}

int recipe_setting_read(struct findings *f, const char *key, const struct json *value,
			struct recipe_override *out)
{
	if (strcmp(key, "bits") == 0)
		return read_bits(f, value, out);
	if (strcmp(key, "group_size") == 0)
		return read_group_size(f, value, out);
	if (strcmp(key, "method") == 0)
		return read_choice(f, key, value, recipe_method_words, &out->method);
	if (strcmp(key, "zero_point") == 0)
		return read_choice(f, key, value, recipe_zero_point_words, &out->zero_point);
	if (strcmp(key, "symmetric") == 0)
		return read_symmetric(f, value, out);
	if (strcmp(key, "rounding") == 0)
		return read_choice(f, key, value, recipe_rounding_words, &out->rounding);
	return 1;
}

static int write_choice(struct json *object, const char *key, const char *const *words, int choice)
{
	return choice < 0 ? 0 : json_set_string(object, key, words[choice]);
}

int recipe_settings_write(const struct recipe_override *from, struct json *object)
{
	if ((from->bits && json_set_int(object, "bits", from->bits) != 0) ||
	    (from->group_size && json_set_int(object, "group_size", from->group_size) != 0) ||
	    write_choice(object, "method", recipe_method_words, from->method) != 0 ||
	    write_choice(object, "zero_point", recipe_zero_point_words, from->zero_point) != 0 ||
	    (from->symmetric >= 0 && json_set_bool(object, "symmetric", from->symmetric) != 0) ||
	    write_choice(object, "rounding", recipe_rounding_words, from->rounding) != 0)
		return -1;
	return 0;
}
