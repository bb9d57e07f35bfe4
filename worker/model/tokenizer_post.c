/* "post_processor" of tokenizer.json: special tokens around the sequence.
 *
 * ByteLevel only moves offsets. Of TemplateProcessing the template for a single text counts. A
 * Sequence may hold one template; several would work on each other's pieces in ways no model uses.
 */
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "worker/model/tokenizer_parts.h"

static const char known[] = "Sequence, TemplateProcessing and ByteLevel";

static int push(struct post *p, bool sequence, int32_t id, struct err *err)
{
	if (p->count == p->cap) {
		size_t cap = p->cap ? p->cap * 2 : 8;
		struct post_piece *grown = mem_realloc(p->pieces, cap, sizeof(*grown));

		if (!grown)
			return err_set_nomem(err, "the template of the post_processor");
		p->pieces = grown;
		p->cap = cap;
	}
	p->pieces[p->count++] = (struct post_piece){ sequence, id };
	if (id > p->max_id)
		p->max_id = id;
	return 0;
}

static int push_special(struct post *p, const struct json *piece, const struct json *tokens,
			struct err *err)
{
	const struct json *ids, *item;
	const char *name;
	char shown[UTF8_SHOWN_MAX];

	if (json_require_string(piece, "id", &name, err) != 0)
		return err_prefix(err, "post_processor: SpecialToken");
	ids = json_get(json_get(tokens, name), "ids");
	if (json_type(ids) != JSON_ARRAY)
		return err_set(err, ERR_INVALID,
			       "post_processor: special token '%s' has no list 'ids' in 'special_tokens'",
			       utf8_show(shown, name));
	for (item = json_first(ids); item; item = json_next(item)) {
		int64_t id;

		if (!json_int(item, &id) || id < 0 || id >= INT32_MAX)
			return err_set(err, ERR_INVALID,
				       "post_processor: the ids of '%s' must be integers from 0 to %d",
				       utf8_show(shown, name), INT32_MAX - 1);
		if (push(p, false, (int32_t)id, err) != 0)
			return -1;
	}
	return 0;
}

static int load_template(struct post *p, const struct json *json, struct err *err)
{
	const struct json *single = json_get(json, "single"), *item;

	if (json_type(single) != JSON_ARRAY)
		return err_set(err, ERR_INVALID,
			       "post_processor: a TemplateProcessing needs the list 'single'");
	if (p->count)
		return err_set(err, ERR_UNSUPPORTED,
			       "post_processor: more than one TemplateProcessing is not supported");
	for (item = json_first(single); item; item = json_next(item)) {
		const struct json *special = json_get(item, "SpecialToken");
		const struct json *sequence = json_get(item, "Sequence");
		int rc;

		if (special)
			rc = push_special(p, special, json_get(json, "special_tokens"), err);
		else if (strcmp(json_get_string(sequence, "id", ""), "A") == 0)
			rc = push(p, true, -1, err);
		else
			rc = err_set(err, ERR_INVALID, "post_processor: each piece of 'single' must be a "
				     "SpecialToken or the Sequence A");
		if (rc != 0)
			return -1;
	}
	return p->count ? 0 : err_set(err, ERR_UNSUPPORTED, "post_processor: an empty template is not "
				      "supported");
}

static int load_one(struct post *p, const struct json *json, unsigned depth, struct err *err)
{
	const char *type = part_type(json, "post_processor", err);
	const struct json *list, *item;

	if (!type)
		return -1;
	if (strcmp(type, "ByteLevel") == 0)
		return 0;
	if (strcmp(type, "TemplateProcessing") == 0)
		return load_template(p, json, err);
	if (strcmp(type, "Sequence") != 0 || depth > 0)
		return part_unsupported("post_processor", type, known, err);
	list = json_get(json, "processors");
	if (json_type(list) != JSON_ARRAY)
		return err_set(err, ERR_INVALID, "post_processor: a Sequence needs the list 'processors'");
	for (item = json_first(list); item; item = json_next(item)) {
		if (load_one(p, item, depth + 1, err) != 0)
			return -1;
	}
	return 0;
}

int post_load(struct post *p, const struct json *json, struct err *err)
{
	*p = (struct post){ .max_id = -1 };
	if (json_type(json) != JSON_NULL && load_one(p, json, 0, err) != 0)
		return -1;
	return p->count ? 0 : push(p, true, -1, err);
}

void post_deinit(struct post *p)
{
	mem_free(p->pieces);
	*p = (struct post){ 0 };
}
