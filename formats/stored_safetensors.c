/* stored_safetensors.c - a folder of safetensors files: tensors by name, each remembered when it has been asked for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/checkpoint.h"
#include "common/utf8.h"
#include "formats/stored_parts.h"

enum { TEXT_MAX = 256 << 20 };

struct stored_back {
	struct source *source;
	struct checkpoint ck;
	bool *used;             /* by entry */
	uint64_t row, rows;     /* what of a tensor the readers get; rows = 0: all */
};

/* --- finding ------------------------------------------------------------------------------------- */

/* Index of the first entry whose name is not before `name`. */
static size_t lower_bound(const struct checkpoint *ck, const char *name)
{
	size_t low = 0, high = ck->entry_count;

	while (low < high) {
		const size_t middle = low + (high - low) / 2;

		if (strcmp(ck->entries[middle].tensor->name, name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static const struct checkpoint_entry *find_entry(struct stored_back *b, const char *name)
{
	const size_t i = lower_bound(&b->ck, name);

	if (i == b->ck.entry_count || strcmp(b->ck.entries[i].tensor->name, name) != 0)
		return NULL;
	b->used[i] = true;
	return &b->ck.entries[i];
}

static bool is_float(enum st_dtype dtype)
{
	return dtype == ST_BF16 || dtype == ST_F16 || dtype == ST_F32;
}

static int find(struct stored_folder *f, const char *name, struct stored_shape *out)
{
	const size_t i = lower_bound(&f->back->ck, name);
	const struct st_tensor *t = i < f->back->ck.entry_count ? f->back->ck.entries[i].tensor : NULL;

	if (!t || strcmp(t->name, name) != 0 || !is_float(t->dtype) || t->ndim < 1 || t->ndim > 2)
		return 1;
	f->back->used[i] = true;
	*out = (struct stored_shape){ t->dtype, t->ndim, t->shape[0], t->ndim == 2 ? t->shape[1] : 1 };
	return 0;
}

static int rows(struct stored_folder *f, const char *name, uint64_t row, uint64_t count, void *out, struct err *err)
{
	return checkpoint_read_raw(&f->back->ck, name, row, count, out, err);
}

/* --- modules ------------------------------------------------------------------------------------- */

/* The part [row, row + rows) of the first dimension, when there is one to take. */
static int read_stored(void *ctx, const char *name, struct stored_tensor *out, struct err *err)
{
	struct stored_back *b = ctx;
	const struct checkpoint_entry *e = find_entry(b, name);
	const struct st_tensor *t;
	const struct checkpoint_file *file;
	uint64_t from, len;

	if (!e)
		return 1;
	t = e->tensor;
	file = &b->ck.files[e->file];
	from = t->begin;
	len = t->end - t->begin;
	*out = (struct stored_tensor){ .dtype = t->dtype, .ndim = t->ndim };
	for (unsigned d = 0; d < t->ndim && d < 2; d++)
		out->shape[d] = t->shape[d];
	if (b->rows > 0 && t->ndim >= 1 && b->row + b->rows <= t->shape[0]) {
		len = len / t->shape[0] * b->rows;
		from += len / b->rows * b->row;
		out->shape[0] = b->rows;
	}
	out->len = (size_t)len;
	out->bytes = mem_alloc((size_t)len, 1);
	if (!out->bytes)
		return err_set_nomem(err, name);
	if (b->source->read(b->source, file->name, file->header.data_start + from, out->bytes, (size_t)len, err) == 0)
		return 0;
	mem_free(out->bytes);
	out->bytes = NULL;
	return -1;
}

/* mlx and packed keep a row's numbers together; the others are read whole. */
static int module(struct stored_folder *f, const char *name, uint64_t row, uint64_t count, uint64_t all, uint64_t cols,
		  struct stored_module *out, bool *whole, struct err *err)
{
	const bool sliced = strcmp(f->format, "mlx") == 0 || strcmp(f->format, "packed") == 0;
	const struct stored_source source = { read_stored, f->back };
	int rc;

	*whole = !sliced || count == all;
	f->back->row = *whole ? 0 : row;
	f->back->rows = *whole ? 0 : count;
	rc = stored_module_read(f->stored_config, name, *whole ? all : count, cols, source, out, err);
	f->back->rows = 0;
	return rc;
}

/* Bytes of the tensors "<module>.<one word>" other than its bias. */
static uint64_t bytes_of(const struct stored_back *b, const char *name)
{
	const size_t len = strlen(name);
	uint64_t bytes = 0;

	for (size_t i = lower_bound(&b->ck, name); i < b->ck.entry_count; i++) {
		const struct st_tensor *t = b->ck.entries[i].tensor;

		if (strncmp(t->name, name, len) != 0)
			break;
		if (t->name[len] == '.' && !strchr(t->name + len + 1, '.') && strcmp(t->name + len, ".bias") != 0)
			bytes += t->end - t->begin;
	}
	return bytes;
}

static int packed_settings(struct stored_folder *f, const char *name, struct module_settings *settings, struct err *err)
{
	const struct json *modules = json_get(json_get(f->stored_config, "quantization_config"), "modules");
	char shown[UTF8_SHOWN_MAX];

	if (module_settings_from_json(settings, json_get(modules, name), err) == 0)
		return 0;
	return err_prefix(err, "config.json, settings of %s", utf8_show(shown, name));
}

/* A module whose ".weight" is one of plain numbers is not quantized, whatever config.json says of all. */
static int linear(struct stored_folder *f, const char *name, struct module_settings *settings, struct stored_linear *out,
		  struct err *err)
{
	char weight[MODEL_NAME_MAX + 8];
	struct stored_settings s;
	struct stored_shape shape;

	snprintf(weight, sizeof(weight), "%s.weight", name);
	*out = (struct stored_linear){ .bytes = bytes_of(f->back, name) };
	if (stored_settings_of(f->stored_config, name, &s, err) != 0)
		return -1;
	out->quantized = s.quantized && find(f, weight, &shape) != 0;
	settings->skip = !out->quantized;
	if (!out->quantized)
		return 0;
	if (strcmp(f->format, "packed") == 0)
		return packed_settings(f, name, settings, err);
	settings->bits = s.bits;
	settings->group_size = s.group_size;
	settings->symmetric = s.symmetric;
	settings->zero_point = strcmp(f->format, "mlx") == 0 ? ZERO_FLOAT : ZERO_INTEGER;
	return 0;
}

/* --- the rest ------------------------------------------------------------------------------------ */

static bool is_ignored(const struct stored_folder *f, const char *name)
{
	static const char inv_freq[] = ".rotary_emb.inv_freq";
	const size_t len = strlen(name), tail = sizeof(inv_freq) - 1;

	if (f->config.tied_embeddings && strncmp(name, "lm_head.", 8) == 0)
		return true;
	return len > tail && strcmp(name + len - tail, inv_freq) == 0;
}

static void left_over(struct stored_folder *f, struct findings *faults)
{
	const struct checkpoint *ck = &f->back->ck;
	char shown[UTF8_SHOWN_MAX];

	for (size_t i = 0; i < ck->entry_count; i++)
		if (!f->back->used[i] && !is_ignored(f, ck->entries[i].tensor->name))
			findings_add(faults, ERR_CORRUPT, "%s holds tensor \"%s\" (%s), which is no part of a %s model of this "
				     "configuration in format %s", ck->files[ck->entries[i].file].name,
				     utf8_show(shown, ck->entries[i].tensor->name), st_dtype_name(ck->entries[i].tensor->dtype),
				     f->config.family, f->format);
}

static char *text(struct stored_folder *f, const char *file, size_t *len, struct err *err)
{
	return source_read_optional(f->back->source, file, TEXT_MAX, len, err);
}

static int files(const struct stored_folder *f, int (*each)(void *ctx, const char *name), void *ctx)
{
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < f->back->ck.file_count; i++)
		rc = each(ctx, f->back->ck.files[i].name);
	return rc;
}

static void close_back(struct stored_folder *f)
{
	if (!f->back)
		return;
	checkpoint_close(&f->back->ck);
	if (f->back->source)
		f->back->source->close(f->back->source);
	mem_free(f->back->used);
	mem_free(f->back);
	f->back = NULL;
}

/* --- opening ------------------------------------------------------------------------------------- */

static int read_config(struct stored_folder *f, struct findings *faults)
{
	struct err reason = ERR_INIT;
	size_t len = 0;
	char *config = source_read_all(f->back->source, "config.json", STORED_CONFIG_MAX, &len, &reason);
	int rc = -1;

	if (config)
		f->stored_config = json_parse(config, len, &reason);
	if (!config)
		findings_add_err(faults, &reason);
	else if (!f->stored_config) {
		err_prefix(&reason, "config.json");
		findings_add_err(faults, &reason);
	} else if (!(f->format = codec_detect(f->stored_config, &reason))) {
		findings_add_err(faults, &reason);
	} else {
		rc = stored_take_config(f, config, len, faults);
	}
	mem_free(config);
	return rc;
}

int stored_safetensors_open(struct stored_folder *f, struct findings *faults)
{
	struct err reason = ERR_INIT;
	struct problems list = { 0 };
	int rc;

	f->ops = &stored_safetensors;
	f->back = mem_alloc(1, sizeof(*f->back));
	if (!f->back)
		err_set_nomem(&reason, "a checkpoint");
	else
		f->back->source = source_dir_open(f->dir, &reason);
	if (!f->back || !f->back->source)
		return findings_add_err(faults, &reason);
	rc = read_config(f, faults);
	if (faults->failed)
		return -1;
	if (checkpoint_open_files(&f->back->ck, f->back->source, &list, &reason) != 0) {
		for (size_t i = 0; i < list.count; i++)
			findings_add(faults, reason.code, "%s", list.items[i]);
		if (list.count == 0 || err_retryable(reason.code))
			findings_add_err(faults, &reason);
		rc = -1;
	}
	problems_deinit(&list);
	if (rc != 0)
		return -1;
	f->back->used = mem_alloc(f->back->ck.entry_count, sizeof(bool));
	if (f->back->used)
		return 0;
	err_set_nomem(&reason, "the tensors of a checkpoint");
	return findings_add_err(faults, &reason);
}

const struct stored_ops stored_safetensors = {
	.find = find, .rows = rows, .linear = linear, .module = module, .left_over = left_over, .text = text, .files = files,
	.close = close_back,
};
