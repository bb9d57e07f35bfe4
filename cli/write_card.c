/* write_card.c - README.md of a converted checkpoint: what it is, how its modules are stored, how large it is. */
#include "cli/settings.h"
#include "cli/stored.h"
#include "cli/text.h"
#include "cli/write.h"
#include "common/result_card.h"
#include "common/version.h"

static int put_row(void *ctx, const struct setting_row *row)
{
	buf_printf(ctx, "| %s | %s | %llu x %llu | %s |\n", row->layers, row->module, (unsigned long long)row->rows,
		   (unsigned long long)row->cols, row->setting);
	return 0;
}

/* Nothing when the report is not of these weights. */
static int put_cost(struct stored_folder *f, struct buf *out, struct err *err)
{
	struct json *report;

	if (stored_report(f, &report, err) != 0)
		return -1;
	if (json_size(json_get(report, "perplexity")) > 0 && stored_reported(f, report)) {
		buf_puts(out, "## What it cost\n\n");
		card_put_perplexity(out, report);
	}
	json_free(report);
	return 0;
}

int write_card(struct stored_folder *f, const struct output_format *format, const char *name, const struct written *w,
	       struct buf *out, struct err *err)
{
	char bytes[TEXT_SHORT];

	buf_puts(out, "---\ntags:\n- quarry\n- quantized\n---\n\n# ");
	card_put_plain(out, name);
	buf_printf(out, ", %s\n\nConverted by Quarry %s from a checkpoint in format `%s`. Format `%s`: %s.\n\n", format->name,
		   QUARRY_VERSION, f->format, format->name, format->about);
	buf_printf(out, "Weights: %s in this folder", text_bytes((double)w->bytes, bytes));
	if (w->bits_per_weight > 0)
		buf_printf(out, "; %.3f bits per weight in the quantized modules, scales and zero-points included",
			   w->bits_per_weight);
	if (w->rounding > 0)
		buf_printf(out, "; the largest relative error of rounding a weight is %.3g", w->rounding);
	buf_puts(out, ".\n\n");
	if (put_cost(f, out, err) != 0)
		return -1;
	buf_puts(out, "## Modules, as they came\n\n| layers | module | weights | stored |\n| --- | --- | --- | --- |\n");
	if (setting_rows(f, put_row, out, err) != 0)
		return -1;
	return buf_failed(out) ? err_set_nomem(err, "README.md") : 0;
}
