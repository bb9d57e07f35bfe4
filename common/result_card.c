/* result_card.c - lines of a README.md that a job and a conversion write alike. */
#include "common/result_card.h"

#include <string.h>

void card_put_plain(struct buf *out, const char *text)
{
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c < 0x20 || strchr("|<>`[]*#\\", c))
			buf_puts(out, c < 0x20 ? " " : "_");
		else
			buf_append(out, text, 1);
	}
}

/* A cell of the table: the number, or a dash when it is not known. */
static void put_cell(struct buf *out, const struct json *value, int digits)
{
	if (json_type(value) == JSON_NUMBER)
		buf_printf(out, " | %.*f", digits, json_number(value, 0));
	else
		buf_puts(out, " | -");
}

void card_put_perplexity(struct buf *out, const struct json *report)
{
	const struct json *list = json_get(report, "perplexity");

	if (json_size(list) == 0)
		return;
	buf_puts(out, "| perplexity on | original | quantized | KL divergence | same top token | windows |\n"
		      "| --- | --- | --- | --- | --- | --- |\n");
	for (const struct json *p = json_first(list); p; p = json_next(p)) {
		buf_puts(out, "| ");
		card_put_plain(out, json_get_string(p, "text", "?"));
		put_cell(out, json_get(p, "original"), 4);
		put_cell(out, json_get(p, "quantized"), 4);
		put_cell(out, json_get(p, "kl"), 5);
		put_cell(out, json_get(p, "top1"), 4);
		put_cell(out, json_get(p, "windows"), 0);
		buf_puts(out, " |\n");
	}
	buf_puts(out, "\nKL divergence of the quantized model from the original: mean over the predictions, natural "
		      "logarithm. Same top token: the share of predictions in which both have the same likeliest "
		      "one.\n\n");
}
