/* write_card.c - README.md of a converted checkpoint: what it is, how its modules are stored, how large it is. */
#include <string.h>

#include "cli/settings.h"
#include "cli/text.h"
#include "cli/write.h"
#include "common/version.h"

/* Names come from users: no line breaks, no characters that would break the page. */
static void put_plain(struct buf *out, const char *text)
{
	for (; *text; text++) {
		const unsigned char c = (unsigned char)*text;

		if (c < 0x20 || strchr("|<>`[]*#\\", c))
			buf_puts(out, c < 0x20 ? " " : "_");
		else
			buf_append(out, text, 1);
	}
}

static int put_row(void *ctx, const struct setting_row *row)
{
	buf_printf(ctx, "| %s | %s | %llu x %llu | %s |\n", row->layers, row->module, (unsigned long long)row->rows,
		   (unsigned long long)row->cols, row->setting);
	return 0;
}

int write_card(struct stored_folder *f, const struct output_format *format, const char *name, const struct written *w,
	       struct buf *out, struct err *err)
{
	char bytes[TEXT_SHORT];

	buf_puts(out, "---\ntags:\n- quarry\n- quantized\n---\n\n# ");
	put_plain(out, name);
	buf_printf(out, ", %s\n\nConverted by Quarry %s from a checkpoint in format `%s`. Format `%s`: %s.\n\n", format->name,
		   QUARRY_VERSION, f->format, format->name, format->about);
	buf_printf(out, "Weights: %s in this folder", text_bytes((double)w->bytes, bytes));
	if (w->bits_per_weight > 0)
		buf_printf(out, "; %.3f bits per weight in the quantized modules, scales and zero-points included",
			   w->bits_per_weight);
	if (w->rounding > 0)
		buf_printf(out, "; the largest relative error of rounding a weight is %.3g", w->rounding);
	buf_puts(out, ".\n\n## Modules, as they came\n\n| layers | module | weights | stored |\n| --- | --- | --- | --- |\n");
	if (setting_rows(f, put_row, out, err) != 0)
		return -1;
	return buf_failed(out) ? err_set_nomem(err, "README.md") : 0;
}
