/* output_tensors.c - one safetensors file: the head first, then each tensor at its place. */
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "formats/output_parts.h"

enum { PASSAGE_CODES = 1 << 18, PASSAGE_ROWS = 32 }; /* codes at once, in multiples of so many rows */

/* --- the head ------------------------------------------------------------------------------------ */

struct metadata { const char **keys, **values; char **owned; size_t count; };

static void metadata_deinit(struct metadata *m)
{
	for (size_t i = 0; m->owned && i < m->count; i++)
		mem_free(m->owned[i]);
	mem_free(m->keys);
	mem_free(m->values);
	mem_free(m->owned);
}

static void metadata_add(struct metadata *m, const char *key, const char *value, char *owned)
{
	m->keys[m->count] = key;
	m->values[m->count] = value;
	m->owned[m->count++] = owned;
}

/* With the column count, which the bit stream of a row does not tell. */
static char *settings_text(const struct codec_module *m)
{
	struct json *o = json_new_object();
	char *text = NULL;

	if (o && module_settings_to_json(&m->settings, o) == 0 && json_set_int(o, "cols", (int64_t)m->cols) == 0)
		text = json_print(o, false);
	json_free(o);
	return text;
}

static int metadata_make(struct metadata *m, const struct output_plan *p, const struct output_file *f, struct err *err)
{
	const struct codec *codec = p->format->codec;
	const size_t most = f->end - f->first + 1;

	m->keys = mem_alloc(most, sizeof(*m->keys));
	m->values = mem_alloc(most, sizeof(*m->values));
	m->owned = mem_alloc(most, sizeof(*m->owned));
	if (!m->keys || !m->values || !m->owned)
		return err_set_nomem(err, "the metadata of a file");
	metadata_add(m, "format", codec->meta_format, NULL);
	for (size_t i = f->first; codec->meta_modules && i < f->end; i++) {
		const size_t module = p->tensors[i].module;
		char *text;

		if (module == SIZE_MAX || p->tensors[i].part != 0)
			continue;
		text = settings_text(&p->model->modules[module]);
		if (!text)
			return err_set_nomem(err, "the metadata of a file");
		metadata_add(m, p->model->modules[module].name, text, text);
	}
	return 0;
}

/* st_layout() sorts; which tensor each is, its borrowed name tells. */
static void note_places(const struct output_work *w, const struct st_tensor *sorted, uint64_t data_start, uint64_t *at)
{
	const struct output_tensor *first = &w->plan->tensors[w->file->first];

	for (size_t i = 0; i < w->file->end - w->file->first; i++)
		at[(size_t)(sorted[i].name - first->name) / sizeof(*first)] = data_start + sorted[i].begin;
}

static int put_head(struct output_work *w, struct st_tensor *tensors, const struct metadata *meta, uint64_t *at,
		    struct err *err)
{
	const size_t count = w->file->end - w->file->first;
	struct buf head;
	int rc;

	for (size_t i = 0; i < count; i++) {
		struct output_tensor *t = &w->plan->tensors[w->file->first + i];

		tensors[i] = (struct st_tensor){ .name = t->name, .dtype = t->dtype, .ndim = t->ndim,
						 .shape = { t->shape[0], t->shape[1] } };
	}
	buf_init(&head, ST_HEADER_MAX);
	rc = st_layout(tensors, count, meta->keys, meta->values, meta->count, &head, err);
	if (rc == 0) {
		note_places(w, tensors, head.len, at);
		rc = output_put(w, 0, head.data, head.len, err);
	}
	buf_deinit(&head);
	return rc;
}

static int layout_make(struct output_work *w, uint64_t *at, struct err *err)
{
	struct st_tensor *tensors = mem_alloc(w->file->end - w->file->first, sizeof(*tensors));
	struct metadata meta = { 0 };
	int rc = tensors ? metadata_make(&meta, w->plan, w->file, err) : err_set_nomem(err, "the head of a file");

	if (rc == 0)
		rc = put_head(w, tensors, &meta, at, err);
	metadata_deinit(&meta);
	mem_free(tensors);
	return rc;
}

/* --- tensors ------------------------------------------------------------------------------------- */

/* A module of a block on its way into the file. */
struct passage {
	struct output_work *w;
	const struct output_tensor *tensors;    /* of the module, in the codec's order */
	const uint64_t *at;
	unsigned count;
	struct codec_module m;                  /* rows: as many as go at once */
	struct codec_values v;
	void *out[CODEC_TENSORS_MAX];
};

/* Whether each row of the module is one row of every tensor. */
static bool goes_by_rows(const struct passage *p)
{
	bool all = true;

	for (unsigned i = 0; i < p->count; i++)
		all &= p->tensors[i].ndim == 2 && p->tensors[i].shape[0] == p->m.rows;
	return all;
}

static int pass_rows(struct passage *p, uint64_t row, uint64_t rows, struct err *err)
{
	const size_t groups = p->v.cols / p->v.group;
	struct codec_values part = p->v;

	part.rows = p->m.rows = (size_t)rows;
	part.codes += row * part.cols;
	part.scales += row * groups;
	part.zeros += row * groups;
	if (p->w->plan->format->codec->encode(&p->m, &part, p->out, err) != 0)
		return -1;
	for (unsigned i = 0; i < p->count; i++) {
		const uint64_t row_bytes = p->tensors[i].bytes / p->v.rows;

		if (output_put(p->w, p->at[i] + row * row_bytes, p->out[i], rows * row_bytes, err) != 0)
			return -1;
	}
	if (p->w->plan->format->codec->tables == CODEC_TABLES_ROUNDED)
		p->w->stats->rounding = output_rounding(&part, p->tensors[0].dtype, p->out[0], p->w->stats->rounding);
	return 0;
}

/* Room for `rows` rows of each tensor, or for all of it. */
static int passage_room(struct passage *p, uint64_t rows, struct err *err)
{
	for (unsigned i = 0; i < p->count; i++) {
		const uint64_t all = p->tensors[i].bytes, bytes = rows < p->v.rows ? all / p->v.rows * rows : all;

		p->out[i] = output_room_get(&p->w->out[i], (size_t)bytes);
		if (!p->out[i])
			return err_set_nomem(err, p->m.name);
	}
	return 0;
}

static int pass_whole(struct passage *p, struct err *err)
{
	if (passage_room(p, p->v.rows, err) != 0 || p->w->plan->format->codec->encode(&p->m, &p->v, p->out, err) != 0)
		return -1;
	for (unsigned i = 0; i < p->count; i++)
		if (output_put(p->w, p->at[i], p->out[i], p->tensors[i].bytes, err) != 0)
			return -1;
	return 0;
}

/* The sentence about a value that does not fit counts rows from the piece; that about the whole module is right. */
static void explain(struct passage *p, struct err *err)
{
	struct err right = ERR_INIT;

	p->m.rows = p->v.rows;
	if (err->code == ERR_NUMERIC && passage_room(p, p->v.rows, &right) == 0 &&
	    p->w->plan->format->codec->encode(&p->m, &p->v, p->out, &right) != 0)
		*err = right;
}

/* In pieces that stay in a cache from encoding to writing. */
static int pass_pieces(struct passage *p, struct err *err)
{
	const uint64_t fit = PASSAGE_CODES / p->v.cols / PASSAGE_ROWS * PASSAGE_ROWS;
	const uint64_t rows = p->v.rows, step = fit > 0 ? fit : PASSAGE_ROWS;
	struct err why = ERR_INIT;

	if (passage_room(p, step < rows ? step : rows, err) != 0)
		return -1;
	for (uint64_t row = 0; row < rows; row += step)
		if (pass_rows(p, row, rows - row < step ? rows - row : step, &why) != 0) {
			explain(p, &why);
			*err = why;
			return -1;
		}
	return 0;
}

/* All tensors of a module of a block. */
static int write_module(struct output_work *w, const struct output_tensor *first, const uint64_t *at, struct err *err)
{
	struct passage p = { .w = w, .tensors = first, .at = at, .m = w->plan->model->modules[first->module] };
	struct codec_tensor tensors[CODEC_TENSORS_MAX];
	uint64_t bytes = 0;

	p.count = w->plan->format->codec->tensors(&p.m, tensors);
	if (output_values_read(w, first->module, &p.v, err) != 0 ||
	    (goes_by_rows(&p) ? pass_pieces(&p, err) : pass_whole(&p, err)) != 0)
		return -1;
	for (unsigned i = 0; i < p.count; i++)
		bytes += first[i].bytes;
	return output_advance(w, bytes, err);
}

/* Buffers for a piece of a carried tensor; `values` only where the dtype changes. */
struct carry { const struct output_tensor *t; uint64_t cols; enum st_dtype from; void *piece; float *values; };

static int carry_piece(struct output_work *w, const struct carry *c, uint64_t row, uint64_t rows, struct err *err)
{
	const struct output_rows from = { c->t->source, row, rows, c->cols };

	if (!c->values)
		return w->source->rows(w->source->ctx, c->t->source, row, rows, c->piece, err);
	if (output_read_floats(w, from, c->values, err) != 0)
		return -1;
	return output_round(c->t->name, c->values, (size_t)(rows * c->cols), c->t->dtype, c->piece, err);
}

static int carry_all(struct output_work *w, const struct carry *c, uint64_t at, uint64_t rows, struct err *err)
{
	const uint64_t all = c->t->shape[0], row_bytes = all ? c->t->bytes / all : 0;
	int rc = 0;

	for (uint64_t row = 0; rc == 0 && row < all; row += rows) {
		const uint64_t now = all - row < rows ? all - row : rows;

		rc = carry_piece(w, c, row, now, err);
		if (rc == 0)
			rc = output_put(w, at + row * row_bytes, c->piece, now * row_bytes, err);
		if (rc == 0)
			rc = output_advance(w, now * row_bytes, err);
	}
	return rc;
}

static int write_carried(struct output_work *w, const struct output_tensor *t, uint64_t at, struct err *err)
{
	struct carry c = { .t = t, .cols = t->ndim == 2 ? t->shape[1] : 1 };
	const uint64_t rows = output_piece_rows(t->shape[0], c.cols * sizeof(float));
	int rc;

	if (w->plan->model->dtype(w->plan->model->ctx, t->source, &c.from) != 0)
		return err_set(err, ERR_NOT_FOUND, "the model has no tensor %s", t->source);
	c.piece = mem_alloc((size_t)(rows * c.cols), st_dtype_bits(t->dtype) / 8);
	c.values = c.from == t->dtype ? NULL : mem_alloc((size_t)(rows * c.cols), sizeof(float));
	if (!c.piece || (c.from != t->dtype && !c.values))
		rc = err_set_nomem(err, t->name);
	else
		rc = carry_all(w, &c, at, rows, err);
	mem_free(c.piece);
	mem_free(c.values);
	return rc;
}

static int write_unit(struct output_work *w, const struct output_tensor *first, const uint64_t *at, struct err *err)
{
	if (first->module == SIZE_MAX)
		return write_carried(w, first, at[0], err);
	if (output_is_table(&w->plan->model->modules[first->module]))
		return output_table_write(w, first, at, err);
	return write_module(w, first, at, err);
}

int output_write_tensors(struct output_work *w, struct err *err)
{
	const size_t count = w->file->end - w->file->first;
	const struct output_tensor *tensors = &w->plan->tensors[w->file->first];
	uint64_t *at = mem_alloc(count, sizeof(*at));
	int rc = at ? layout_make(w, at, err) : err_set_nomem(err, "the head of a file");

	for (size_t i = 0; rc == 0 && i < count; i++)
		if (tensors[i].module == SIZE_MAX || tensors[i].part == 0)
			rc = write_unit(w, &tensors[i], &at[i], err);
	mem_free(at);
	return rc;
}
