/* Runs the pre-tokenizer: stages cut the text into pre-tokens and rewrite them.
 *
 * A stage hands each of its pieces to the next one before it makes another; the last hands them to
 * the model. Each stage has its own scratch space, so the pieces of an outer stage stay valid.
 */
#include <string.h>

#include "common/utf8.h"
#include "worker/model/tokenizer_parts.h"

void stages_run_init(struct stages_run *r, const struct stages *s)
{
	*r = (struct stages_run){ .stages = s };
	for (size_t i = 0; i < STAGES_MAX; i++) {
		buf_init(&r->scratch[i].text, TOKENIZER_TEXT_MAX);
		buf_init(&r->scratch[i].piece, TOKENIZER_TEXT_MAX);
	}
}

void stages_run_deinit(struct stages_run *r)
{
	for (size_t i = 0; i < STAGES_MAX; i++) {
		spans_deinit(&r->scratch[i].spans);
		buf_deinit(&r->scratch[i].text);
		buf_deinit(&r->scratch[i].piece);
	}
}

static int feed(struct stages_run *r, size_t at, const char *text, size_t len, bool at_start);

static int too_long(struct stages_run *r)
{
	return err_set(r->err, ERR_NOMEM, "pre-tokenized text: out of memory or more than %zu bytes",
		       TOKENIZER_TEXT_MAX);
}

static int digit_spans(struct spans *out, const char *text, size_t len, struct err *err)
{
	size_t done = 0, n;

	out->count = 0;
	for (size_t i = 0; i < len; i += n) {
		if (!uni_is_numeric(uni_decode(text + i, &n)))
			continue;
		if (i > done && spans_push(out, done, i, false, err) != 0)
			return -1;
		if (spans_push(out, i, i + n, true, err) != 0)
			return -1;
		done = i + n;
	}
	return done < len ? spans_push(out, done, len, false, err) : 0;
}

/* Hands the kept pieces to the stage behind `at`. */
static int feed_spans(struct stages_run *r, size_t at, const char *text, bool at_start)
{
	const struct spans *spans = &r->scratch[at].spans;

	for (size_t i = 0; i < spans->count; i++) {
		const struct span *s = &spans->items[i];

		if (s->removed || s->end == s->start)
			continue;
		if (feed(r, at + 1, text + s->start, s->end - s->start, at_start && s->start == 0) != 0)
			return -1;
	}
	return 0;
}

static int run_split(struct stages_run *r, size_t at, const char *text, size_t len, bool at_start)
{
	const struct stage *stage = &r->stages->items[at];
	struct spans *spans = &r->scratch[at].spans;

	if (stage->kind == STAGE_DIGITS) {
		if (digit_spans(spans, text, len, r->err) != 0)
			return -1;
	} else if (pattern_spans(stage->pattern, r->state, text, len, spans, r->err) != 0) {
		return -1;
	}
	if (stage->invert)
		spans_invert(spans);
	spans_split(spans, stage->behavior);
	return feed_spans(r, at, text, at_start);
}

/* The visible character that stands for a byte: itself where printable, else from U+0100 on. */
static size_t put_byte(unsigned char byte, char out[4])
{
	uint32_t cp = byte;

	if (byte <= 0x20)
		cp = 0x100u + byte;
	else if (byte >= 0x7F && byte <= 0xA0)
		cp = 0x121u + (byte - 0x7Fu);
	else if (byte == 0xAD)
		cp = 0x143;
	return utf8_encode(cp, out);
}

static int feed_bytes(struct stages_run *r, size_t at, const char *text, size_t len, bool at_start)
{
	struct buf *piece = &r->scratch[at].piece;

	buf_reset(piece);
	for (size_t i = 0; i < len; i++) {
		char mapped[4];

		buf_append(piece, mapped, put_byte((unsigned char)text[i], mapped));
	}
	if (buf_failed(piece))
		return too_long(r);
	return feed(r, at + 1, buf_text(piece), piece->len, at_start);
}

static int run_byte_level(struct stages_run *r, size_t at, const char *text, size_t len, bool at_start)
{
	const struct stage *stage = &r->stages->items[at];
	struct stage_scratch *scratch = &r->scratch[at];

	if (stage->add_prefix_space && text[0] != ' ') {
		buf_reset(&scratch->text);
		buf_append(&scratch->text, " ", 1);
		if (buf_append(&scratch->text, text, len) != 0)
			return too_long(r);
		text = buf_text(&scratch->text);
		len = scratch->text.len;
	}
	if (!stage->pattern)
		return feed_bytes(r, at, text, len, at_start);
	if (pattern_spans(stage->pattern, r->state, text, len, &scratch->spans, r->err) != 0)
		return -1;
	for (size_t i = 0; i < scratch->spans.count; i++) {
		const struct span *s = &scratch->spans.items[i];

		if (feed_bytes(r, at, text + s->start, s->end - s->start, at_start && i == 0) != 0)
			return -1;
	}
	return 0;
}

static void replace_spaces(struct buf *out, const char *text, size_t len, const char *replacement)
{
	for (size_t i = 0; i < len;) {
		const char *space = memchr(text + i, ' ', len - i);
		size_t end = space ? (size_t)(space - text) : len;

		buf_append(out, text + i, end - i);
		if (space)
			buf_puts(out, replacement);
		i = end + 1;
	}
}

static int run_metaspace(struct stages_run *r, size_t at, const char *text, size_t len, bool at_start)
{
	const struct stage *stage = &r->stages->items[at];
	struct stage_scratch *scratch = &r->scratch[at];
	struct buf *out = &scratch->text;
	size_t n = strlen(stage->replacement);
	bool begins = text[0] == ' ' || (len >= n && memcmp(text, stage->replacement, n) == 0);

	buf_reset(out);
	if (!begins && (stage->prepend == PREPEND_ALWAYS || (stage->prepend == PREPEND_FIRST && at_start)))
		buf_puts(out, stage->replacement);
	replace_spaces(out, text, len, stage->replacement);
	if (buf_failed(out))
		return too_long(r);
	if (!stage->pattern)
		return feed(r, at + 1, buf_text(out), out->len, at_start);
	if (pattern_spans(stage->pattern, r->state, buf_text(out), out->len, &scratch->spans, r->err) != 0)
		return -1;
	spans_split(&scratch->spans, SPLIT_MERGED_WITH_NEXT);
	return feed_spans(r, at, buf_text(out), at_start);
}

static int feed(struct stages_run *r, size_t at, const char *text, size_t len, bool at_start)
{
	if (at == r->stages->count)
		return bpe_encode(r->bpe, text, len, r->out, r->err);
	switch (r->stages->items[at].kind) {
	case STAGE_SPLIT:
	case STAGE_DIGITS:
		return run_split(r, at, text, len, at_start);
	case STAGE_BYTE_LEVEL:
		return run_byte_level(r, at, text, len, at_start);
	case STAGE_METASPACE:
		return run_metaspace(r, at, text, len, at_start);
	}
	return 0;
}

int stages_encode(struct stages_run *r, const char *text, size_t len, bool at_start)
{
	return feed(r, 0, text, len, at_start);
}
