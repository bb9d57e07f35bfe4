#include "tests/lib/stored_case.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/half.h"
#include "formats/embedding.h"

enum { FILE_LIMIT = 64 << 20, HEADS = 4, KV_HEADS = 2, INNER = 512 };

/* --- the model ----------------------------------------------------------------------------------- */

static char *make_config(const struct stored_options *o)
{
	static const struct { const char *family, *class, *more; } families[] = {
		{ "llama", "LlamaForCausalLM", "" },
		{ "qwen2", "Qwen2ForCausalLM", "" },
		{ "qwen3", "Qwen3ForCausalLM", "" },
	};
	size_t i = 0;
	char text[1024];

	while (strcmp(families[i].family, o->family) != 0)
		i++;
	snprintf(text, sizeof(text), "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n  \"hidden_size\": %d,\n"
		 "  \"intermediate_size\": %d,\n  \"num_hidden_layers\": %d,\n  \"num_attention_heads\": %d,\n"
		 "  \"num_key_value_heads\": %d,\n  \"head_dim\": 64,\n  \"vocab_size\": %d,\n  \"max_position_embeddings\": 512,\n"
		 "  \"rms_norm_eps\": 1e-05,\n  \"rope_theta\": 10000.0,\n  \"hidden_act\": \"silu\",\n  \"tie_word_embeddings\": %s,\n"
		 "  \"torch_dtype\": \"%s\"\n}\n", families[i].class, o->family, STORED_HIDDEN, INNER, STORED_LAYERS, HEADS, KV_HEADS,
		 STORED_VOCAB, o->untied ? "false" : "true", o->dtype == ST_F32 ? "float32" : o->dtype == ST_F16 ? "float16" :
		 "bfloat16");
	return mem_strdup(text);
}

static void add_linears(struct stored_case *c)
{
	for (size_t i = 0; i < STORED_LAYERS * LIN_COUNT; i++) {
		const enum block_linear which = (enum block_linear)(i % LIN_COUNT);
		const struct linear_shape shape = model_linear(&c->config, which);
		struct codec_module m;
		char name[MODEL_NAME_MAX];

		model_linear_name(name, &c->config, i / LIN_COUNT, which);
		m = codec_case_module(name, shape.rows, shape.cols, c->options.bits, c->options.group, c->options.kind);
		m.layer = (int64_t)(i / LIN_COUNT);
		m.linear = which;
		m.settings.zero_parts = codec_zero_parts(&m) > 1 ? m.zero_parts : 0;
		codec_case_init(&c->linears[i], m, i + 1);
		c->linears[i].m.settings.skip = c->options.skipped >> which & 1;
		c->modules[i] = c->linears[i].m;
	}
	c->count = STORED_LAYERS * LIN_COUNT;
}

static void add_table(struct stored_case *c, const char *name, int bits)
{
	struct codec_module *m = &c->modules[c->count];

	if (bits == 0 || bits == 16)
		return;
	*m = (struct codec_module){ .name = name, .layer = -1, .rows = STORED_VOCAB, .cols = STORED_HIDDEN };
	embedding_settings(bits, &m->settings);
	c->count++;
}

void stored_case_init(struct stored_case *c, struct stored_options options)
{
	struct err err = ERR_INIT;

	memset(c, 0, sizeof(*c));
	c->options = options;
	c->config_text = make_config(&options);
	if (model_config_parse(&c->config, c->config_text, strlen(c->config_text), NULL, &err) != 0 ||
	    !(c->json = json_parse(c->config_text, strlen(c->config_text), &err)))
		fail_msg("%s", err.text);
	add_linears(c);
	add_table(c, "model.embed_tokens", options.embeddings);
	if (options.untied)
		add_table(c, "lm_head", options.lm_head);
}

void stored_case_deinit(struct stored_case *c)
{
	for (size_t i = 0; i < STORED_LAYERS * LIN_COUNT; i++)
		codec_case_deinit(&c->linears[i]);
	json_free(c->json);
	mem_free(c->config_text);
}

/* --- as a source --------------------------------------------------------------------------------- */

float stored_case_number(const char *tensor, uint64_t i)
{
	uint64_t h = 1469598103934665603u + i * 0x9E3779B97F4A7C15u;

	for (; *tensor; tensor++)
		h = (h ^ (unsigned char)*tensor) * 1099511628211u;
	h ^= h >> 29;
	return (float)((int)(h % 255) - 127) / 64;
}

struct wanted { const char *name; uint64_t rows, cols; bool found; };

static int match(void *ctx, const struct model_tensor *t)
{
	struct wanted *w = ctx;

	if (strcmp(t->name, w->name) != 0)
		return 0;
	*w = (struct wanted){ w->name, t->dim[0], t->dim[1] ? t->dim[1] : 1, true };
	return 1;
}

static int give_dtype(void *ctx, const char *tensor, enum st_dtype *out)
{
	const struct stored_case *c = ctx;
	struct wanted w = { .name = tensor };

	model_each_tensor(&c->config, match, &w);
	*out = c->options.dtype;
	return w.found ? 0 : -1;
}

static int give_rows(void *ctx, const char *tensor, uint64_t row, uint64_t rows, void *out, struct err *err)
{
	const struct stored_case *c = ctx;
	struct wanted w = { .name = tensor };

	model_each_tensor(&c->config, match, &w);
	if (!w.found || row + rows > w.rows)
		return err_set(err, ERR_INVALID, "the case has no such rows of %s", tensor);
	for (uint64_t i = 0; i < rows * w.cols; i++) {
		const float x = stored_case_number(tensor, row * w.cols + i);

		if (c->options.dtype == ST_F32)
			((float *)out)[i] = x;
		else
			((uint16_t *)out)[i] = c->options.dtype == ST_F16 ? f32_to_f16(x) : f32_to_bf16(x);
	}
	return 0;
}

static int give_module(void *ctx, size_t i, uint8_t *codes, float *scales, float *zeros, struct err *err)
{
	const struct codec_values *v = &((struct stored_case *)ctx)->linears[i].v;
	const size_t groups = v->rows * (v->cols / v->group);

	(void)err;
	memcpy(codes, v->codes, v->rows * v->cols);
	memcpy(scales, v->scales, groups * sizeof(float));
	memcpy(zeros, v->zeros, groups * sizeof(float));
	return 0;
}

static char *give_text(void *ctx, const char *file, size_t *len, struct err *err)
{
	const struct stored_case *c = ctx;
	char dir[1024];

	(void)err;
	if (strcmp(file, "config.json") == 0) {
		*len = strlen(c->config_text);
		return mem_strdup(c->config_text);
	}
	if (strcmp(file, "tokenizer.json") != 0)
		return NULL;
	snprintf(dir, sizeof(dir), "%s/examples/fable-tiny", getenv("QUARRY_ROOT") ? getenv("QUARRY_ROOT") : ".");
	return file_text(dir, file, len);
}

struct output_model stored_case_model(struct stored_case *c)
{
	return (struct output_model){ &c->config, c->json, c->modules, c->count, give_dtype, c };
}

struct output_source stored_case_source(struct stored_case *c)
{
	return (struct output_source){ give_module, give_rows, give_text, c };
}

/* --- writing ------------------------------------------------------------------------------------- */

struct sink { int fd; const char *path; };

static int put(void *ctx, uint64_t offset, const void *bytes, size_t len, struct err *err)
{
	const struct sink *s = ctx;

	return file_pwrite(s->fd, bytes, len, offset, s->path, err);
}

static int write_weights(const struct output_plan *p, const struct output_source *source, const char *dir, struct err *err)
{
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < p->file_count; i++) {
		char *path = path_join(dir, p->files[i].name);
		struct sink s = { file_open(path, O_RDWR | O_CREAT | O_TRUNC, 0644, err), path };
		const struct output_sink sink = { put, NULL, &s };
		struct output_stats stats;

		rc = s.fd < 0 ? -1 : output_write(p, i, source, &sink, &stats, err);
		if (s.fd >= 0)
			close(s.fd);
		mem_free(path);
	}
	return rc;
}

static int write_texts(const struct output_plan *p, const struct output_source *source, const char *config_text, const char *dir,
		       struct err *err)
{
	struct buf text;
	char *tokenizer;
	size_t len = 0;
	int rc;

	buf_init(&text, FILE_LIMIT);
	rc = output_config(p->format, p->model, config_text, NULL, &text, err);
	if (rc == 0 && text.len)
		file_put(dir, "config.json", text.data, text.len);
	buf_reset(&text);
	if (rc == 0)
		rc = output_index(p, &text, err);
	if (rc == 0 && text.len)
		file_put(dir, "model.safetensors.index.json", text.data, text.len);
	buf_deinit(&text);
	tokenizer = p->format->codec ? source->text(source->ctx, "tokenizer.json", &len, err) : NULL;
	if (tokenizer)
		file_put(dir, "tokenizer.json", tokenizer, len);
	mem_free(tokenizer);
	return rc;
}

int stored_write(const struct output_model *model, const struct output_source *source, const char *config_text,
		 const char *format, const char *dir, uint64_t shard, struct err *err)
{
	const struct output_format *f = output_format_find(format);
	struct output_plan plan;
	int rc;

	if (dir_remove(dir, err) != 0 || dir_make(dir, err) != 0 ||
	    output_plan_make(&plan, f, model, shard ? shard : UINT64_MAX, err) != 0)
		return -1;
	rc = write_weights(&plan, source, dir, err);
	if (rc == 0)
		rc = write_texts(&plan, source, config_text, dir, err);
	output_plan_deinit(&plan);
	return rc;
}

void stored_case_write(struct stored_case *c, const char *format, const char *dir, uint64_t shard)
{
	const struct output_model model = stored_case_model(c);
	const struct output_source source = stored_case_source(c);
	struct err err = ERR_INIT;

	if (stored_write(&model, &source, c->config_text, format, dir, shard, &err) != 0)
		fail_msg("%s: %s", format, err.text);
}

/* --- changing files ------------------------------------------------------------------------------ */

char *file_text(const char *dir, const char *name, size_t *len)
{
	struct err err = ERR_INIT;
	char *path = path_join(dir, name), *text = file_read_all(path, FILE_LIMIT, len, &err);

	mem_free(path);
	if (!text)
		fail_msg("%s", err.text);
	return text;
}

void file_put(const char *dir, const char *name, const void *bytes, size_t len)
{
	struct err err = ERR_INIT;
	char *path = path_join(dir, name);

	if (file_write_atomic(path, bytes, len, &err) != 0)
		fail_msg("%s", err.text);
	mem_free(path);
}

bool files_equal(const char *dir_a, const char *dir_b, const char *name)
{
	size_t la, lb;
	char *a = file_text(dir_a, name, &la), *b = file_text(dir_b, name, &lb);
	const bool same = la == lb && memcmp(a, b, la) == 0;

	mem_free(a);
	mem_free(b);
	return same;
}

struct loaded loaded_read(const char *path)
{
	struct loaded l = { .path = path };
	struct st_header h;
	struct err err = ERR_INIT;
	size_t len = 0;
	char *bytes = file_read_all(path, FILE_LIMIT, &len, &err);

	if (!bytes || st_header_read_path(&h, path, &err) != 0)
		fail_msg("%s", err.text);
	l.items = mem_alloc(h.count + 8, sizeof(*l.items));
	for (; l.count < h.count; l.count++) {
		const struct st_tensor *t = &h.tensors[l.count];
		const size_t size = (size_t)(t->end - t->begin);

		l.items[l.count].tensor = *t;
		l.items[l.count].tensor.name = mem_strdup(t->name);
		l.items[l.count].data = mem_alloc(size, 1);
		memcpy((void *)(uintptr_t)l.items[l.count].data, bytes + h.data_start + t->begin, size);
	}
	st_header_deinit(&h);
	mem_free(bytes);
	return l;
}

struct st_item *loaded_find(struct loaded *l, const char *name)
{
	for (size_t i = 0; i < l->count; i++)
		if (strcmp(l->items[i].tensor.name, name) == 0)
			return &l->items[i];
	fail_msg("%s has no tensor %s", l->path, name);
	return NULL;
}

void loaded_remove(struct loaded *l, const char *name)
{
	struct st_item *i = loaded_find(l, name);

	mem_free(i->tensor.name);
	mem_free((void *)(uintptr_t)i->data);
	*i = l->items[--l->count];
}

void loaded_add(struct loaded *l, const char *name, enum st_dtype dtype, unsigned ndim, uint64_t rows, uint64_t cols,
		const void *bytes, size_t len)
{
	struct st_item *i = &l->items[l->count++];
	void *copy = mem_alloc(len, 1);

	memcpy(copy, bytes, len);
	*i = (struct st_item){ { .name = mem_strdup(name), .dtype = dtype, .ndim = ndim, .shape = { rows, cols } }, copy };
}

void loaded_write(struct loaded *l)
{
	static const char *const keys[] = { "format" }, *const values[] = { "pt" };
	struct err err = ERR_INIT;

	if (st_write_file(l->path, l->items, l->count, keys, values, 1, &err) != 0)
		fail_msg("%s", err.text);
	for (size_t i = 0; i < l->count; i++) {
		mem_free(l->items[i].tensor.name);
		mem_free((void *)(uintptr_t)l->items[i].data);
	}
	mem_free(l->items);
	*l = (struct loaded){ 0 };
}
