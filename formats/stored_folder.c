#include "formats/stored_folder.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/utf8.h"
#include "formats/embedding.h"
#include "formats/stored_parts.h"

static const char *const table_names[2] = { "model.embed_tokens", "lm_head" };

/* --- where it lies ------------------------------------------------------------------------------- */

static bool has_ending(const char *name, const char *ending)
{
	const size_t len = strlen(name), tail = strlen(ending);

	return len > tail && strcmp(name + len - tail, ending) == 0;
}

/* The one .gguf file of the folder; several are refused, none is no error. */
static int find_gguf(struct stored_folder *f, struct err *err)
{
	DIR *d = opendir(f->dir);
	struct dirent *e;
	unsigned count = 0;

	if (!d)
		return err_set_errno(err, errno, "cannot read %s", f->dir);
	while ((e = readdir(d))) {
		if (!has_ending(e->d_name, ".gguf") || count++ > 0)
			continue;
		f->gguf_file = mem_strdup(e->d_name);
	}
	closedir(d);
	if (count > 1)
		return err_set(err, ERR_INVALID, "%s holds %u .gguf files; name one of them", f->dir, count);
	return count == 0 || f->gguf_file ? 0 : err_set_nomem(err, "a name");
}

static bool has_file(const struct stored_folder *f, const char *name)
{
	char *path = path_join(f->dir, name);
	const bool there = path && file_exists(path);

	mem_free(path);
	return there;
}

static int take_file(struct stored_folder *f, const char *path, struct err *err)
{
	const char *slash = strrchr(path, '/');

	f->dir = !slash ? mem_strdup(".") : mem_strndup(path, slash == path ? 1 : (size_t)(slash - path));
	f->gguf_file = mem_strdup(slash ? slash + 1 : path);
	return f->dir && f->gguf_file ? 0 : err_set_nomem(err, "a path");
}

static int locate(struct stored_folder *f, const char *path, struct err *err)
{
	struct stat st;

	if (stat(path, &st) != 0)
		return err_set_errno(err, errno, "cannot open %s", path);
	if (!S_ISDIR(st.st_mode))
		return take_file(f, path, err);
	f->dir = mem_strdup(path);
	if (!f->dir)
		return err_set_nomem(err, "a path");
	if (has_file(f, "model.safetensors") || has_file(f, "model.safetensors.index.json"))
		return 0;
	if (find_gguf(f, err) != 0)
		return -1;
	if (f->gguf_file || has_file(f, "config.json"))
		return 0;
	return err_set(err, ERR_NOT_FOUND, "%s holds no checkpoint: there is neither config.json nor a .gguf file", path);
}

/* --- modules ------------------------------------------------------------------------------------- */

static int make_room(struct stored_folder *f, struct err *err)
{
	f->linears = f->config.layers * LIN_COUNT;
	f->names = mem_alloc(f->linears + 2, sizeof(*f->names));
	f->modules = mem_alloc(f->linears + 2, sizeof(*f->modules));
	f->linear = mem_alloc(f->linears, sizeof(*f->linear));
	return f->names && f->modules && f->linear ? 0 : err_set_nomem(err, "the modules of a checkpoint");
}

static const struct module_settings unknown_settings = {
	.skip = true, .bits = 4, .group_size = -1, .method = METHOD_NEUQI, .rounding = ROUND_LDLQ,
};

static void list_linears(struct stored_folder *f, struct findings *faults)
{
	for (size_t i = 0; i < f->linears; i++) {
		const enum block_linear which = (enum block_linear)(i % LIN_COUNT);
		const struct linear_shape shape = model_linear(&f->config, which);
		struct module_settings settings = unknown_settings;
		struct err reason = ERR_INIT;

		model_linear_name(f->names[i], &f->config, i / LIN_COUNT, which);
		if (f->ops->linear(f, f->names[i], &settings, &f->linear[i], &reason) != 0)
			findings_add_err(faults, &reason);
		f->modules[i] = (struct codec_module){
			.name = f->names[i], .layer = (int64_t)(i / LIN_COUNT), .linear = which, .rows = shape.rows,
			.cols = shape.cols, .settings = settings, .zero_parts = settings.zero_parts,
		};
	}
	f->count = f->linears;
}

/* Only packed says of a table that is stored plainly what is to become of it. */
static int packed_table_bits(struct stored_folder *f, int t, struct err *err)
{
	static const char *const keys[2] = { "embeddings", "lm_head" };
	const struct json *q = json_get(f->stored_config, "quantization_config"), *value = json_get(q, keys[t]);
	int64_t bits;

	f->table_bits[t] = 16;
	if (strcmp(f->format, "packed") != 0 || !value)
		return 0;
	if (!json_int(value, &bits) || !embedding_bits_known(bits))
		return err_set(err, ERR_CORRUPT, "config.json: \"%s\" must be 16, 8, 6 or 4", keys[t]);
	f->table_bits[t] = (int)bits;
	return 0;
}

void stored_add_tables(struct stored_folder *f)
{
	f->count = f->linears;
	for (int t = 0; t < (f->config.tied_embeddings ? 1 : 2); t++) {
		struct codec_module *m = &f->modules[f->count];

		if (f->table_bits[t] == 16)
			continue;
		snprintf(f->names[f->count], sizeof(f->names[0]), "%s", table_names[t]);
		*m = (struct codec_module){ .name = f->names[f->count], .layer = -1, .rows = f->config.vocab,
					    .cols = f->config.hidden };
		embedding_settings(f->table_bits[t], &m->settings);
		m->zero_parts = m->settings.zero_parts;
		f->count++;
	}
}

int stored_folder_tables(struct stored_folder *f, int embeddings, int lm_head, struct err *err)
{
	const int embedding = embeddings ? embeddings : f->table_bits[0];

	if (f->config.tied_embeddings && lm_head && lm_head != embedding)
		return err_set(err, ERR_REFUSED, "the output head of this model is its embedding: lm_head %d and embeddings %d must be equal",
			       lm_head, embedding);
	f->table_bits[0] = embedding;
	f->table_bits[1] = lm_head ? lm_head : f->table_bits[1];
	stored_add_tables(f);
	return 0;
}

static void list_tables(struct stored_folder *f, struct findings *faults)
{
	for (int t = 0; t < (f->config.tied_embeddings ? 1 : 2); t++) {
		struct module_settings settings = unknown_settings;
		struct err reason = ERR_INIT;

		if (packed_table_bits(f, t, &reason) != 0 ||
		    f->ops->linear(f, table_names[t], &settings, &f->tables[t], &reason) != 0)
			findings_add_err(faults, &reason);
		if (f->tables[t].quantized)
			f->tables[t].why_plain = "its rounding is none of those that embeddings have in other formats";
	}
	stored_add_tables(f);
}

/* --- opening ------------------------------------------------------------------------------------- */

int stored_folder_open(struct stored_folder *f, const char *path, struct problems *problems, struct err *err)
{
	struct findings faults = { .list = problems, .err = err };
	struct err reason = ERR_INIT;
	int rc;

	*f = (struct stored_folder){ .kept_index = SIZE_MAX, .table_bits = { 16, 16 } };
	if (locate(f, path, &reason) != 0)
		rc = findings_add_err(&faults, &reason);
	else
		rc = f->gguf_file ? stored_gguf_open(f, &faults) : stored_safetensors_open(f, &faults);
	if (rc == 0 && make_room(f, &reason) != 0)
		rc = findings_add_err(&faults, &reason);
	if (rc == 0) {
		list_linears(f, &faults);
		list_tables(f, &faults);
		rc = findings_result(&faults);
	}
	if (rc != 0)
		stored_folder_close(f);
	return rc;
}

void stored_folder_close(struct stored_folder *f)
{
	stored_forget(f);
	if (f->ops)
		f->ops->close(f);
	mem_free(f->dir);
	mem_free(f->gguf_file);
	mem_free(f->config_text);
	json_free(f->plain);
	json_free(f->stored_config);
	mem_free(f->names);
	mem_free(f->modules);
	mem_free(f->linear);
	*f = (struct stored_folder){ 0 };
}

/* --- figures ------------------------------------------------------------------------------------- */

static int add_tensor(void *ctx, const struct model_tensor *t)
{
	*(uint64_t *)ctx += (uint64_t)t->dim[0] * (t->dim[1] ? t->dim[1] : 1);
	return 0;
}

uint64_t stored_folder_parameters(const struct stored_folder *f)
{
	uint64_t sum = 0;

	model_each_tensor(&f->config, add_tensor, &sum);
	return sum;
}

void stored_folder_quantized(const struct stored_folder *f, uint64_t *bytes, uint64_t *weights)
{
	*bytes = *weights = 0;
	for (size_t i = 0; i < f->linears; i++) {
		if (!f->linear[i].quantized)
			continue;
		*bytes += f->linear[i].bytes;
		*weights += f->modules[i].rows * f->modules[i].cols;
	}
}

int stored_folder_files(const struct stored_folder *f, int (*each)(void *ctx, const char *name), void *ctx)
{
	return f->ops->files(f, each, ctx);
}
