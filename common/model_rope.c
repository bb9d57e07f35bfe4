/* model_rope.c - see model_rope.h. Both spellings may be present (tools that convert write both):
 * then they must agree, as runtimes differ in which one they prefer. */
#include "common/model_rope.h"

#include <math.h>
#include <string.h>

#include "common/utf8.h"

static const struct { const char *name; enum rope_type type; } rope_types[] = {
	{ "default", ROPE_DEFAULT }, { "linear", ROPE_LINEAR }, { "llama3", ROPE_LLAMA3 },
};

/* A member that is an object; anything else but null is a problem. */
static const struct json *object_member(struct findings *f, const struct json *config, const char *key)
{
	const struct json *value = json_get(config, key);

	if (json_type(value) == JSON_OBJECT)
		return value;
	if (json_type(value) != JSON_NULL)
		findings_add(f, ERR_INVALID, "\"%s\" must be an object or null", key);
	return NULL;
}

/* A finite number of at least `min`, or a problem. `otherwise` < 0: it must be given. */
static double read_number(struct findings *f, const struct json *object, const char *key, double min,
			  double otherwise)
{
	const struct json *value = json_get(object, key);
	double number = json_number(value, NAN);

	if (json_type(value) == JSON_NULL && otherwise >= 0)
		return otherwise;
	if (!(number >= min))
		findings_add(f, ERR_INVALID, "\"%s\" of the rotary embedding %s a number of at least %g", key,
			     value ? "must be" : "is missing; it must be", min);
	return number;
}

static const char *type_name(const struct json *rope)
{
	return json_get_string(rope, "rope_type", json_get_string(rope, "type", "default"));
}

static void read_type(struct findings *f, struct rope_config *out, const struct json *rope)
{
	char shown[UTF8_SHOWN_MAX];
	const char *name = type_name(rope);

	for (size_t i = 0; i < sizeof(rope_types) / sizeof(rope_types[0]); i++) {
		if (strcmp(name, rope_types[i].name) == 0) {
			out->type = rope_types[i].type;
			return;
		}
	}
	findings_add(f, ERR_UNSUPPORTED, "the rotary embedding's \"rope_type\" is \"%s\"; supported are "
		     "default, linear and llama3", utf8_show(shown, name));
}

static void read_llama3(struct findings *f, struct rope_config *out, const struct json *rope,
			const struct json *config)
{
	static const char original[] = "original_max_position_embeddings";
	const struct json *holder = json_get(rope, original) ? rope : config;

	out->low_freq_factor = read_number(f, rope, "low_freq_factor", 1e-6, -1);
	out->high_freq_factor = read_number(f, rope, "high_freq_factor", 1e-6, -1);
	out->original_max_position = read_number(f, holder, original, 1, -1);
	if (out->high_freq_factor <= out->low_freq_factor)
		findings_add(f, ERR_INVALID, "\"high_freq_factor\" %g of the rotary embedding must be above "
			     "\"low_freq_factor\" %g", out->high_freq_factor, out->low_freq_factor);
}

/* Rotary settings that depend on the layer's type come as one object per type. */
static void refuse_per_layer(struct findings *f, const struct json *rope)
{
	for (const struct json *m = json_first(rope); m; m = json_next(m)) {
		char shown[UTF8_SHOWN_MAX];

		if (json_type(m) != JSON_OBJECT)
			continue;
		findings_add(f, ERR_UNSUPPORTED, "the rotary embedding is given per layer type (\"%s\"), "
			     "which is not supported", utf8_show(shown, json_key(m)));
		return;
	}
}

/* Whether two given rotary objects say the same. */
static bool agree(const struct json *a, const struct json *b)
{
	static const char *const keys[] = {
		"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
	};

	if (strcmp(type_name(a), type_name(b)) != 0)
		return false;
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (json_get_number(a, keys[i], 0) != json_get_number(b, keys[i], 0))
			return false;
	return true;
}

void model_rope_read(struct findings *f, struct rope_config *out, const struct json *config)
{
	const struct json *newer = object_member(f, config, "rope_parameters");
	const struct json *older = object_member(f, config, "rope_scaling");
	const struct json *rope = newer ? newer : older;
	double theta = read_number(f, config, "rope_theta", 1, 10000);

	*out = (struct rope_config){ .type = ROPE_DEFAULT, .factor = 1 };
	if (newer && older && !agree(newer, older))
		findings_add(f, ERR_INVALID, "\"rope_parameters\" and \"rope_scaling\" contradict each "
			     "other");
	out->theta = read_number(f, rope, "rope_theta", 1, theta);
	if (newer && json_type(json_get(config, "rope_theta")) == JSON_NUMBER && out->theta != theta)
		findings_add(f, ERR_INVALID, "\"rope_theta\" is %g at the top and %g in \"rope_parameters\"",
			     theta, out->theta);
	if (!rope)
		return;
	refuse_per_layer(f, rope);
	if (read_number(f, rope, "partial_rotary_factor", 0, 1) != 1)
		findings_add(f, ERR_UNSUPPORTED, "\"partial_rotary_factor\" of the rotary embedding must be "
			     "1: partial rotary embedding is not supported");
	read_type(f, out, rope);
	if (out->type != ROPE_DEFAULT)
		out->factor = read_number(f, rope, "factor", 1, -1);
	if (out->type == ROPE_LLAMA3)
		read_llama3(f, out, rope, config);
}
