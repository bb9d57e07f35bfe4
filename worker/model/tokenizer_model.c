/* "model" of tokenizer.json: the vocabulary and the merges of a BPE model. */
#include <stdio.h>
#include <string.h>

#include "common/utf8.h"
#include "worker/model/tokenizer_parts.h"

/* `ids` holds the ids so far, as pairs (id, 0). */
static int load_entry(struct bpe *b, const struct json *m, struct merges *ids, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];
	const char *key = json_key(m);
	int64_t id;

	if (!json_int(m, &id) || id < 0 || id >= INT32_MAX)
		return err_set(err, ERR_INVALID, "model: the id of '%s' must be an integer from 0 to %d",
			       utf8_show(shown, key), INT32_MAX - 1);
	if (merges_find(ids, (int32_t)id, 0))
		return err_set(err, ERR_INVALID, "model: the id of '%s', %d, is another token's already",
			       utf8_show(shown, key), (int)id);
	merges_put(ids, (int32_t)id, 0, 0, 0);
	if (id > b->max_id)
		b->max_id = (int32_t)id;
	return vocab_add(&b->vocab, key, strlen(key), (int32_t)id, err);
}

static int load_vocab(struct bpe *b, const struct json *vocab, struct err *err)
{
	struct merges ids = { 0 };
	int rc;

	if (json_type(vocab) != JSON_OBJECT)
		return err_set(err, ERR_INVALID, "model: field 'vocab' must be an object of ids");
	rc = vocab_init(&b->vocab, json_size(vocab), err);
	if (rc == 0)
		rc = merges_init(&ids, json_size(vocab), err);
	for (const struct json *m = json_first(vocab); m && rc == 0; m = json_next(m))
		rc = load_entry(b, m, &ids, err);
	merges_deinit(&ids);
	return rc;
}

/* The two sides of a merge: ["a", "b"] or "a b". */
static int merge_sides(const struct json *m, const char **left, size_t *left_len,
		       const char **right, size_t *right_len)
{
	const char *text = json_string(m, NULL), *space;

	if (text) {
		space = strchr(text, ' ');
		if (!space || strchr(space + 1, ' '))
			return -1;
		*left = text;
		*left_len = (size_t)(space - text);
		*right = space + 1;
	} else {
		if (json_type(m) != JSON_ARRAY || json_size(m) != 2)
			return -1;
		*left = json_string(json_first(m), NULL);
		*right = json_string(json_next(json_first(m)), NULL);
		if (!*left || !*right)
			return -1;
		*left_len = strlen(*left);
	}
	*right_len = strlen(*right);
	return 0;
}

static const char mark[] = "\xE2\x96\x81";

/* Does U+2581 follow another character anywhere in the text? */
static bool word_start_inside(const char *text, size_t len)
{
	for (size_t i = 1; i + 3 <= len; i++) {
		if (memcmp(text + i, mark, 3) == 0 && (i < 3 || memcmp(text + i - 3, mark, 3) != 0))
			return true;
	}
	return false;
}

static int load_merge(struct bpe *b, const struct json *m, size_t rank, struct buf *joined,
		      struct err *err)
{
	const char *left, *right;
	size_t left_len, right_len;
	int32_t left_id, right_id, id;
	char shown[UTF8_SHOWN_MAX];

	if (merge_sides(m, &left, &left_len, &right, &right_len) != 0)
		return err_set(err, ERR_INVALID,
			       "model: merge %zu must be two strings, [\"a\", \"b\"] or \"a b\"", rank);
	buf_reset(joined);
	buf_append(joined, left, left_len);
	if (buf_append(joined, right, right_len) != 0)
		return err_set_nomem(err, "a merge");
	left_id = vocab_find(&b->vocab, left, left_len);
	right_id = vocab_find(&b->vocab, right, right_len);
	id = vocab_find(&b->vocab, buf_text(joined), joined->len);
	if (left_id < 0 || right_id < 0 || id < 0)
		return err_set(err, ERR_INVALID,
			       "model: merge %zu makes '%s', but it or a side of it is not in the vocabulary",
			       rank, utf8_show(shown, buf_text(joined)));
	merges_put(&b->merges, left_id, right_id, (uint32_t)rank, id);
	if (word_start_inside(buf_text(joined), joined->len))
		b->cut_at_words = false;
	return 0;
}

static int load_merges(struct bpe *b, const struct json *merges, struct err *err)
{
	struct buf joined;
	size_t rank = 0;
	int rc = 0;

	if (json_type(merges) != JSON_ARRAY)
		return err_set(err, ERR_INVALID, "model: field 'merges' must be a list of pairs");
	if (merges_init(&b->merges, json_size(merges), err) != 0)
		return -1;
	b->cut_at_words = vocab_find(&b->vocab, mark, 3) >= 0;
	buf_init(&joined, (size_t)1 << 26);
	for (const struct json *m = json_first(merges); m && rc == 0; m = json_next(m))
		rc = load_merge(b, m, rank++, &joined, err);
	buf_deinit(&joined);
	return rc;
}

static int load_flag(const struct json *model, const char *key, bool *out, struct err *err)
{
	const struct json *flag = json_get(model, key);

	*out = false;
	if (json_type(flag) == JSON_NULL)
		return 0;
	return part_bool(model, key, "model", out, err);
}

static int refuse_text(const struct json *model, const char *key, struct err *err)
{
	const struct json *value = json_get(model, key);

	if (json_type(value) == JSON_NULL || strcmp(json_string(value, "?"), "") == 0)
		return 0;
	return err_set(err, ERR_UNSUPPORTED, "model: '%s' is not supported, only null is", key);
}

static int load_unk(struct bpe *b, const struct json *model, struct err *err)
{
	const struct json *unk = json_get(model, "unk_token");
	const char *text = json_string(unk, NULL);

	if (json_type(unk) == JSON_NULL)
		return 0;
	if (!text)
		return err_set(err, ERR_INVALID, "model: field 'unk_token' must be a string or null");
	b->unk_id = vocab_find(&b->vocab, text, strlen(text));
	b->unk_missing = b->unk_id < 0;
	return 0;
}

static int load_options(struct bpe *b, const struct json *model, struct err *err)
{
	const struct json *dropout = json_get(model, "dropout");

	if (json_type(dropout) != JSON_NULL && json_number(dropout, 1) != 0)
		return err_set(err, ERR_UNSUPPORTED, "model: 'dropout' is not supported, only null is");
	if (refuse_text(model, "continuing_subword_prefix", err) != 0 ||
	    refuse_text(model, "end_of_word_suffix", err) != 0)
		return -1;
	if (load_flag(model, "fuse_unk", &b->fuse_unk, err) != 0 ||
	    load_flag(model, "byte_fallback", &b->byte_fallback, err) != 0 ||
	    load_flag(model, "ignore_merges", &b->ignore_merges, err) != 0)
		return -1;
	return load_unk(b, model, err);
}

/* A word's end must leave a symbol that no merge takes for something else: characters must not
 * vanish, and the unknown token must not look like the start of a word. */
static void check_unknown_for_cuts(struct bpe *b, const struct json *model)
{
	if (b->unk_id < 0 || strstr(json_get_string(model, "unk_token", mark), mark))
		b->cut_at_words = false;
}

/* The ids of single characters and of bytes, for the inner loop. */
static void index_characters(struct bpe *b)
{
	char text[8];

	for (uint32_t cp = 1; cp < CHAR_IDS; cp++)
		b->char_id[cp] = vocab_find(&b->vocab, text, utf8_encode(cp, text));
	b->char_id[0] = vocab_find(&b->vocab, "", 1);
	for (unsigned byte = 0; byte < 256; byte++) {
		snprintf(text, sizeof(text), "<0x%02X>", byte);
		b->byte_id[byte] = vocab_find(&b->vocab, text, 6);
	}
}

int bpe_load(struct bpe *b, const struct json *model, struct err *err)
{
	const char *type = "BPE"; /* some files leave it out */

	*b = (struct bpe){ .unk_id = -1, .max_id = -1 };
	if (json_type(model) != JSON_OBJECT)
		return err_set(err, ERR_INVALID, "field 'model' must be an object");
	if (json_get(model, "type"))
		type = part_type(model, "model", err);
	if (!type)
		return -1;
	if (strcmp(type, "BPE") != 0)
		return part_unsupported("model", type, "BPE", err);
	if (load_vocab(b, json_get(model, "vocab"), err) != 0 ||
	    load_merges(b, json_get(model, "merges"), err) != 0 ||
	    load_options(b, model, err) != 0)
		return -1;
	check_unknown_for_cuts(b, model);
	index_characters(b);
	return 0;
}

void bpe_deinit(struct bpe *b)
{
	vocab_deinit(&b->vocab);
	merges_deinit(&b->merges);
}
