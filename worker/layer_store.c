#include "worker/layer_store.h"

#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/half.h"
#include "worker/model/layer_blob.h"

struct storing {
	const struct layer_plan *plan;
	struct checkpoint *ck;
	const struct tuned *tuned;
	struct layer_writer *writer;
	struct err *err;
};

/* Settings as metadata of the layer file, with the column count that the bit stream alone does not give. */
static char *settings_text(const struct layer_plan *p, int lin)
{
	struct json *object = json_new_object();
	char *text = NULL;

	if (object && module_settings_to_json(&p->settings[lin], object) == 0 &&
	    json_set_int(object, "cols", (int64_t)p->shape[lin].cols) == 0)
		text = json_print(object, false);
	json_free(object);
	return text;
}

static int store_module(struct storing *s, int lin, const struct quant_result *r)
{
	const struct layer_plan *p = s->plan;
	char *text = settings_text(p, lin);
	int rc;

	if (!text)
		return err_set_nomem(s->err, "module settings");
	rc = layer_writer_add_module(s->writer, p->name[lin], p->settings[lin].bits, p->shape[lin].rows,
				     p->shape[lin].cols, layer_plan_group(p, lin), r->codes, r->scales, r->zeros,
				     text, s->err);
	mem_free(text);
	return rc;
}

/* --- what stays, or was trained -------------------------------------------------------------------- */

void layer_to_dtype(const float *values, size_t n, enum st_dtype dtype, void *bytes)
{
	if (dtype == ST_BF16)
		f32_to_bf16_array(values, bytes, n);
	else if (dtype == ST_F16)
		f32_to_f16_array(values, bytes, n);
	else
		memcpy(bytes, values, n * sizeof(*values));
}

int layer_source_dtype(const struct checkpoint *ck, const char *name, enum st_dtype *dtype, struct err *err)
{
	const struct st_tensor *t = checkpoint_find(ck, name, NULL);

	if (!t)
		return err_set(err, ERR_CORRUPT, "the checkpoint has no tensor %s", name);
	*dtype = t->dtype;
	return 0;
}

/* Whether `name` is `module` followed by `suffix`. */
static bool is_part(const char *name, const char *module, const char *suffix)
{
	const size_t len = strlen(module);

	return strncmp(name, module, len) == 0 && strcmp(name + len, suffix) == 0;
}

/* The trained values of a norm or bias, NULL for any other tensor. */
static const float *trained_values(const struct storing *s, const char *name)
{
	char norm[MODEL_NAME_MAX];

	if (!s->tuned)
		return NULL;
	for (int lin = 0; lin < LIN_COUNT; lin++)
		if (is_part(name, s->plan->name[lin], ".bias"))
			return s->tuned->module[lin].bias;
	for (int i = 0; i < NORM_COUNT; i++) {
		if (!s->tuned->norm[i])
			continue;
		model_norm_name(norm, &s->ck->config, (size_t)s->plan->layer, (enum block_norm)i);
		if (strcmp(norm, name) == 0)
			return s->tuned->norm[i];
	}
	return NULL;
}

static int store_tensor(struct storing *s, const char *name)
{
	const struct st_tensor *t = checkpoint_find(s->ck, name, NULL);
	const float *values = trained_values(s, name);
	void *bytes;
	int rc = 0;

	if (!t)
		return err_set(s->err, ERR_CORRUPT, "the checkpoint has no tensor %s", name);
	bytes = mem_alloc((size_t)(t->end - t->begin), 1);
	if (!bytes)
		return err_set_nomem(s->err, name);
	if (values)
		layer_to_dtype(values, (size_t)t->shape[0], t->dtype, bytes);
	else
		rc = checkpoint_read_raw(s->ck, name, 0, t->shape[0], bytes, s->err);
	if (rc == 0)
		rc = layer_writer_add(s->writer, t, bytes, s->err);
	mem_free(bytes);
	return rc;
}

/* Tensors of the layer that no quantized module replaces. */
static int store_if_kept(void *ctx, const struct model_tensor *t)
{
	struct storing *s = ctx;
	const struct layer_plan *p = s->plan;

	if (t->layer != p->layer)
		return 0;
	for (int lin = 0; lin < LIN_COUNT; lin++)
		if (!p->settings[lin].skip && is_part(t->name, p->name[lin], ".weight"))
			return 0;
	return store_tensor(s, t->name);
}

int layer_store(const struct layer_plan *plan, struct checkpoint *ck,
		const struct quant_result results[LIN_COUNT], const struct tuned *tuned, const char *path,
		struct err *err)
{
	struct storing s = { .plan = plan, .ck = ck, .tuned = tuned, .writer = layer_writer_new(), .err = err };
	int rc = s.writer ? 0 : err_set_nomem(err, "a layer");

	for (int lin = 0; rc == 0 && lin < LIN_COUNT; lin++)
		if (!plan->settings[lin].skip)
			rc = store_module(&s, lin, &results[lin]);
	if (rc == 0)
		rc = model_each_tensor(&ck->config, store_if_kept, &s);
	if (rc == 0)
		rc = layer_writer_write(s.writer, path, err);
	layer_writer_free(s.writer);
	return rc;
}
