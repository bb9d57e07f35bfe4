#include "worker/distill_layer.h"

#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/half.h"
#include "common/recipe.h"
#include "worker/layer_store.h"
#include "worker/model/block.h"
#include "worker/model/layer_blob.h"

enum { NAME_BYTES = MODEL_NAME_MAX + 16 };

_Static_assert((int)TUNED_MODULES == (int)LIN_COUNT && (int)TUNED_NORMS == (int)NORM_COUNT,
	       "tuned.h numbers modules and norms as model_config.h does");

/* --- what there is ----------------------------------------------------------------------------- */

/* A tensor of this many elements in a float type. */
static int find_floats(const struct layer_blob *b, const char *name, size_t rows, size_t cols,
		       enum st_dtype *dtype, struct err *err)
{
	const struct st_tensor *t = st_find(&b->header, name);

	if (!t || t->ndim != (cols > 0 ? 2 : 1) || t->shape[0] != rows || (cols > 0 && t->shape[1] != cols))
		return err_set(err, ERR_CORRUPT, "%s holds no tensor %s of this model's shape", b->path, name);
	if (t->dtype != ST_F32 && t->dtype != ST_BF16 && t->dtype != ST_F16)
		return err_set(err, ERR_CORRUPT, "%s: tensor %s is %s; a float type is needed", b->path, name,
			       st_dtype_name(t->dtype));
	*dtype = t->dtype;
	return 0;
}

static int read_settings(const struct layer_blob *b, const char *module, struct module_settings *s, struct err *err)
{
	const char *text = st_meta(&b->header, module);
	struct json *o = text ? json_parse(text, strlen(text), err) : NULL;
	int rc = -1;

	if (!text)
		err_set(err, ERR_CORRUPT, "%s: the settings of %s are missing from the metadata", b->path, module);
	else if (o)
		rc = module_settings_from_json(s, o, err);
	json_free(o);
	return rc == 0 || !text ? rc : err_prefix(err, "%s: the settings of %s", b->path, module);
}

static int plan_grid(struct tuned_module *m, const struct layer_blob *b, const char *module, struct err *err)
{
	struct module_settings s;
	struct layer_module packed;

	if (read_settings(b, module, &s, err) != 0 || layer_blob_module(b, module, &packed, err) != 0)
		return -1;
	m->grid = grid_of_settings(&s, m->cols);
	if (packed.bits != s.bits || packed.rows != m->rows || packed.cols != m->cols ||
	    packed.groups * m->grid.group != m->cols)
		return err_set(err, ERR_CORRUPT, "%s: %s does not have the shape that this model and its settings give "
			       "it", b->path, module);
	return 0;
}

static int plan_module(struct distill_layer *l, const struct model_config *config, const struct layer_blob *b,
		       enum block_linear lin, struct err *err)
{
	const struct linear_shape shape = model_linear(config, lin);
	struct tuned_module *m = &l->plan.module[lin];
	char module[MODEL_NAME_MAX], name[NAME_BYTES];
	enum st_dtype dtype;

	model_linear_name(module, config, l->index, lin);
	*m = (struct tuned_module){ .bias = shape.bias, .rows = shape.rows, .cols = shape.cols };
	snprintf(name, sizeof(name), "%s.bias", module);
	if (shape.bias && find_floats(b, name, shape.rows, 0, &l->bias_dtype[lin], err) != 0)
		return -1;
	snprintf(name, sizeof(name), "%s.codes", module);
	m->quantized = st_find(&b->header, name) != NULL;
	if (m->quantized)
		return plan_grid(m, b, module, err);
	snprintf(name, sizeof(name), "%s.weight", module);
	l->constants += shape.rows * shape.cols;
	return find_floats(b, name, shape.rows, shape.cols, &dtype, err);
}

static int plan_norm(struct distill_layer *l, const struct model_config *config, const struct layer_blob *b,
		     enum block_norm norm, struct err *err)
{
	char name[MODEL_NAME_MAX];
	size_t len;

	if (!model_norm(config, norm, &len))
		return 0;
	l->plan.norm[norm] = len;
	model_norm_name(name, config, l->index, norm);
	return find_floats(b, name, len, 0, &l->norm_dtype[norm], err);
}

static int plan_parts(struct distill_layer *l, const struct model_config *config, const struct layer_blob *b,
		      struct err *err)
{
	for (int lin = 0; lin < LIN_COUNT; lin++)
		if (plan_module(l, config, b, (enum block_linear)lin, err) != 0)
			return -1;
	for (int norm = 0; norm < NORM_COUNT; norm++)
		if (plan_norm(l, config, b, (enum block_norm)norm, err) != 0)
			return -1;
	return tuned_measure(&l->plan, &l->sizes, err);
}

int distill_layer_plan(struct distill_layer *l, const struct model_config *config, size_t index, const char *path,
		       bool train_codes, struct err *err)
{
	struct layer_blob b;
	size_t floats;
	int rc;

	*l = (struct distill_layer){ .index = index, .path = path };
	l->plan.shape = block_shape_of(config);
	l->plan.train_codes = train_codes;
	if (block_floats(config, &floats, err) != 0 || layer_blob_open(&b, path, err) != 0)
		return -1;
	rc = plan_parts(l, config, &b, err);
	layer_blob_close(&b);
	return rc;
}

/* --- the state at the start ---------------------------------------------------------------------- */

/* Room for one module or vector at a time. */
struct parts { float *w, *scales, *zeros, *vector; uint8_t *codes; };

static void parts_deinit(struct parts *p)
{
	mem_free(p->w);
	mem_free(p->scales);
	mem_free(p->zeros);
	mem_free(p->vector);
	mem_free(p->codes);
}

static size_t groups_of(const struct tuned_module *m)
{
	return m->quantized ? m->rows * (m->cols / m->grid.group) : 0;
}

static int parts_init(struct parts *p, const struct distill_layer *l, struct err *err)
{
	size_t cells = 1, groups = 1, vector = 1;

	for (int i = 0; i < LIN_COUNT; i++) {
		const struct tuned_module *m = &l->plan.module[i];

		cells = m->quantized && m->rows * m->cols > cells ? m->rows * m->cols : cells;
		groups = groups_of(m) > groups ? groups_of(m) : groups;
		vector = m->rows > vector ? m->rows : vector;
	}
	for (int i = 0; i < NORM_COUNT; i++)
		vector = l->plan.norm[i] > vector ? l->plan.norm[i] : vector;
	*p = (struct parts){ .w = mem_alloc_aligned(cells, sizeof(float)), .scales = mem_alloc(groups, sizeof(float)),
			     .zeros = mem_alloc(groups, sizeof(float)), .vector = mem_alloc(vector, sizeof(float)),
			     .codes = mem_alloc(cells, 1) };
	if (p->w && p->scales && p->zeros && p->vector && p->codes)
		return 0;
	parts_deinit(p);
	return err_set_nomem(err, "a quantized module");
}

struct beginning {
	const struct distill_layer *l;
	struct checkpoint *ck;
	struct layer_blob *blob;
	struct parts parts;
	struct tuned *t;
};

static int begin_module(struct beginning *b, enum block_linear lin, struct err *err)
{
	const struct tuned_module *m = &b->l->plan.module[lin];
	struct parts *p = &b->parts;
	char module[MODEL_NAME_MAX], name[NAME_BYTES];

	model_linear_name(module, &b->ck->config, b->l->index, lin);
	if (m->bias) {
		snprintf(name, sizeof(name), "%s.bias", module);
		if (layer_blob_read_f32(b->blob, name, 0, m->rows, p->vector, err) != 0)
			return -1;
		tuned_set_bias(b->t, (int)lin, p->vector);
	}
	if (!m->quantized)
		return 0;
	snprintf(name, sizeof(name), "%s.weight", module);
	if (checkpoint_read_f32(b->ck, name, 0, m->rows, p->w, err) != 0 ||
	    layer_blob_read_module(b->blob, module, p->codes, p->scales, p->zeros, err) != 0)
		return -1;
	return tuned_set_module(b->t, (int)lin, p->codes, p->scales, p->zeros, p->w, err);
}

static int begin_norm(struct beginning *b, enum block_norm norm, struct err *err)
{
	const size_t len = b->l->plan.norm[norm];
	char name[MODEL_NAME_MAX];

	if (len == 0)
		return 0;
	model_norm_name(name, &b->ck->config, b->l->index, norm);
	if (layer_blob_read_f32(b->blob, name, 0, len, b->parts.vector, err) != 0)
		return -1;
	tuned_set_norm(b->t, (int)norm, b->parts.vector);
	return 0;
}

int distill_layer_begin(const struct distill_layer *l, struct checkpoint *ck, struct tuned *t, struct err *err)
{
	struct layer_blob blob;
	struct beginning b = { .l = l, .ck = ck, .blob = &blob, .t = t };
	int rc;

	if (layer_blob_open(&blob, l->path, err) != 0)
		return -1;
	rc = parts_init(&b.parts, l, err);
	if (rc == 0)
		rc = tuned_reset(t, err);
	for (int lin = 0; rc == 0 && lin < LIN_COUNT; lin++)
		rc = begin_module(&b, (enum block_linear)lin, err);
	for (int norm = 0; rc == 0 && norm < NORM_COUNT; norm++)
		rc = begin_norm(&b, (enum block_norm)norm, err);
	parts_deinit(&b.parts);
	layer_blob_close(&blob);
	return rc;
}

int distill_layer_constants(const struct distill_layer *l, const struct model_config *config, struct tuned *t,
			    float *constants, struct err *err)
{
	struct layer_blob blob;
	char module[MODEL_NAME_MAX], name[NAME_BYTES];
	int rc = 0;

	if (l->constants == 0)
		return 0;
	if (layer_blob_open(&blob, l->path, err) != 0)
		return -1;
	for (int lin = 0; rc == 0 && lin < LIN_COUNT; lin++) {
		const struct tuned_module *m = &l->plan.module[lin];

		if (m->quantized)
			continue;
		model_linear_name(module, config, l->index, (enum block_linear)lin);
		snprintf(name, sizeof(name), "%s.weight", module);
		rc = layer_blob_read_f32(&blob, name, 0, m->rows, constants, err);
		tuned_set_constant(t, lin, constants);
		constants += m->rows * m->cols;
	}
	layer_blob_close(&blob);
	return rc;
}

/* --- what is stored ------------------------------------------------------------------------------- */

static void round_vector(enum st_dtype dtype, float *x, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (dtype == ST_BF16)
			x[i] = bf16_to_f32(f32_to_bf16(x[i]));
		else if (dtype == ST_F16)
			x[i] = f16_to_f32(f32_to_f16(x[i]));
	}
}

void distill_layer_round(const struct distill_layer *l, struct tuned *t)
{
	for (int i = 0; i < LIN_COUNT; i++)
		if (t->module[i].bias)
			round_vector(l->bias_dtype[i], t->module[i].bias, l->plan.module[i].rows);
	for (int i = 0; i < NORM_COUNT; i++)
		if (t->norm[i])
			round_vector(l->norm_dtype[i], t->norm[i], l->plan.norm[i]);
}

struct exporting {
	const struct distill_layer *l;
	const struct model_config *config;
	const struct tuned *t;
	struct layer_blob *blob;
	struct layer_writer *writer;
	struct parts parts;
};

static int export_module(struct exporting *e, enum block_linear lin, struct err *err)
{
	const struct tuned_module *m = &e->l->plan.module[lin];
	struct parts *p = &e->parts;
	char module[MODEL_NAME_MAX];

	model_linear_name(module, e->config, e->l->index, lin);
	if (tuned_result(e->t, (int)lin, p->codes, p->scales, p->zeros, err) != 0)
		return -1;
	return layer_writer_add_module(e->writer, module, m->grid.bits, m->rows, m->cols, m->grid.group, p->codes,
				       p->scales, p->zeros, st_meta(&e->blob->header, module), err);
}

/* The trained vector that a tensor's name stands for, or NULL. */
static const float *trained_vector(const struct exporting *e, const char *name)
{
	char own[NAME_BYTES], module[MODEL_NAME_MAX];

	for (int i = 0; i < LIN_COUNT; i++) {
		model_linear_name(module, e->config, e->l->index, (enum block_linear)i);
		snprintf(own, sizeof(own), "%s.bias", module);
		if (strcmp(name, own) == 0)
			return e->t->module[i].bias;
	}
	for (int i = 0; i < NORM_COUNT; i++) {
		if (!e->t->norm[i])
			continue;
		model_norm_name(module, e->config, e->l->index, (enum block_norm)i);
		if (strcmp(name, module) == 0)
			return e->t->norm[i];
	}
	return NULL;
}

static bool is_part(const char *name)
{
	const char *dot = strrchr(name, '.');

	return dot && (strcmp(dot, ".codes") == 0 || strcmp(dot, ".scales") == 0 || strcmp(dot, ".zeros") == 0);
}

/* A tensor that is not part of a packed module: trained, or as it came. */
static int export_tensor(struct exporting *e, const struct st_tensor *t, struct err *err)
{
	const float *vector = trained_vector(e, t->name);
	const size_t bytes = (size_t)(t->end - t->begin);
	void *data = mem_alloc(bytes, 1);
	int rc = 0;

	if (!data)
		return err_set_nomem(err, t->name);
	if (vector)
		layer_to_dtype(vector, (size_t)t->shape[0], t->dtype, data);
	else
		rc = layer_blob_read_raw(e->blob, t, 0, data, bytes, err);
	if (rc == 0)
		rc = layer_writer_add(e->writer, t, data, err);
	mem_free(data);
	return rc;
}

static int export_parts(struct exporting *e, const char *path, struct err *err)
{
	for (int lin = 0; lin < LIN_COUNT; lin++)
		if (e->l->plan.module[lin].quantized && export_module(e, (enum block_linear)lin, err) != 0)
			return -1;
	for (size_t i = 0; i < e->blob->header.count; i++)
		if (!is_part(e->blob->header.tensors[i].name) &&
		    export_tensor(e, &e->blob->header.tensors[i], err) != 0)
			return -1;
	return layer_writer_write(e->writer, path, err);
}

int distill_layer_export(const struct distill_layer *l, const struct model_config *config, const struct tuned *t,
			 const char *path, struct err *err)
{
	struct layer_blob blob;
	struct exporting e = { .l = l, .config = config, .t = t, .blob = &blob };
	int rc;

	if (layer_blob_open(&blob, l->path, err) != 0)
		return -1;
	e.writer = layer_writer_new();
	rc = parts_init(&e.parts, l, err);
	if (rc == 0 && !e.writer)
		rc = err_set_nomem(err, "a layer");
	if (rc == 0)
		rc = export_parts(&e, path, err);
	layer_writer_free(e.writer);
	parts_deinit(&e.parts);
	layer_blob_close(&blob);
	return rc;
}
