/* output_tables.c - embeddings and heads in fewer than 16 bits: the one place where checkpoints meet formats/embedding.h.
 *
 * A table may have a billion weights: it is made piece by piece of the source's rows. Every tensor of a table
 * has the table's rows as its first dimension, so a piece's rows lie together in each of them.
 */
#include <string.h>

#include "common/alloc.h"
#include "formats/embedding.h"
#include "formats/gguf_blocks.h"
#include "formats/output_parts.h"

static const char weight[] = ".weight";

enum codec_tables output_tables(const struct output_format *f)
{
	return f->codec ? f->codec->tables : CODEC_TABLES_CODED;
}

size_t output_table_of(const struct output_model *m, const char *tensor)
{
	for (size_t i = m->count; i > 0 && output_is_table(&m->modules[i - 1]); i--) {
		const char *name = m->modules[i - 1].name;
		const size_t len = strlen(name);

		if (strncmp(name, tensor, len) == 0 && strcmp(tensor + len, weight) == 0)
			return i - 1;
	}
	return SIZE_MAX;
}

static bool is_embedding(const struct codec_module *m)
{
	const size_t len = strlen(m->name);

	return len + strlen(weight) == strlen(MODEL_EMBED_NAME) && strncmp(m->name, MODEL_EMBED_NAME, len) == 0;
}

int output_table_check(const struct output_format *f, const struct codec_module *m, struct problems *problems)
{
	const char *option = is_embedding(m) ? "embeddings" : "lm_head";

	if (embedding_check(m->settings.bits, m->cols, option, problems) != 0)
		return -1;
	return embedding_check_format(f->name, m->settings.bits, option, problems);
}

struct output_table_bits output_table_bits(const struct output_model *m)
{
	struct output_table_bits b = { 16, 16 };

	for (size_t i = m->count; i > 0 && output_is_table(&m->modules[i - 1]); i--)
		if (is_embedding(&m->modules[i - 1]))
			b.embeddings = m->modules[i - 1].settings.bits;
		else
			b.head = m->modules[i - 1].settings.bits;
	if (m->config->tied_embeddings)
		b.head = b.embeddings;
	return b;
}

size_t output_codec_count(const struct output_format *f, const struct output_model *m)
{
	size_t count = m->count;

	while (output_tables(f) != CODEC_TABLES_CODED && count > 0 && output_is_table(&m->modules[count - 1]))
		count--;
	return count;
}

/* --- values -------------------------------------------------------------------------------------- */

struct values { struct codec_values v; uint8_t *codes; float *scales, *zeros; };

/* A piece as a module of its own. */
struct piece { struct codec_module m; struct values values; };

static void values_deinit(struct values *v)
{
	mem_free(v->codes);
	mem_free(v->scales);
	mem_free(v->zeros);
	*v = (struct values){ 0 };
}

static int piece_quantize(struct piece *p, uint64_t row, const float *values, struct err *err)
{
	const size_t cols = (size_t)p->m.cols, groups = cols / codec_group(&p->m);

	for (size_t r = 0; r < (size_t)p->m.rows; r++)
		if (embedding_quantize(p->m.settings.bits, p->m.name, row + r, values + r * cols, cols,
				       p->values.codes + r * cols, p->values.scales + r * groups,
				       p->values.zeros + r * groups, err) != 0)
			return -1;
	p->values.v.rows = (size_t)p->m.rows;
	return 0;
}

static int piece_init(struct piece *p, const struct codec_module *m, uint64_t rows, struct err *err)
{
	const size_t cols = (size_t)m->cols, group = codec_group(m), groups = cols / group;
	struct values *v = &p->values;

	p->m = *m;
	p->m.rows = rows;
	*v = (struct values){ .codes = mem_alloc((size_t)rows * cols, 1),
				     .scales = mem_alloc((size_t)rows * groups, sizeof(float)),
				     .zeros = mem_alloc((size_t)rows * groups, sizeof(float)) };
	v->v = (struct codec_values){ (size_t)rows, cols, group, m->settings.bits, v->codes, v->scales, v->zeros };
	if (v->codes && v->scales && v->zeros)
		return 0;
	values_deinit(v);
	return err_set_nomem(err, m->name);
}

enum gguf_type output_table_type(const struct codec_module *m)
{
	return m->settings.bits == 8 ? GGUF_Q8_0 : m->settings.bits == 6 ? GGUF_Q6_K : GGUF_Q4_1;
}

int output_table_encode(const struct codec_module *m, enum gguf_type type, uint64_t row, float *values, size_t rows,
			void *out, struct err *err)
{
	struct piece p;
	int rc;

	if (type != GGUF_Q4_1)
		return gguf_encode_floats(m->name, type, values, rows, (size_t)m->cols, out, err);
	if (piece_init(&p, m, rows, err) != 0)
		return -1;
	rc = piece_quantize(&p, row, values, err);
	if (rc == 0)
		rc = gguf_encode(&p.m, type, &p.values.v, 0, out, err);
	values_deinit(&p.values);
	return rc;
}

/* --- safetensors --------------------------------------------------------------------------------- */

struct table {
	struct output_work *w;
	const struct codec *codec;
	const struct codec_module *m;
	const struct output_tensor *tensors;    /* of the table, in the codec's order */
	const uint64_t *at;
	unsigned count;
	struct piece piece;
	float *values;
	void *out[CODEC_TENSORS_MAX];
};

static uint64_t row_bytes(const struct output_tensor *t)
{
	return t->bytes / t->shape[0];
}

static int encode_piece(struct table *t, uint64_t row, uint64_t rows, struct err *err)
{
	if (t->codec->tables == CODEC_TABLES_ROUNDED) {
		if (embedding_round(t->m->settings.bits, t->m->name, row, t->values, (size_t)rows, (size_t)t->m->cols,
				    err) != 0)
			return -1;
		return output_round(t->tensors[0].name, t->values, (size_t)(rows * t->m->cols), t->tensors[0].dtype,
				    t->out[0], err);
	}
	t->piece.m.rows = rows;
	if (piece_quantize(&t->piece, row, t->values, err) != 0)
		return -1;
	return t->codec->encode(&t->piece.m, &t->piece.values.v, t->out, err);
}

static int write_piece(struct table *t, uint64_t row, uint64_t rows, struct err *err)
{
	const struct output_rows from = { t->tensors[0].source, row, rows, t->m->cols };
	uint64_t bytes = 0;

	if (output_read_floats(t->w, from, t->values, err) != 0 || encode_piece(t, row, rows, err) != 0)
		return -1;
	for (unsigned i = 0; i < t->count; i++) {
		const uint64_t one = row_bytes(&t->tensors[i]);

		if (output_put(t->w, t->at[i] + row * one, t->out[i], rows * one, err) != 0)
			return -1;
		bytes += rows * one;
	}
	return output_advance(t->w, bytes, err);
}

static int table_room(struct table *t, uint64_t rows, struct err *err)
{
	bool room = (t->values = mem_alloc((size_t)(rows * t->m->cols), sizeof(float))) != NULL;

	for (unsigned i = 0; i < t->count; i++)
		room &= (t->out[i] = mem_alloc((size_t)rows, (size_t)row_bytes(&t->tensors[i]))) != NULL;
	if (!room)
		return err_set_nomem(err, t->m->name);
	return t->codec->tables == CODEC_TABLES_CODED ? piece_init(&t->piece, t->m, rows, err) : 0;
}

int output_table_write(struct output_work *w, const struct output_tensor *first, const uint64_t *at, struct err *err)
{
	const struct codec_module *m = &w->plan->model->modules[first->module];
	struct table t = { .w = w, .codec = w->plan->format->codec, .m = m, .tensors = first, .at = at };
	const uint64_t rows = output_piece_rows(m->rows, m->cols * sizeof(float));
	int rc;

	while (first + t.count < w->plan->tensors + w->file->end && first[t.count].module == first->module)
		t.count++;
	rc = table_room(&t, rows, err);
	for (uint64_t row = 0; rc == 0 && row < m->rows; row += rows)
		rc = write_piece(&t, row, m->rows - row < rows ? m->rows - row : rows, err);
	for (unsigned i = 0; i < t.count; i++)
		mem_free(t.out[i]);
	mem_free(t.values);
	values_deinit(&t.piece.values);
	return rc;
}
