/* recipe_fields.h - private to recipe*.c: reading and writing the fields of a recipe.
 *
 * The six settings of a module (bits, group_size, method, zero_point, symmetric, rounding) occur
 * at the top of a recipe, in overrides and in the spec of a quantize task. One table serves all:
 * struct recipe_override is the common holder, with its "keep" marks for what is not given.
 */
#ifndef QUARRY_COMMON_RECIPE_FIELDS_H
#define QUARRY_COMMON_RECIPE_FIELDS_H

#include "common/findings.h"
#include "common/json.h"
#include "common/recipe.h"

enum { GROUP_SIZE_MAX = 1 << 20 };

/* An override that keeps everything. */
#define RECIPE_KEEP_ALL \
	((struct recipe_override){ .method = -1, .zero_point = -1, .symmetric = -1, .rounding = -1 })

/* Reads the setting `key` into *out. 0 = read, -1 = noted as a problem, 1 = not a setting. */
int recipe_setting_read(struct findings *f, const char *key, const struct json *value,
			struct recipe_override *out);
/* Adds the settings that are given to `object`, in the table's order; -1 when out of memory. */
int recipe_settings_write(const struct recipe_override *from, struct json *object);

/* An integer of min..max, or a noted problem and -1. */
int recipe_read_int(struct findings *f, const char *key, const struct json *value, int64_t min,
		    int64_t max, int64_t *out);
/* The index of a word in a NULL-terminated list, or a noted problem and -1. */
int recipe_read_word(struct findings *f, const char *key, const struct json *value,
		     const char *const *words);
/* "a, b or c" */
void recipe_join_words(const char *const *words, char *out, size_t size);
/* Notes that memory ran out. Returns -1. */
int recipe_nomem(struct findings *f);

/* The array "override" to and from JSON; recipe_overrides_write returns NULL when out of memory. */
int recipe_overrides_read(struct findings *f, const struct json *array, struct recipe *r);
struct json *recipe_overrides_write(const struct recipe *r);

extern const char *const recipe_method_words[], *const recipe_zero_point_words[],
	*const recipe_rounding_words[];

#endif
