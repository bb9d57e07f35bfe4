/* stored_scan.c - every number of a stored checkpoint looked at once: what is wrong, and what only the values say. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "formats/embedding.h"
#include "formats/stored_parts.h"

struct scan {
	struct stored_folder *f;
	struct findings faults;
	int (*progress)(void *ctx, double share, struct err *err);
	void *ctx;
	size_t linear;          /* the next one */
	double done, all;       /* parameters */
};

static int step(struct scan *s, uint64_t weights)
{
	struct err reason = ERR_INIT;

	s->done += (double)weights;
	if (!s->progress || s->progress(s->ctx, s->all > 0 ? s->done / s->all : 1, &reason) == 0)
		return s->faults.failed ? -1 : 0;
	s->faults.failed = true;
	return err_set(s->faults.err, reason.code, "%s", reason.text);
}

static void note(struct scan *s, const struct err *reason)
{
	if (reason->code != ERR_CANCELLED) {
		findings_add_err(&s->faults, reason);
		return;
	}
	s->faults.failed = true;
	err_set(s->faults.err, reason->code, "%s", reason->text);
}

/* --- quantized modules --------------------------------------------------------------------------- */

static void check_scales(struct scan *s, const char *name, const struct stored_facts *facts)
{
	/* Those two store negative scales too, and none for groups of equal weights. */
	const bool any = strcmp(s->f->format, "mlx") == 0 || strcmp(s->f->format, "gguf") == 0;

	if (!any && !facts->positive)
		findings_add(&s->faults, ERR_CORRUPT, "%s has scales that are not positive", name);
}

static void check_claims(struct scan *s, const struct codec_module *m, const struct stored_facts *facts)
{
	const unsigned parts = codec_zero_parts(m);

	if (m->settings.symmetric && !facts->symmetric)
		findings_add(&s->faults, ERR_CORRUPT, "%s is symmetric as config.json says, but its zero-points are not the middle of "
			     "the codes", m->name);
	else if (parts > 0 && (facts->zero_parts == 0 || parts % facts->zero_parts != 0))
		findings_add(&s->faults, ERR_CORRUPT, "%s has zero-points in steps of 1/%u as config.json says, but its values are others",
			     m->name, parts);
}

static void take_facts(struct stored_folder *f, size_t i, const struct stored_module *m, const struct stored_facts *facts)
{
	struct codec_module *to = &f->modules[i];

	if (!facts->ordered) {
		f->linear[i].why_plain = "its columns are not grouped in order (activation order)";
		to->settings.skip = true;
		return;
	}
	to->settings.bits = f->gguf_file && !m->settings.symmetric ? facts->bits : m->settings.bits;
	to->settings.group_size = facts->groups == 1 ? -1 : (int64_t)(m->cols / facts->groups);
	to->settings.symmetric = facts->symmetric;
	to->settings.zero_point = facts->zero_parts == 1 ? ZERO_INTEGER : ZERO_FLOAT;
	to->settings.zero_parts = facts->zero_parts > 1 ? facts->zero_parts : 0;
	to->zero_parts = facts->zero_parts;
}

static void scan_module(struct scan *s, size_t i)
{
	struct stored_folder *f = s->f;
	const bool packed = strcmp(f->format, "packed") == 0;
	const bool joins = strcmp(f->format, "mlx") == 0 || f->gguf_file;
	struct stored_facts facts;
	struct stored_module m;
	struct err reason = ERR_INIT;

	if (stored_decode(f, i, &m, &facts, &reason) != 0) {
		note(s, &reason);
		return;
	}
	stored_look(&m, joins, &facts);
	check_scales(s, f->modules[i].name, &facts);
	if (packed)
		check_claims(s, &f->modules[i], &facts);
	else
		take_facts(f, i, &m, &facts);
	stored_module_deinit(&m);
}

/* --- plain tensors ------------------------------------------------------------------------------- */

static void not_finite(struct scan *s, const char *name, uint64_t index, uint64_t cols)
{
	if (cols == 1)
		findings_add(&s->faults, ERR_CORRUPT, "element %llu of tensor \"%s\" is not finite", (unsigned long long)index, name);
	else
		findings_add(&s->faults, ERR_CORRUPT, "element [%llu, %llu] of tensor \"%s\" is not finite",
			     (unsigned long long)(index / cols), (unsigned long long)(index % cols), name);
}

static uint64_t rows_at_once(uint64_t cols)
{
	const uint64_t rows = STORED_PIECE_BYTES / sizeof(float) / (cols ? cols : 1);

	return rows ? rows : 1;
}

/* 0; 1 when a number is not finite, which is noted; -1 when it cannot be read. */
static int scan_rows(struct scan *s, const char *name, const struct stored_shape *shape, float *values, struct err *reason)
{
	const uint64_t piece = rows_at_once(shape->cols);

	for (uint64_t row = 0; row < shape->rows; row += piece) {
		const uint64_t now = shape->rows - row < piece ? shape->rows - row : piece;

		if (stored_rows_f32(s->f, name, row, now, values, reason) != 0)
			return -1;
		for (uint64_t i = 0; i < now * shape->cols; i++)
			if (!isfinite(values[i])) {
				not_finite(s, name, row * shape->cols + i, shape->cols);
				return 1;
			}
	}
	return 0;
}

static void scan_tensor(struct scan *s, const struct model_tensor *want)
{
	const unsigned ndim = want->dim[1] ? 2 : 1;
	const uint64_t cols = ndim == 2 ? want->dim[1] : 1;
	struct err reason = ERR_INIT;
	struct stored_shape shape;
	float *values;

	if (s->f->ops->find(s->f, want->name, &shape) != 0) {
		findings_add(&s->faults, ERR_CORRUPT, "tensor \"%s\" is missing, or is not one of F16, BF16 or F32", want->name);
		return;
	}
	if (shape.ndim != ndim || shape.rows != want->dim[0] || shape.cols != cols) {
		findings_add(&s->faults, ERR_CORRUPT, "tensor \"%s\" has %u dimensions, %llu x %llu; config.json asks for %u, %zu x %llu",
			     want->name, shape.ndim, (unsigned long long)shape.rows, (unsigned long long)shape.cols, ndim, want->dim[0],
			     (unsigned long long)cols);
		return;
	}
	values = mem_alloc((size_t)(rows_at_once(cols) * cols), sizeof(*values));
	if (!values)
		err_set_nomem(&reason, want->name);
	if (!values || scan_rows(s, want->name, &shape, values, &reason) < 0)
		note(s, &reason);
	mem_free(values);
}

/* --- tables -------------------------------------------------------------------------------------- */

/* The bits of formats/embedding.h that a table may be of, by how it is stored; else 16. */
static int table_guess(const struct stored_folder *f, const struct stored_module *m, const char *type)
{
	if (f->gguf_file && type)
		return strcmp(type, "Q8_0") == 0 ? 8 : strcmp(type, "Q6_K") == 0 ? 6 : strcmp(type, "Q4_1") == 0 ? 4 : 16;
	if (m->cols % 32 != 0 || m->groups != m->cols / 32)
		return 16;
	return m->settings.bits == 8 ? 8 : m->settings.bits == 4 ? 4 : 16;
}

/* Whether rounding leaves every row as it is. `values` and `again` have room for a piece. */
static int is_rounded(struct scan *s, const char *name, int bits, float *values, float *again, bool *same, struct err *err)
{
	char tensor[MODEL_NAME_MAX];
	const uint64_t all = s->f->config.vocab, cols = s->f->config.hidden, piece = rows_at_once(cols);
	struct err ignored = ERR_INIT;

	*same = bits != 16;
	snprintf(tensor, sizeof(tensor), "%s.weight", name);
	for (uint64_t row = 0; row < all; row += piece) {
		const uint64_t now = all - row < piece ? all - row : piece;

		if (stored_rows_f32(s->f, tensor, row, now, values, err) != 0)
			return -1;
		if (!*same)
			continue;
		memcpy(again, values, (size_t)(now * cols) * sizeof(*values));
		*same = embedding_round(bits, name, row, again, (size_t)now, (size_t)cols, &ignored) == 0;
		for (uint64_t i = 0; *same && i < now * cols; i++)
			*same = again[i] == values[i];
	}
	return 0;
}

static int scan_table(struct scan *s, int t, const char *name, struct err *err)
{
	struct stored_folder *f = s->f;
	const size_t room = (size_t)(rows_at_once(f->config.hidden) * f->config.hidden);
	float *values = mem_alloc(room, sizeof(*values)), *again = mem_alloc(room, sizeof(*again));
	struct stored_module first;
	bool whole, same = false;
	int bits = 16, rc = values && again ? 0 : err_set_nomem(err, name);

	if (rc == 0)
		rc = f->ops->module(f, name, 0, 1, f->config.vocab, f->config.hidden, &first, &whole, err);
	if (rc == 0) {
		bits = table_guess(f, &first, f->tables[t].type);
		stored_module_deinit(&first);
		rc = is_rounded(s, name, bits, values, again, &same, err);
	}
	if (rc == 1)
		rc = err_set(err, ERR_CORRUPT, "%s is quantized as config.json says, but its tensors are missing", name);
	if (rc == 0 && same) {
		f->table_bits[t] = bits;
		f->tables[t].why_plain = NULL;
	}
	stored_forget(f);
	mem_free(values);
	mem_free(again);
	return rc;
}

/* --- the whole ----------------------------------------------------------------------------------- */

static bool is_weight(const char *name)
{
	const size_t len = strlen(name);

	return len > 7 && strcmp(name + len - 7, ".weight") == 0;
}

/* Tensors come in the order of the modules: a matrix of a block is the next linear. */
static int visit(void *ctx, const struct model_tensor *t)
{
	struct scan *s = ctx;
	const int table = strcmp(t->name, MODEL_EMBED_NAME) == 0 ? 0 : strcmp(t->name, MODEL_HEAD_NAME) == 0 ? 1 : -1;
	struct err reason = ERR_INIT;

	if (t->layer >= 0 && t->dim[1] && is_weight(t->name)) {
		const size_t i = s->linear++;

		if (s->f->linear[i].quantized)
			scan_module(s, i);
		else
			scan_tensor(s, t);
	} else if (table >= 0 && s->f->tables[table].quantized) {
		if (scan_table(s, table, table == 0 ? "model.embed_tokens" : "lm_head", &reason) != 0)
			note(s, &reason);
	} else {
		scan_tensor(s, t);
	}
	return step(s, (uint64_t)t->dim[0] * (t->dim[1] ? t->dim[1] : 1));
}

int stored_folder_scan(struct stored_folder *f, int (*progress)(void *ctx, double share, struct err *err), void *ctx,
		       struct problems *faults, struct err *err)
{
	struct scan s = {
		.f = f, .faults = { .list = faults, .err = err }, .progress = progress, .ctx = ctx,
		.all = (double)stored_folder_parameters(f),
	};

	if (model_each_tensor(&f->config, visit, &s) == 0)
		f->ops->left_over(f, &s.faults);
	stored_add_tables(f);
	f->scanned = findings_result(&s.faults) == 0;
	return f->scanned ? 0 : -1;
}
