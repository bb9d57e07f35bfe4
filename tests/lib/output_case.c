#include "tests/lib/output_case.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/half.h"
#include "formats/embedding.h"

#define FILE_BYTES_MAX ((size_t)1 << 28)

/* --- the model ----------------------------------------------------------------------------------- */

static const char *dtype_word(enum st_dtype dtype)
{
	return dtype == ST_F32 ? "float32" : dtype == ST_F16 ? "float16" : "bfloat16";
}

static void read_config(struct output_case *c, const struct output_case_model *m)
{
	const char *architecture = strcmp(m->family, "qwen2") == 0 ? "Qwen2ForCausalLM" : strcmp(m->family, "qwen3") == 0 ?
		"Qwen3ForCausalLM" : "LlamaForCausalLM";
	struct err err = ERR_INIT;
	struct buf text;

	buf_init(&text, 1 << 16);
	buf_printf(&text, "{\"architectures\":[\"%s\"],\"model_type\":\"%s\",\"hidden_size\":%zu,"
		   "\"intermediate_size\":%zu,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":%zu,"
		   "\"num_hidden_layers\":%d,\"vocab_size\":1024,\"max_position_embeddings\":512,\"rms_norm_eps\":1e-05,"
		   "\"hidden_act\":\"silu\",\"rope_theta\":10000.0,\"tie_word_embeddings\":%s,\"torch_dtype\":\"%s\","
		   "\"bos_token_id\":1020,\"eos_token_id\":1021,\"quantization_config\":null}", architecture, m->family, m->hidden,
		   m->intermediate, m->hidden / 4, OUTPUT_CASE_LAYERS, m->tied ? "true" : "false", dtype_word(m->dtype));
	c->config_text = buf_take(&text);
	c->config_json = json_parse(c->config_text, strlen(c->config_text), &err);
	if (!c->config_json || model_config_parse(&c->config, c->config_text, strlen(c->config_text), NULL, &err) != 0)
		fail_msg("%s", err.text);
}

static void read_tokenizer(struct output_case *c)
{
	struct err err = ERR_INIT;
	char path[4200];

	snprintf(path, sizeof(path), "%s/examples/fable-tiny/tokenizer.json", getenv("QUARRY_ROOT"));
	c->tokenizer = file_read_all(path, 1 << 24, &c->tokenizer_len, &err);
	if (!c->tokenizer)
		fail_msg("%s", err.text);
}

static uint32_t hash(const char *name, uint64_t i)
{
	uint64_t h = i * 0x9E3779B97F4A7C15u + 0x1234567;

	for (; *name; name++)
		h = (h ^ (unsigned char)*name) * 0x100000001B3u;
	h ^= h >> 29;
	h *= 0xBF58476D1CE4E5B9u;
	return (uint32_t)(h >> 32);
}

/* Between -0.5 and 0.5, and rounded to the model's dtype. */
float output_case_value(const struct output_case *c, const char *tensor, uint64_t i)
{
	const float x = (float)((double)hash(tensor, i) / 4294967296.0 - 0.5);

	return c->dtype == ST_F32 ? x : c->dtype == ST_F16 ? f16_to_f32(f32_to_f16(x)) : bf16_to_f32(f32_to_bf16(x));
}

struct search { const char *name; bool found; uint64_t cols; };

static int look(void *ctx, const struct model_tensor *t)
{
	struct search *s = ctx;

	s->found |= strcmp(t->name, s->name) == 0;
	if (strcmp(t->name, s->name) == 0)
		s->cols = t->dim[1] ? t->dim[1] : 1;
	return s->found;
}

static int find_dtype(void *ctx, const char *tensor, enum st_dtype *out)
{
	const struct output_case *c = ctx;
	struct search s = { .name = tensor };

	model_each_tensor(&c->config, look, &s);
	*out = c->dtype;
	return s.found ? 0 : -1;
}

static int read_module(void *ctx, size_t module, uint8_t *codes, float *scales, float *zeros, struct err *err)
{
	struct output_case *c = ctx;
	const struct codec_values *v = &c->cases[module].v;
	const size_t groups = v->rows * (v->cols / v->group);

	if (++c->reads == c->fail_read)
		return err_set(err, ERR_IO, "the source is gone");
	memcpy(codes, v->codes, v->rows * v->cols);
	memcpy(scales, v->scales, groups * sizeof(float));
	memcpy(zeros, v->zeros, groups * sizeof(float));
	return 0;
}

static int read_rows(void *ctx, const char *tensor, uint64_t row, uint64_t rows, void *out, struct err *err)
{
	struct output_case *c = ctx;
	struct search s = { .name = tensor };

	if (++c->reads == c->fail_read)
		return err_set(err, ERR_IO, "the source is gone");
	model_each_tensor(&c->config, look, &s);
	assert_true(s.found);
	for (uint64_t i = 0; i < rows * s.cols; i++) {
		const float x = output_case_value(c, tensor, row * s.cols + i);

		if (c->dtype == ST_F32)
			((float *)out)[i] = x;
		else
			((uint16_t *)out)[i] = c->dtype == ST_F16 ? f32_to_f16(x) : f32_to_bf16(x);
	}
	return 0;
}

static char *read_text(void *ctx, const char *file, size_t *len, struct err *err)
{
	struct output_case *c = ctx;
	const char *text = strcmp(file, "config.json") == 0 ? c->config_text : strcmp(file, "tokenizer.json") == 0 ?
		c->tokenizer : NULL;
	const bool gone = ++c->reads == c->fail_read;
	char *copy = text && !gone ? mem_strdup(text) : NULL;

	if (gone)
		err_set(err, ERR_IO, "the source is gone");
	else if (text && !copy)
		err_set_nomem(err, file);
	*len = text ? strlen(text) : 0;
	return copy;
}

void output_case_init(struct output_case *c, const struct output_case_model *m, int bits, int64_t group,
		      enum zero_kind kind)
{
	memset(c, 0, sizeof(*c));
	c->dtype = m->dtype;
	read_config(c, m);
	read_tokenizer(c);
	for (size_t i = 0; i < OUTPUT_CASE_MODULES; i++) {
		const enum block_linear lin = (enum block_linear)(i % LIN_COUNT);
		const struct linear_shape shape = model_linear(&c->config, lin);

		model_linear_name(c->names[i], &c->config, i / LIN_COUNT, lin);
		c->modules[i] = codec_case_module(c->names[i], shape.rows, shape.cols, bits, group, kind);
		c->modules[i].layer = (int64_t)(i / LIN_COUNT);
		c->modules[i].linear = lin;
	}
	c->model = (struct output_model){ .config = &c->config, .source_config = c->config_json, .modules = c->modules,
					  .count = OUTPUT_CASE_MODULES, .dtype = find_dtype, .ctx = c };
	c->source = (struct output_source){ read_module, read_rows, read_text, c };
	for (size_t i = 0; i < OUTPUT_CASE_FILES; i++) {
		buf_init(&c->files[i].bytes, FILE_BYTES_MAX);
		buf_init(&c->files[i].times, FILE_BYTES_MAX);
	}
	buf_init(&c->written_config, 1 << 20);
	buf_init(&c->extra, 1 << 20);
	buf_init(&c->index, 1 << 20);
}

void output_case_tables(struct output_case *c, int embeddings, int head)
{
	static const char *const names[] = { "model.embed_tokens", "lm_head" };
	const int bits[] = { embeddings, head };

	for (int i = 0; i < 2; i++) {
		struct codec_module *m = &c->modules[c->model.count];

		if (bits[i] == 0 || bits[i] == 16)
			continue;
		*m = (struct codec_module){ .name = names[i], .layer = -1, .rows = c->config.vocab, .cols = c->config.hidden };
		embedding_settings(bits[i], &m->settings);
		c->model.count++;
	}
}

void output_case_values(struct output_case *c)
{
	for (size_t i = 0; i < OUTPUT_CASE_MODULES; i++)
		codec_case_init(&c->cases[i], c->modules[i], i + 1);
}

/* --- writing ------------------------------------------------------------------------------------- */

struct file_sink { struct output_case *c; struct output_case_file *f; };

static void grow(struct buf *b, size_t len)
{
	static const char zeros[4096];

	while (b->len < len)
		assert_int_equal(buf_append(b, zeros, len - b->len < sizeof(zeros) ? len - b->len : sizeof(zeros)), 0);
}

static int put(void *ctx, uint64_t offset, const void *bytes, size_t len, struct err *err)
{
	struct file_sink *s = ctx;
	if (++s->c->writes == s->c->fail_write)
		return err_set(err, ERR_IO, "the sink is full");
	if (s->c->discard)
		return 0;
	grow(&s->f->bytes, offset + len);
	grow(&s->f->times, offset + len);
	memcpy(s->f->bytes.data + offset, bytes, len);
	for (size_t i = 0; i < len; i++)
		s->f->times.data[offset + i]++;
	return 0;
}

static int step(void *ctx, double share, struct err *err)
{
	struct file_sink *s = ctx;

	assert_true(share > 0 && share <= 1);
	if (++s->c->steps == s->c->stop_at)
		return err_set(err, ERR_CANCELLED, "stopped");
	return 0;
}

static int write_file(struct output_case *c, size_t i, struct err *err)
{
	struct file_sink s = { c, &c->files[i] };
	const struct output_sink sink = { put, step, &s };
	const double most = c->stats.rounding;

	assert_true(i < OUTPUT_CASE_FILES);
	snprintf(s.f->name, sizeof(s.f->name), "%s", c->plan.files[i].name);
	if (output_write(&c->plan, i, &c->source, &sink, &c->stats, err) != 0)
		return -1;
	c->stats.rounding = c->stats.rounding > most ? c->stats.rounding : most;
	assert_true(c->discard || c->stats.bytes == s.f->bytes.len);
	for (size_t b = 0; b < s.f->times.len; b++)
		if (s.f->times.data[b] != 1)
			fail_msg("byte %zu of %s was written %d times", b, s.f->name, s.f->times.data[b]);
	return 0;
}

int output_case_write(struct output_case *c, const char *format, uint64_t max_shard_size, struct err *err)
{
	const struct output_format *f = output_format_find(format);

	assert_non_null(f);
	output_case_clear(c);
	if (output_plan_make(&c->plan, f, &c->model, max_shard_size, err) != 0)
		return -1;
	for (size_t i = 0; i < c->plan.file_count; i++)
		if (write_file(c, i, err) != 0)
			return -1;
	if (output_config(f, &c->model, c->config_text, NULL, &c->written_config, err) != 0 ||
	    output_extra(f, &c->model, &c->extra, err) != 0)
		return -1;
	return output_index(&c->plan, &c->index, err);
}

void output_case_clear(struct output_case *c)
{
	for (size_t i = 0; i < OUTPUT_CASE_FILES; i++) {
		buf_reset(&c->files[i].bytes);
		buf_reset(&c->files[i].times);
		c->files[i].name[0] = '\0';
	}
	buf_reset(&c->written_config);
	buf_reset(&c->extra);
	buf_reset(&c->index);
	output_plan_deinit(&c->plan);
	c->stats = (struct output_stats){ 0 };
	c->writes = c->steps = c->reads = 0;
}

void output_case_deinit(struct output_case *c)
{
	output_plan_deinit(&c->plan);
	for (size_t i = 0; i < OUTPUT_CASE_MODULES; i++)
		codec_case_deinit(&c->cases[i]);
	for (size_t i = 0; i < OUTPUT_CASE_FILES; i++) {
		buf_deinit(&c->files[i].bytes);
		buf_deinit(&c->files[i].times);
	}
	buf_deinit(&c->written_config);
	buf_deinit(&c->extra);
	buf_deinit(&c->index);
	json_free(c->config_json);
	mem_free(c->config_text);
	mem_free(c->tokenizer);
}

/* --- reading back -------------------------------------------------------------------------------- */

static int read_bytes(void *ctx, uint64_t offset, void *out, size_t len, struct err *err)
{
	const struct buf *b = ctx;

	(void)err;
	assert_true(offset + len <= b->len);
	memcpy(out, b->data + offset, len);
	return 0;
}

static void copy_tensor(const struct buf *file, const struct st_header *h, const struct st_tensor *t,
			struct stored_tensor *out)
{
	*out = (struct stored_tensor){ .dtype = t->dtype, .ndim = t->ndim, .len = (size_t)(t->end - t->begin) };
	for (unsigned d = 0; d < t->ndim && d < 2; d++)
		out->shape[d] = t->shape[d];
	out->bytes = mem_alloc(out->len, 1);
	assert_non_null(out->bytes);
	memcpy(out->bytes, file->data + h->data_start + t->begin, out->len);
}

static int read_stored(void *ctx, const char *name, struct stored_tensor *out, struct err *err)
{
	struct output_case *c = ctx;
	int found = 1;

	for (size_t i = 0; found == 1 && i < c->plan.file_count; i++) {
		struct buf *file = &c->files[i].bytes;
		struct st_header h = { 0 };
		const struct st_tensor *t;

		if (st_header_read(&h, c->files[i].name, file->len, read_bytes, file, err) != 0)
			fail_msg("%s: %s", c->files[i].name, err->text);
		t = st_find(&h, name);
		if (t)
			copy_tensor(file, &h, t, out);
		found = t ? 0 : 1;
		st_header_deinit(&h);
	}
	return found;
}

struct stored_source output_case_stored(struct output_case *c)
{
	return (struct stored_source){ read_stored, c };
}
