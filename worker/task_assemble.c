/* task_assemble.c - one file of the result in one format, streamed module by module.
 *
 * The file's plan is made again from the spec's modules and the source's headers (formats/output.h); the codes come
 * from quantized layers, everything else from the layer where the layer has it - norms and biases may have been
 * trained - and otherwise from the source checkpoint. Layers come in order: one is open at a time.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/checkpoint.h"
#include "common/file.h"
#include "common/utf8.h"
#include "formats/output.h"
#include "formats/output_spec.h"
#include "worker/model/layer_blob.h"
#include "worker/task_kinds.h"

#define TEXT_BYTES_MAX ((size_t)1 << 28)

struct assembly {
	struct task_env *env;
	struct checkpoint ck;
	struct json *config;            /* config.json */
	struct output_modules modules;
	struct output_model model;
	struct output_plan plan;
	size_t file;                    /* of the plan */
	int fd;
	char *path;
	struct layer_blob blob;         /* the layer open now */
	int64_t open_layer;             /* -1: none */
};

/* --- the source ---------------------------------------------------------------------------------- */

static int source_dtype(void *ctx, const char *tensor, enum st_dtype *out)
{
	const struct assembly *a = ctx;
	const struct st_tensor *t = checkpoint_find(&a->ck, tensor, NULL);

	if (!t)
		return -1;
	*out = t->dtype;
	return 0;
}

static int open_layer(struct assembly *a, int64_t layer, struct err *err)
{
	char name[32];
	const struct task_input *input;

	if (a->open_layer == layer)
		return 0;
	if (a->open_layer >= 0)
		layer_blob_close(&a->blob);
	a->open_layer = -1;
	snprintf(name, sizeof(name), "layer-%" PRId64, layer);
	input = task_input_find(a->env, name, err);
	if (!input || layer_blob_open(&a->blob, input->path, err) != 0)
		return -1;
	a->open_layer = layer;
	return 0;
}

static int read_module(void *ctx, size_t module, uint8_t *codes, float *scales, float *zeros, struct err *err)
{
	struct assembly *a = ctx;
	const struct codec_module *m = &a->model.modules[module];
	struct layer_module packed;
	char shown[UTF8_SHOWN_MAX];

	if (open_layer(a, m->layer, err) != 0 || layer_blob_module(&a->blob, m->name, &packed, err) != 0)
		return -1;
	if (packed.rows != m->rows || packed.cols != m->cols || packed.bits != m->settings.bits ||
	    packed.groups * codec_group(m) != m->cols)
		return err_set(err, ERR_CORRUPT, "module %s is not stored with the bits and shape that the plan says",
			       utf8_show(shown, m->name));
	return layer_blob_read_module(&a->blob, m->name, codes, scales, zeros, err);
}

static bool same_layout(const struct st_tensor *a, const struct st_tensor *b)
{
	return a->dtype == b->dtype && a->ndim == b->ndim &&
	       memcmp(a->shape, b->shape, a->ndim * sizeof(a->shape[0])) == 0;
}

/* Rows of a tensor that the layer stores as it is. */
static int read_stored(struct assembly *a, const struct st_tensor *t, uint64_t row, uint64_t rows, void *out,
		       struct err *err)
{
	const uint64_t row_bytes = t->shape[0] > 0 ? (t->end - t->begin) / t->shape[0] : 0;
	const struct st_tensor *source = checkpoint_find(&a->ck, t->name, NULL);
	char shown[UTF8_SHOWN_MAX];

	if (!source || !same_layout(t, source))
		return err_set(err, ERR_CORRUPT, "tensor %s is not stored with the type and shape that the source has",
			       utf8_show(shown, t->name));
	return layer_blob_read_raw(&a->blob, t, row * row_bytes, out, (size_t)(rows * row_bytes), err);
}

static int read_rows(void *ctx, const char *tensor, uint64_t row, uint64_t rows, void *out, struct err *err)
{
	struct assembly *a = ctx;
	const struct st_tensor *stored = NULL;
	long layer;

	if (sscanf(tensor, "model.layers.%9ld.", &layer) == 1) {
		if (open_layer(a, layer, err) != 0)
			return -1;
		stored = st_find(&a->blob.header, tensor);
	}
	return stored ? read_stored(a, stored, row, rows, out, err)
		      : checkpoint_read_raw(&a->ck, tensor, row, rows, out, err);
}

static char *read_text(void *ctx, const char *file, size_t *len, struct err *err)
{
	const struct assembly *a = ctx;

	return source_read_optional(a->env->model, file, TEXT_BYTES_MAX, len, err);
}

/* --- the file ------------------------------------------------------------------------------------ */

static int put(void *ctx, uint64_t offset, const void *bytes, size_t len, struct err *err)
{
	const struct assembly *a = ctx;

	return file_pwrite(a->fd, bytes, len, offset, a->path, err);
}

static int step(void *ctx, double share, struct err *err)
{
	const struct assembly *a = ctx;

	return task_step(a->env, share, "assembling", err);
}

static int write_file(struct assembly *a, struct output_stats *stats, struct err *err)
{
	const struct output_source source = { read_module, read_rows, read_text, a };
	const struct output_sink sink = { put, step, a };

	a->path = task_output_path(a->env, "file", err);
	if (!a->path)
		return -1;
	a->fd = file_open(a->path, O_RDWR | O_CREAT | O_TRUNC, 0644, err);
	if (a->fd < 0 || task_step(a->env, 0, "assembling", err) != 0)
		return -1;
	return output_write(&a->plan, a->file, &source, &sink, stats, err);
}

/* --- the plan ------------------------------------------------------------------------------------ */

struct wanted { const struct output_format *format; int64_t file, max_shard_size; const char *name; };

static int read_wanted(struct wanted *w, const struct json *spec, struct err *err)
{
	const char *format;
	char shown[UTF8_SHOWN_MAX];

	if (json_require_string(spec, "format", &format, err) != 0 || json_require_string(spec, "name", &w->name, err) != 0 ||
	    json_require_int(spec, "file", 0, INT32_MAX, &w->file, err) != 0 ||
	    json_require_int(spec, "max_shard_size", 1, INT64_MAX, &w->max_shard_size, err) != 0)
		return -1;
	w->format = output_format_find(format);
	return w->format ? 0 : err_set(err, ERR_INVALID, "\"format\" is %s, which this worker does not know",
				       utf8_show(shown, format));
}

static int refuse(struct problems *problems, struct err *err)
{
	if (problems->count == 0)
		return err_set_nomem(err, "the plan of a file");
	return err_set(err, ERR_REFUSED, "%s", problems->items[0]);
}

static int make_plan(struct assembly *a, const struct wanted *w, struct err *err)
{
	struct problems problems = { 0 };
	char shown[UTF8_SHOWN_MAX];
	int rc;

	a->model = (struct output_model){ .config = &a->ck.config, .source_config = a->config,
					  .modules = a->modules.items, .count = a->modules.count,
					  .dtype = source_dtype, .ctx = a };
	rc = output_check(w->format, &a->model, &problems) == 0 ? 0 : refuse(&problems, err);
	problems_deinit(&problems);
	if (rc != 0 || output_plan_make(&a->plan, w->format, &a->model, (uint64_t)w->max_shard_size, err) != 0)
		return -1;
	a->file = (size_t)w->file;
	if (a->file < a->plan.file_count && strcmp(a->plan.files[a->file].name, w->name) == 0)
		return 0;
	return err_set(err, ERR_INVALID, "the spec names file %" PRId64 " of format %s %s; this worker's plan has %zu files and "
		       "another name there", w->file, w->format->name, utf8_show(shown, w->name), a->plan.file_count);
}

static int assemble(struct assembly *a, const struct json *spec, struct output_stats *stats, struct err *err)
{
	struct wanted w;

	if (read_wanted(&w, spec, err) != 0)
		return -1;
	a->config = json_parse(a->ck.config_text, a->ck.config_len, err);
	if (!a->config || output_modules_read(&a->modules, &a->ck.config, json_get(spec, "modules"), err) != 0 ||
	    make_plan(a, &w, err) != 0)
		return -1;
	return write_file(a, stats, err);
}

/* --- the task ------------------------------------------------------------------------------------ */

static struct json *assembly_result(const struct output_stats *stats)
{
	struct json *result = json_new_object();

	if (json_set_int(result, "bytes", (int64_t)stats->bytes) == 0 &&
	    json_set_number(result, "rounding", stats->rounding) == 0)
		return result;
	json_free(result);
	return NULL;
}

int task_assemble(const struct json *spec, struct task_env *env, struct json **result, struct err *err)
{
	struct assembly a = { .env = env, .fd = -1, .open_layer = -1 };
	struct output_stats stats;
	int rc;

	if (checkpoint_open(&a.ck, env->model, NULL, err) != 0)
		return -1;
	rc = assemble(&a, spec, &stats, err);
	if (rc == 0 && !(*result = assembly_result(&stats)))
		rc = err_set_nomem(err, "a result");
	if (a.open_layer >= 0)
		layer_blob_close(&a.blob);
	if (a.fd >= 0)
		close(a.fd);
	output_plan_deinit(&a.plan);
	output_modules_deinit(&a.modules);
	json_free(a.config);
	mem_free(a.path);
	checkpoint_close(&a.ck);
	return rc;
}
