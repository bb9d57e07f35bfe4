/* output_gguf.c - a whole model as one gguf file: metadata and tokenizer first, then the tensors in the plan's order. */
#include <string.h>

#include "common/alloc.h"
#include "formats/gguf_blocks.h"
#include "formats/gguf_file.h"
#include "formats/gguf_meta.h"
#include "formats/gguf_tokenizer.h"
#include "formats/output_parts.h"

enum { GENERAL_NAME_MAX = 128 };
#define HEAD_MAX ((size_t)1 << 30)

/* --- metadata ------------------------------------------------------------------------------------ */

/* The texts of the model that the metadata is made of. */
struct texts {
	char *tokenizer, *settings, *generation, *template, *config;
	size_t tokenizer_len, settings_len, generation_len, template_len;
	struct json *settings_json, *generation_json, *config_json;
};

static void texts_deinit(struct texts *t)
{
	mem_free(t->tokenizer);
	mem_free(t->settings);
	mem_free(t->generation);
	mem_free(t->template);
	mem_free(t->config);
	json_free(t->settings_json);
	json_free(t->generation_json);
	json_free(t->config_json);
}

/* One that may be absent. */
static int read_text(const struct output_source *s, const char *file, char **out, size_t *len, struct err *err)
{
	struct err why = ERR_INIT;

	*out = s->text(s->ctx, file, len, &why);
	if (*out || why.code == ERR_NONE)
		return 0;
	*err = why;
	return -1;
}

static int read_json(const struct output_source *s, const char *file, char **text, size_t *len, struct json **out,
		     struct err *err)
{
	if (read_text(s, file, text, len, err) != 0)
		return -1;
	*out = *text ? json_parse(*text, *len, err) : NULL;
	return !*text || *out ? 0 : err_prefix(err, "%s", file);
}

static int texts_read(struct texts *t, const struct output_source *s, struct err *err)
{
	size_t len = 0;

	*t = (struct texts){ 0 };
	if (read_text(s, "tokenizer.json", &t->tokenizer, &t->tokenizer_len, err) != 0 ||
	    read_json(s, "tokenizer_config.json", &t->settings, &t->settings_len, &t->settings_json, err) != 0 ||
	    read_json(s, "generation_config.json", &t->generation, &t->generation_len, &t->generation_json, err) != 0 ||
	    read_json(s, "config.json", &t->config, &len, &t->config_json, err) != 0 ||
	    read_text(s, "chat_template.jinja", &t->template, &t->template_len, err) != 0)
		return -1;
	if (!t->tokenizer)
		return err_set(err, ERR_REFUSED, "gguf files carry the tokenizer, and the model has no tokenizer.json");
	return 0;
}

/* What the file is turned back into a checkpoint from, beside config.json. */
static int put_carried(struct gguf_kv *kv, const struct texts *t, struct err *err)
{
	const struct gguf_carried carried[] = {
		{ GGUF_TOKENIZER_KEY, "tokenizer.json", t->tokenizer, t->tokenizer_len },
		{ GGUF_SETTINGS_KEY, "tokenizer_config.json", t->settings, t->settings_len },
		{ GGUF_GENERATION_KEY, "generation_config.json", t->generation, t->generation_len },
		{ GGUF_TEMPLATE_KEY, "chat_template.jinja", t->template, t->template_len },
	};

	for (size_t i = 0; i < sizeof(carried) / sizeof(carried[0]); i++)
		if (gguf_meta_carried(kv, &carried[i], err) != 0)
			return -1;
	return 0;
}

static int put_tokenizer(struct gguf_kv *kv, const struct output_model *m, const struct texts *t, struct err *err)
{
	const struct gguf_tokenizer tokenizer = {
		.text = t->tokenizer, .len = t->tokenizer_len, .settings = t->settings_json,
		.generation = t->generation_json, .config = t->config_json ? t->config_json : m->source_config,
		.chat_template = t->template, .vocab = m->config->vocab,
	};

	return gguf_meta_tokenizer(kv, &tokenizer, err) == 0 ? put_carried(kv, t, err) : -1;
}

static bool in_block(const struct output_plan *p, const struct output_tensor *t)
{
	return t->module != SIZE_MAX && !output_is_table(&p->model->modules[t->module]);
}

/* Of most weights of the quantized modules; of all tensors when none is quantized. */
static enum gguf_type most_of(const struct output_plan *p, bool modules)
{
	enum gguf_type best = GGUF_F32;
	uint64_t most = 0;

	for (size_t i = 0; i < p->tensor_count; i++) {
		uint64_t weights = 0;

		for (size_t k = i; k < p->tensor_count; k++) {
			const struct output_tensor *t = &p->tensors[k];

			if (t->gguf == p->tensors[i].gguf && (!modules || in_block(p, t)))
				weights += t->shape[0] * (t->ndim == 2 ? t->shape[1] : 1);
		}
		if (weights > most) {
			most = weights;
			best = p->tensors[i].gguf;
		}
	}
	return most > 0 || !modules ? best : most_of(p, false);
}

static int put_meta(struct gguf_kv *kv, const struct output_plan *p, const struct texts *t, struct err *err)
{
	const struct model_config *mc = p->model->config;
	const struct gguf_about about = { .name = mc->architecture[0] ? mc->architecture : mc->family,
					  .most = most_of(p, true), .config_text = t->config };

	if (gguf_meta_model(kv, mc, &about, err) != 0)
		return -1;
	return put_tokenizer(kv, p->model, t, err);
}

int output_check_texts(const struct output_format *f, const struct output_model *m, const struct output_source *source,
		       struct err *err)
{
	struct gguf_kv kv;
	struct texts t;
	int rc;

	if (f->codec)
		return 0;
	rc = texts_read(&t, source, err);
	gguf_kv_init(&kv);
	if (rc == 0)
		rc = put_tokenizer(&kv, m, &t, err);
	gguf_kv_deinit(&kv);
	texts_deinit(&t);
	return rc;
}

/* --- tensors ------------------------------------------------------------------------------------- */

struct gguf_job {
	struct output_work *w;
	struct gguf_tensor *tensors;
	uint64_t data_start;
};

static void fill_tensors(struct gguf_job *g)
{
	const struct output_plan *p = g->w->plan;

	for (size_t i = 0; i < p->tensor_count; i++) {
		const struct output_tensor *t = &p->tensors[i];

		g->tensors[i] = (struct gguf_tensor){ .name = t->name, .type = t->gguf, .ndim = t->ndim,
						      .ne = { t->shape[t->ndim - 1], t->ndim == 2 ? t->shape[0] : 0 } };
	}
}

static int put_head(struct gguf_job *g, struct err *err)
{
	const struct output_plan *p = g->w->plan;
	struct gguf_kv kv;
	struct texts t;
	struct buf head;
	int rc = texts_read(&t, g->w->source, err);

	gguf_kv_init(&kv);
	buf_init(&head, HEAD_MAX);
	if (rc == 0)
		rc = put_meta(&kv, p, &t, err);
	if (rc == 0)
		rc = gguf_layout(&kv, g->tensors, p->tensor_count, &head, err);
	if (rc == 0)
		rc = output_put(g->w, 0, head.data, head.len, err);
	g->data_start = head.len;
	buf_deinit(&head);
	gguf_kv_deinit(&kv);
	texts_deinit(&t);
	return rc;
}

static int put_padding(struct gguf_job *g, size_t i, struct err *err)
{
	static const char zeros[GGUF_ALIGNMENT];
	const struct gguf_tensor *t = &g->tensors[i];

	return output_put(g->w, g->data_start + t->offset + t->bytes, zeros, gguf_padded(t->bytes) - t->bytes, err);
}

static int write_module(struct gguf_job *g, size_t i, size_t heads, struct err *err)
{
	const struct output_tensor *t = &g->w->plan->tensors[i];
	struct codec_values values;
	void *out = output_room_get(&g->w->out[0], (size_t)t->bytes);

	if (!out)
		return err_set_nomem(err, t->name);
	if (output_values_read(g->w, t->module, &values, err) != 0 ||
	    gguf_encode(&g->w->plan->model->modules[t->module], t->gguf, &values, heads, out, err) != 0 ||
	    output_put(g->w, g->data_start + g->tensors[i].offset, out, t->bytes, err) != 0)
		return -1;
	return output_advance(g->w, t->bytes, err);
}

/* Rows that are read one after another and written together: a whole tensor, or what fits a piece; where rows are reordered,
 * one head, as they stay within it. */
struct rows { const char *source; uint64_t rows, cols, step; size_t heads; };

static struct rows rows_of(const struct output_tensor *t, const struct gguf_place *place)
{
	struct rows r = { .source = t->source, .rows = t->shape[0], .cols = t->ndim == 2 ? t->shape[1] : 1,
			  .heads = place->heads };

	r.step = r.heads ? r.rows / r.heads : output_piece_rows(r.rows, r.cols * sizeof(float));
	return r;
}

static void reorder(const struct rows *r, uint64_t rows, const float *from, float *to)
{
	for (size_t i = 0; i < (size_t)rows; i++)
		memcpy(to + i * r->cols, from + gguf_row_source((size_t)rows, r->heads ? 1 : 0, i) * r->cols,
		       (size_t)r->cols * sizeof(float));
}

static int encode_rows(struct gguf_job *g, const struct output_tensor *t, const struct rows *r, uint64_t row,
		       uint64_t rows, float *values, void *out, struct err *err)
{
	const struct codec_module *m = t->module == SIZE_MAX ? NULL : &g->w->plan->model->modules[t->module];

	if (m)
		return output_table_encode(m, t->gguf, row, values, (size_t)rows, out, err);
	return gguf_encode_floats(t->name, t->gguf, values, (size_t)rows, (size_t)r->cols, out, err);
}

struct room { float *read, *values; void *out; };

static int write_rows(struct gguf_job *g, size_t i, const struct rows *r, const struct room *room, struct err *err)
{
	const struct output_tensor *t = &g->w->plan->tensors[i];
	const uint64_t row_bytes = t->bytes / r->rows;

	for (uint64_t row = 0; row < r->rows; row += r->step) {
		const uint64_t now = r->rows - row < r->step ? r->rows - row : r->step;
		const struct output_rows from = { r->source, row, now, r->cols };

		if (output_read_floats(g->w, from, room->read, err) != 0)
			return -1;
		reorder(r, now, room->read, room->values);
		if (encode_rows(g, t, r, row, now, room->values, room->out, err) != 0 ||
		    output_put(g->w, g->data_start + g->tensors[i].offset + row * row_bytes, room->out, now * row_bytes,
			       err) != 0 ||
		    output_advance(g->w, now * row_bytes, err) != 0)
			return -1;
	}
	return 0;
}

static int write_carried(struct gguf_job *g, size_t i, const struct gguf_place *place, struct err *err)
{
	const struct output_tensor *t = &g->w->plan->tensors[i];
	const struct rows r = rows_of(t, place);
	const size_t n = (size_t)(r.step * r.cols);
	struct room room = { mem_alloc(n, sizeof(float)), mem_alloc(n, sizeof(float)),
			     mem_alloc_aligned((size_t)(t->bytes / r.rows * r.step), 1) };
	int rc = room.read && room.values && room.out ? write_rows(g, i, &r, &room, err) : err_set_nomem(err, t->name);

	mem_free(room.read);
	mem_free(room.values);
	mem_free(room.out);
	return rc;
}

static int write_rope(struct gguf_job *g, size_t i, struct err *err)
{
	const struct output_tensor *t = &g->w->plan->tensors[i];
	float *factors = mem_alloc((size_t)t->shape[0], sizeof(*factors));
	int rc;

	if (!factors)
		return err_set_nomem(err, t->name);
	gguf_rope_factors(g->w->plan->model->config, factors);
	rc = output_put(g->w, g->data_start + g->tensors[i].offset, factors, t->bytes, err);
	mem_free(factors);
	return rc == 0 ? output_advance(g->w, t->bytes, err) : -1;
}

static int write_tensor(struct gguf_job *g, size_t i, struct err *err)
{
	const struct output_plan *p = g->w->plan;
	const struct output_tensor *t = &p->tensors[i];
	struct gguf_place place;

	if (t->source[0] == '\0')
		return write_rope(g, i, err);
	if (gguf_place_of(p->model->config, t->source, &place) != 0)
		return err_set(err, ERR_REFUSED, "gguf has no place for the tensor %s", t->source);
	if (in_block(p, t))
		return write_module(g, i, place.heads, err);
	return write_carried(g, i, &place, err);
}

int output_write_gguf(struct output_work *w, struct err *err)
{
	struct gguf_job g = { .w = w, .tensors = mem_alloc(w->plan->tensor_count, sizeof(*g.tensors)) };
	int rc;

	if (!g.tensors)
		return err_set_nomem(err, "the tensors of a gguf file");
	fill_tensors(&g);
	rc = put_head(&g, err);
	for (size_t i = 0; rc == 0 && i < w->plan->tensor_count; i++) {
		rc = write_tensor(&g, i, err);
		if (rc == 0)
			rc = put_padding(&g, i, err);
	}
	mem_free(g.tensors);
	return rc;
}
