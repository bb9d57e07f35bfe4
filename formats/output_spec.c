#include "formats/output_spec.h"

#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"

enum { TABLES = 2 };

/* --- to JSON ------------------------------------------------------------------------------------- */

static struct json *module_json(const struct codec_module *m)
{
	struct json *o = json_new_object();

	if (json_set_string(o, "name", m->name) == 0 && json_set_int(o, "layer", m->layer) == 0 &&
	    module_settings_to_json(&m->settings, o) == 0)
		return o;
	json_free(o);
	return NULL;
}

struct json *output_modules_json(const struct codec_module *modules, size_t count)
{
	struct json *list = json_new_array();

	for (size_t i = 0; list && i < count; i++)
		if (json_push(list, module_json(&modules[i])) != 0) {
			json_free(list);
			return NULL;
		}
	return list;
}

/* --- from JSON ----------------------------------------------------------------------------------- */

struct reading {
	struct output_modules *out;
	const struct model_config *config;
	size_t blocks;                  /* modules of the blocks */
	struct err *err;
};

static int refuse(struct reading *r, const char *name, const char *what)
{
	char shown[UTF8_SHOWN_MAX];

	return err_set(r->err, ERR_INVALID, "module %s of the spec %s", utf8_show(shown, name), what);
}

static int read_linear(struct reading *r, size_t i, const char *name, struct codec_module *m)
{
	const struct linear_shape shape = model_linear(r->config, (enum block_linear)(i % LIN_COUNT));

	m->linear = (enum block_linear)(i % LIN_COUNT);
	m->rows = shape.rows;
	m->cols = shape.cols;
	model_linear_name(r->out->names[i], r->config, i / LIN_COUNT, m->linear);
	if (m->layer != (int64_t)(i / LIN_COUNT) || strcmp(name, r->out->names[i]) != 0)
		return refuse(r, name, "is not the one that the model has at this place");
	return 0;
}

static int read_table(struct reading *r, size_t i, const char *name, struct codec_module *m)
{
	static const char *const known[TABLES] = { "model.embed_tokens", "lm_head" };
	const int which = strcmp(name, known[1]) == 0;

	m->rows = r->config->vocab;
	m->cols = r->config->hidden;
	memcpy(r->out->names[i], known[which], strlen(known[which]) + 1);
	if (m->layer != -1 || strcmp(name, known[which]) != 0)
		return refuse(r, name, "is neither embedding nor head");
	if (which == 1 && r->config->tied_embeddings)
		return refuse(r, name, "is the embedding in this model");
	if (i > r->blocks && strcmp(r->out->names[i - 1], known[1]) == 0)
		return refuse(r, name, "comes after the head");
	return 0;
}

static int check_group(struct reading *r, const struct codec_module *m)
{
	if (m->settings.skip || m->layer < 0)
		return 0;
	return recipe_check_group((size_t)m->cols, m->settings.group_size, m->name, NULL) == 0 ? 0
		: refuse(r, m->name, "has groups that do not divide its columns");
}

static int read_module(struct reading *r, size_t i, const struct json *row)
{
	struct codec_module *m = &r->out->items[i];
	const char *name;

	if (json_require_string(row, "name", &name, r->err) != 0 ||
	    json_require_int(row, "layer", -1, INT32_MAX, &m->layer, r->err) != 0)
		return -1;
	m->name = r->out->names[i];
	if ((i < r->blocks ? read_linear : read_table)(r, i, name, m) != 0)
		return -1;
	if (module_settings_from_json(&m->settings, row, r->err) != 0)
		return err_prefix(r->err, "module %s", m->name);
	m->zero_parts = m->settings.zero_parts;
	return check_group(r, m);
}

static int read_all(struct reading *r, const struct json *list)
{
	size_t i = 0;

	if (json_type(list) != JSON_ARRAY || json_size(list) < r->blocks || json_size(list) > r->blocks + TABLES)
		return err_set(r->err, ERR_INVALID, "\"modules\" must be a list of the model's %zu linear modules, and at most "
			       "embedding and head", r->blocks);
	r->out->items = mem_alloc(json_size(list), sizeof(*r->out->items));
	r->out->names = mem_alloc(json_size(list), sizeof(*r->out->names));
	if (!r->out->items || !r->out->names)
		return err_set_nomem(r->err, "the modules of a spec");
	for (const struct json *row = json_first(list); row; row = json_next(row), i++)
		if (read_module(r, i, row) != 0)
			return -1;
	r->out->count = i;
	return 0;
}

int output_modules_read(struct output_modules *out, const struct model_config *config, const struct json *list,
			struct err *err)
{
	struct reading r = { .out = out, .config = config, .err = err };

	*out = (struct output_modules){ 0 };
	if (!size_mul(config->layers, LIN_COUNT, &r.blocks))
		return err_set(err, ERR_TOO_LARGE, "the model has too many layers");
	if (read_all(&r, list) == 0)
		return 0;
	output_modules_deinit(out);
	return -1;
}

void output_modules_deinit(struct output_modules *m)
{
	mem_free(m->items);
	mem_free(m->names);
	*m = (struct output_modules){ 0 };
}
