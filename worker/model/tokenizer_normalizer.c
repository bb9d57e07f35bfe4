/* "normalizer" of tokenizer.json: Unicode forms, Prepend, Replace and sequences of them. */
#include <string.h>

#include "common/alloc.h"
#include "worker/model/tokenizer_parts.h"

static const char known[] = "Sequence, NFC, NFD, NFKC, NFKD, Prepend and Replace";

static int load_one(struct normalizers *n, const struct json *json, const char *where, unsigned depth,
		    struct err *err);

static int load_sequence(struct normalizers *n, const struct json *json, unsigned depth,
			 struct err *err)
{
	const struct json *list = json_get(json, "normalizers");

	if (json_type(list) != JSON_ARRAY)
		return err_set(err, ERR_INVALID, "normalizer: a Sequence needs the list 'normalizers'");
	for (const struct json *item = json_first(list); item; item = json_next(item)) {
		if (load_one(n, item, "normalizer in a Sequence", depth + 1, err) != 0)
			return -1;
	}
	return 0;
}

static int load_text(struct normalizer *item, const struct json *json, const char *key,
		     struct err *err)
{
	const char *text;

	if (json_require_string(json, key, &text, err) != 0)
		return -1;
	item->text_len = strlen(text);
	item->text = mem_strndup(text, item->text_len);
	return item->text ? 0 : err_set_nomem(err, "a normalizer");
}

static int load_form(struct normalizer *item, const char *type)
{
	item->kind = NORMALIZE_FORM;
	item->form.compat = type[2] == 'K';
	item->form.compose = type[strlen(type) - 1] == 'C';
	return 0;
}

static int load_one(struct normalizers *n, const struct json *json, const char *where, unsigned depth,
		    struct err *err)
{
	const char *type = part_type(json, where, err);
	struct normalizer *item = &n->items[n->count];

	if (!type)
		return -1;
	if (strcmp(type, "Sequence") == 0 && depth < NORMALIZERS_MAX)
		return load_sequence(n, json, depth, err);
	if (n->count == NORMALIZERS_MAX || depth >= NORMALIZERS_MAX)
		return err_set(err, ERR_UNSUPPORTED, "%s: more than %d are not supported", where,
			       NORMALIZERS_MAX);
	n->count++;
	if (strcmp(type, "NFC") == 0 || strcmp(type, "NFD") == 0 || strcmp(type, "NFKC") == 0 ||
	    strcmp(type, "NFKD") == 0)
		return load_form(item, type);
	if (strcmp(type, "Prepend") == 0) {
		item->kind = NORMALIZE_PREPEND;
		return load_text(item, json, "prepend", err);
	}
	if (strcmp(type, "Replace") == 0) {
		item->kind = NORMALIZE_REPLACE;
		item->pattern = part_pattern(json_get(json, "pattern"), where, err);
		return item->pattern ? load_text(item, json, "content", err) : -1;
	}
	return part_unsupported(where, type, known, err);
}

int normalizers_load(struct normalizers *n, const struct json *json, struct err *err)
{
	n->count = 0;
	return json_type(json) == JSON_NULL ? 0 : load_one(n, json, "normalizer", 0, err);
}

void normalizers_deinit(struct normalizers *n)
{
	for (size_t i = 0; i < n->count; i++) {
		pattern_free(n->items[i].pattern);
		mem_free(n->items[i].text);
	}
	*n = (struct normalizers){ .count = 0 };
}

/* --- running -------------------------------------------------------------------------------- */

static int replace(const struct normalizer *item, struct normalize_run *w, struct pattern_state *state,
		   const char *text, size_t len, struct buf *out, struct err *err)
{
	if (pattern_spans(item->pattern, state, text, len, &w->spans, err) != 0)
		return -1;
	for (size_t i = 0; i < w->spans.count; i++) {
		const struct span *s = &w->spans.items[i];

		if (s->match)
			buf_append(out, item->text, item->text_len);
		else
			buf_append(out, text + s->start, s->end - s->start);
	}
	return 0;
}

static int apply(const struct normalizer *item, struct normalize_run *w, struct pattern_state *state,
		 const char *text, size_t len, struct buf *out, struct err *err)
{
	switch (item->kind) {
	case NORMALIZE_FORM:
		return uni_normalize(item->form, text, len, out, err);
	case NORMALIZE_PREPEND:
		buf_append(out, item->text, item->text_len);
		buf_append(out, text, len);
		return 0;
	case NORMALIZE_REPLACE:
		return replace(item, w, state, text, len, out, err);
	}
	return 0;
}

int normalizers_run(const struct normalizers *n, struct normalize_run *w, struct pattern_state *state,
		    const char *text, size_t len, const char **out, size_t *out_len,
		    struct err *err)
{
	for (size_t i = 0; i < n->count && len; i++) {
		struct buf *to = &w->buf[i % 2];

		buf_reset(to);
		if (apply(&n->items[i], w, state, text, len, to, err) != 0)
			return -1;
		if (buf_failed(to))
			return err_set_nomem(err, "normalized text");
		text = buf_text(to);
		len = to->len;
	}
	*out = text;
	*out_len = len;
	return 0;
}
