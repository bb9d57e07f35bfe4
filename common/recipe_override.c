/* recipe_override.c - overrides: their JSON, the check of their patterns, and their effect.
 *
 * Patterns come from anyone who may submit a job. The C library's regcomp() copies what is repeated,
 * so repetition counts multiply in memory, and back-references make matching exponential: both are
 * limited here before it sees the pattern.
 */
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/recipe_fields.h"
#include "common/utf8.h"

enum { PATTERN_REPEATS_MAX = 4096 };

/* --- patterns ----------------------------------------------------------------- */

/* How often one piece of the pattern may be copied, at most; more than the limit when it is too much. */
static unsigned long count_repeats(const char *regex)
{
	unsigned long product = 1;

	for (const char *p = regex; *p && product <= PATTERN_REPEATS_MAX; p++) {
		unsigned long low, high;
		char *end;

		if (*p == '+')
			product *= 2;
		if (*p != '{')
			continue;
		low = strtoul(p + 1, &end, 10);
		high = *end == ',' ? strtoul(end + 1, NULL, 10) : 0;
		high = high > low ? high : low;
		product = high > PATTERN_REPEATS_MAX ? high : product * (high + 1);
	}
	return product;
}

static bool has_back_reference(const char *regex)
{
	for (const char *p = regex; *p; p++) {
		if (*p != '\\')
			continue;
		if (p[1] >= '0' && p[1] <= '9')
			return true;
		if (p[1])
			p++;
	}
	return false;
}

static int compile(const char *regex, regex_t *compiled, struct err *err)
{
	char shown[UTF8_SHOWN_MAX], reason[128];
	int rc = regcomp(compiled, regex, REG_EXTENDED | REG_NOSUB);

	if (rc == 0)
		return 0;
	if (rc == REG_ESPACE)
		return err_set_nomem(err, "a pattern");
	regerror(rc, compiled, reason, sizeof(reason));
	return err_set(err, ERR_INVALID, "\"match\" is no extended regular expression: \"%s\": %s",
		       utf8_show(shown, regex), reason);
}

static int check_pattern(struct findings *f, const char *regex)
{
	struct err reason = ERR_INIT;
	regex_t compiled;

	if (!regex || !*regex || strlen(regex) >= RECIPE_NAME_MAX)
		return findings_add(f, ERR_INVALID, "\"match\" must be a regular expression of 1 to %d bytes",
				    RECIPE_NAME_MAX - 1);
	if (has_back_reference(regex))
		return findings_add(f, ERR_INVALID, "\"match\" must not hold a back-reference such as \\1");
	if (count_repeats(regex) > PATTERN_REPEATS_MAX)
		return findings_add(f, ERR_INVALID, "\"match\" repeats too much: the product of its counts "
				    "(2 for each '+') must be at most %d", PATTERN_REPEATS_MAX);
	if (compile(regex, &compiled, &reason) != 0)
		return reason.code == ERR_NOMEM ? findings_add_err(f, &reason)
						: findings_add(f, reason.code, "%s", reason.text);
	regfree(&compiled);
	return 0;
}

/* --- JSON --------------------------------------------------------------------- */

static int read_member(struct findings *f, const struct json *member, struct recipe_override *out)
{
	const char *key = json_key(member);
	char shown[UTF8_SHOWN_MAX];
	int rc = recipe_setting_read(f, key, member, out);

	if (rc <= 0)
		return rc;
	if (strcmp(key, "match") == 0)
		return 0;
	if (strcmp(key, "skip") != 0)
		return findings_add(f, ERR_INVALID, "unknown field \"%s\"; known are match, skip, bits, "
				    "group_size, "
				    "method, zero_point, symmetric and rounding", utf8_show(shown, key));
	if (json_type(member) != JSON_BOOL)
		return findings_add(f, ERR_INVALID, "\"skip\" must be true or false");
	out->skip = json_bool(member, false);
	return 0;
}

static bool changes_settings(const struct recipe_override *o)
{
	return o->bits || o->group_size || o->method >= 0 || o->zero_point >= 0 || o->symmetric >= 0 ||
	       o->rounding >= 0;
}

static int read_override(struct findings *f, const struct json *object, struct recipe_override *out)
{
	const char *regex = json_get_string(object, "match", NULL);
	unsigned before = f->count;

	*out = RECIPE_KEEP_ALL;
	if (json_type(object) != JSON_OBJECT)
		return findings_add(f, ERR_INVALID, "must be an object with \"match\" and what to change");
	for (const struct json *m = json_first(object); m; m = json_next(m))
		read_member(f, m, out);
	if (check_pattern(f, regex) != 0 || f->count > before || f->failed)
		return -1;
	if (out->skip == changes_settings(out))
		return findings_add(f, ERR_INVALID, "give either \"skip\": true or settings to change");
	out->regex = mem_strdup(regex);
	return out->regex ? 0 : recipe_nomem(f);
}

int recipe_overrides_read(struct findings *f, const struct json *array, struct recipe *r)
{
	size_t count = json_size(array);

	if (json_type(array) != JSON_ARRAY || count > RECIPE_OVERRIDES_MAX)
		return findings_add(f, ERR_INVALID, "\"override\" must be an array of at most %d objects",
				    RECIPE_OVERRIDES_MAX);
	if (count == 0)
		return 0;
	r->overrides = mem_alloc(count, sizeof(*r->overrides));
	if (!r->overrides)
		return recipe_nomem(f);
	for (const struct json *m = json_first(array); m; m = json_next(m)) {
		char where[32];

		snprintf(where, sizeof(where), "override %zu", r->override_count + 1);
		f->where = where;
		read_override(f, m, &r->overrides[r->override_count++]);
		f->where = NULL;
	}
	return findings_result(f);
}

static int push_override(struct json *array, const struct recipe_override *o)
{
	struct json *object = json_new_object();

	if (json_set_string(object, "match", o->regex) == 0 &&
	    (!o->skip || json_set_bool(object, "skip", true) == 0) &&
	    recipe_settings_write(o, object) == 0)
		return json_push(array, object);
	json_free(object);
	return -1;
}

struct json *recipe_overrides_write(const struct recipe *r)
{
	struct json *array = json_new_array();

	for (size_t i = 0; array && i < r->override_count; i++) {
		if (push_override(array, &r->overrides[i]) != 0) {
			json_free(array);
			return NULL;
		}
	}
	return array;
}

/* --- effect ------------------------------------------------------------------- */

static void apply(const struct recipe_override *o, struct module_settings *s)
{
	s->skip = o->skip; /* a later override with settings brings a skipped module back */
	if (o->bits)
		s->bits = o->bits;
	if (o->group_size)
		s->group_size = o->group_size;
	if (o->method >= 0)
		s->method = (enum init_method)o->method;
	if (o->zero_point >= 0)
		s->zero_point = (enum zero_point)o->zero_point;
	if (o->symmetric >= 0)
		s->symmetric = o->symmetric;
	if (o->rounding >= 0)
		s->rounding = (enum rounding)o->rounding;
}

int recipe_module(const struct recipe *r, const char *module, struct module_settings *out,
		  struct err *err)
{
	*out = (struct module_settings){
		.bits = r->bits, .group_size = r->group_size, .method = r->method,
		.zero_point = r->zero_point, .symmetric = r->symmetric, .rounding = r->rounding,
	};
	for (size_t i = 0; i < r->override_count; i++) {
		regex_t compiled;

		if (compile(r->overrides[i].regex, &compiled, err) != 0)
			return -1;
		if (regexec(&compiled, module, 0, NULL, 0) == 0)
			apply(&r->overrides[i], out);
		regfree(&compiled);
	}
	return 0;
}
