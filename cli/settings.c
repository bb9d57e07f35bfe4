#include "cli/settings.h"

#include <stdio.h>
#include <string.h>

#include "common/alloc.h"

static const char *zero_text(const struct module_settings *s, char out[SETTING_MAX / 4])
{
	if (s->symmetric)
		return "symmetric";
	if (s->zero_point == ZERO_INTEGER)
		return "integer zero-points";
	if (s->zero_parts == 0)
		return "any zero-points";
	snprintf(out, SETTING_MAX / 4, "zero-points in steps of 1/%u", s->zero_parts);
	return out;
}

static const char *plain_text(struct stored_folder *f, const char *tensor)
{
	struct output_model model;
	enum st_dtype dtype;

	stored_folder_model(f, &model);
	return model.dtype(model.ctx, tensor, &dtype) == 0 ? st_dtype_name(dtype) : "missing";
}

static void quantized_text(const struct module_settings *s, const char *type, char out[SETTING_MAX])
{
	char group[48] = "one group per output channel", zero[SETTING_MAX / 4];

	if (s->group_size != -1)
		snprintf(group, sizeof(group), "groups of %lld", (long long)s->group_size);
	snprintf(out, SETTING_MAX, "%s%s%d bit%s, %s, %s", type ? type : "", type ? ": " : "", s->bits, s->bits == 1 ? "" : "s",
		 group, zero_text(s, zero));
}

void setting_text(struct stored_folder *f, size_t i, char out[SETTING_MAX])
{
	const struct stored_linear *l = &f->linear[i];
	char tensor[MODEL_NAME_MAX + 8];

	if (l->quantized && l->why_plain) {
		snprintf(out, SETTING_MAX, "quantized; %s", l->why_plain);
	} else if (l->quantized) {
		quantized_text(&f->modules[i].settings, l->type, out);
	} else {
		snprintf(tensor, sizeof(tensor), "%s.weight", f->modules[i].name);
		snprintf(out, SETTING_MAX, "%s", plain_text(f, tensor));
	}
}

static double bits_of(const struct stored_linear *l, uint64_t rows, uint64_t cols)
{
	const double weights = (double)rows * (double)cols;

	return weights > 0 ? 8.0 * (double)l->bytes / weights : 0;
}

/* --- folding ------------------------------------------------------------------------------------- */

static bool alike(struct stored_folder *f, size_t a, size_t b)
{
	char x[SETTING_MAX], y[SETTING_MAX];

	setting_text(f, a, x);
	setting_text(f, b, y);
	return f->linear[a].bytes == f->linear[b].bytes && strcmp(x, y) == 0;
}

/* Appends "3" or ", 3" or "-4"; what does not fit ends in "...". */
static void put_range(char out[LAYERS_MAX_TEXT], size_t first, size_t last)
{
	const size_t used = strlen(out);

	if (used + 48 > LAYERS_MAX_TEXT) {
		if (used < 3 || strcmp(out + used - 3, "...") != 0)
			snprintf(out + used, LAYERS_MAX_TEXT - used, ", ...");
	} else if (first == last) {
		snprintf(out + used, LAYERS_MAX_TEXT - used, "%s%zu", used ? ", " : "", first);
	} else {
		snprintf(out + used, LAYERS_MAX_TEXT - used, "%s%zu-%zu", used ? ", " : "", first, last);
	}
}

/* The layers that are alike with `first` of one module, marked in `told`. */
static void fill_row(struct stored_folder *f, size_t first, bool *told, struct setting_row *row)
{
	const struct codec_module *m = &f->modules[first];
	size_t begin = 0, end = 0; /* of the run so far, end exclusive */

	*row = (struct setting_row){ .module = model_linear(&f->config, m->linear).suffix, .rows = m->rows, .cols = m->cols,
				     .bits_per_weight = bits_of(&f->linear[first], m->rows, m->cols) };
	setting_text(f, first, row->setting);
	for (size_t i = first; i < f->linears; i += LIN_COUNT) {
		const size_t layer = i / LIN_COUNT;

		if (told[i] || !alike(f, first, i))
			continue;
		told[i] = true;
		if (end == layer && end > begin) {
			end++;
			continue;
		}
		if (end > begin)
			put_range(row->layers, begin, end - 1);
		begin = layer;
		end = layer + 1;
	}
	put_range(row->layers, begin, end - 1);
}

int setting_rows(struct stored_folder *f, int (*each)(void *ctx, const struct setting_row *row), void *ctx, struct err *err)
{
	bool *told = mem_alloc(f->linears, sizeof(*told));
	int rc = 0;

	if (!told)
		return err_set_nomem(err, "the table of settings");
	for (size_t which = 0; rc == 0 && which < LIN_COUNT; which++)
		for (size_t i = which; rc == 0 && i < f->linears; i += LIN_COUNT) {
			struct setting_row row;

			if (told[i])
				continue;
			fill_row(f, i, told, &row);
			rc = each(ctx, &row);
		}
	mem_free(told);
	return rc;
}

bool setting_table(struct stored_folder *f, int table, struct setting_row *out)
{
	static const char *const names[2][2] = { { "embed_tokens", MODEL_EMBED_NAME }, { "lm_head", MODEL_HEAD_NAME } };
	const struct stored_linear *l = &f->tables[table];

	*out = (struct setting_row){ .module = names[table][0], .rows = f->config.vocab, .cols = f->config.hidden,
				     .bits_per_weight = bits_of(l, f->config.vocab, f->config.hidden) };
	snprintf(out->layers, sizeof(out->layers), "-");
	if (table == 1 && f->config.tied_embeddings)
		return false;
	if (!l->quantized && f->table_bits[table] != 16)
		snprintf(out->setting, SETTING_MAX, "%s, to be written with %d bits", plain_text(f, names[table][1]),
			 f->table_bits[table]);
	else if (!l->quantized)
		snprintf(out->setting, SETTING_MAX, "%s", plain_text(f, names[table][1]));
	else if (l->why_plain)
		snprintf(out->setting, SETTING_MAX, "quantized; %s", l->why_plain);
	else
		snprintf(out->setting, SETTING_MAX, "%s%s%d bits", l->type ? l->type : "", l->type ? ": " : "", f->table_bits[table]);
	return true;
}
