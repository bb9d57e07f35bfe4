/* recipe_module.c - the settings of one module: their JSON, and whether its shape can hold them. */
#include <stdio.h>
#include <string.h>

#include "common/recipe_fields.h"
#include "common/utf8.h"

enum { ZERO_PARTS_MAX = 128 };

int module_settings_to_json(const struct module_settings *s, struct json *object)
{
	struct recipe_override holder = {
		.bits = s->bits, .group_size = s->group_size, .method = (int)s->method,
		.zero_point = (int)s->zero_point, .symmetric = s->symmetric, .rounding = (int)s->rounding,
	};

	if (json_set_bool(object, "skip", s->skip) != 0 || recipe_settings_write(&holder, object) != 0)
		return -1;
	return s->zero_parts ? json_set_int(object, "zero_parts", s->zero_parts) : 0;
}

static int read_zero_parts(struct findings *f, const struct json *value, unsigned *out)
{
	int64_t parts = 0;

	if (value && recipe_read_int(f, "zero_parts", value, 1, ZERO_PARTS_MAX, &parts) != 0)
		return -1;
	*out = (unsigned)parts;
	return 0;
}

int module_settings_from_json(struct module_settings *s, const struct json *object, struct err *err)
{
	static const char *const keys[] = {
		"bits", "group_size", "method", "zero_point", "symmetric", "rounding",
	};
	struct findings f = { .err = err };
	struct recipe_override holder = RECIPE_KEEP_ALL;
	unsigned zero_parts = 0;

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		recipe_setting_read(&f, keys[i], json_get(object, keys[i]), &holder);
	read_zero_parts(&f, json_get(object, "zero_parts"), &zero_parts);
	if (findings_result(&f) != 0)
		return -1;
	*s = (struct module_settings){
		.skip = json_get_bool(object, "skip", false), .bits = holder.bits,
		.group_size = holder.group_size, .method = (enum init_method)holder.method,
		.zero_point = (enum zero_point)holder.zero_point, .symmetric = holder.symmetric == 1,
		.rounding = (enum rounding)holder.rounding, .zero_parts = zero_parts,
	};
	return 0;
}

/* The powers of two from 16 to `cols` that divide it, as "16, 32, 64"; "" when there is none. */
static void list_divisors(size_t cols, char *out, size_t size)
{
	size_t used = 0;

	out[0] = '\0';
	for (size_t g = 16; g <= cols && cols % g == 0 && used < size; g *= 2)
		used += (size_t)snprintf(out + used, size - used, "%s%zu", used ? ", " : "", g);
}

int recipe_check_group(size_t cols, int64_t group_size, const char *module, struct problems *problems)
{
	char list[160], shown[UTF8_SHOWN_MAX];

	if (group_size == -1 || (group_size > 0 && cols % (uint64_t)group_size == 0))
		return 0;
	list_divisors(cols, list, sizeof(list));
	utf8_show(shown, module);
	if (problems && list[0])
		problems_add(problems, "%s has %zu input channels, which groups of %lld do not divide; these "
			     "do: %s, and -1 (one group per output channel) always fits", shown, cols,
			     (long long)group_size, list);
	else if (problems)
		problems_add(problems, "%s has %zu input channels, which groups of %lld do not divide; -1 "
			     "(one group per output channel) fits", shown, cols, (long long)group_size);
	return -1;
}
