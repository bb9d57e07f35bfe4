/* gguf_tokens_merges.c - merges as strings, or as scores of the pieces they make. */
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "formats/gguf_tokens.h"

enum { PIECE_BYTES_MAX = 1 << 16 };

int tokens_merge(const struct json *merge, struct merge_pair *out)
{
	const char *text = json_string(merge, NULL), *space = text ? strchr(text, ' ') : NULL;

	if (text) {
		if (!space || space == text || !space[1] || strchr(space + 1, ' '))
			return -1;
		*out = (struct merge_pair){ text, space + 1, (size_t)(space - text), strlen(space + 1) };
		return 0;
	}
	if (json_type(merge) != JSON_ARRAY || json_size(merge) != 2)
		return -1;
	out->left = json_string(json_at(merge, 0), NULL);
	out->right = json_string(json_at(merge, 1), NULL);
	if (!out->left || !out->right)
		return -1;
	out->left_len = strlen(out->left);
	out->right_len = strlen(out->right);
	return out->left_len > 0 && out->right_len > 0 && out->left_len + out->right_len <= PIECE_BYTES_MAX ? 0 : -1;
}

static int bad_merge(size_t rank, const char *why, struct err *err)
{
	return err_set(err, ERR_INVALID, "tokenizer.json: merge %zu %s", rank, why);
}

/* --- byte-level ---------------------------------------------------------------------------------- */

/* A space inside a piece is written as the letter that stands for it. */
static void append_piece(struct buf *b, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf_append(b, text[i] == ' ' ? "\xc4\xa0" : &text[i], text[i] == ' ' ? 2 : 1);
}

int tokens_put_merges(struct gguf_kv *kv, const struct json *merges, struct err *err)
{
	size_t rank = 0;
	struct buf b;
	int rc = 0;

	if (json_type(merges) != JSON_ARRAY)
		return err_set(err, ERR_INVALID, "tokenizer.json: model.merges is not an array");
	buf_init(&b, 3 * PIECE_BYTES_MAX);
	gguf_kv_array(kv, "tokenizer.ggml.merges", GGUF_VALUE_STRING, json_size(merges));
	for (const struct json *m = json_first(merges); rc == 0 && m; m = json_next(m), rank++) {
		struct merge_pair pair;

		if (tokens_merge(m, &pair) != 0) {
			rc = bad_merge(rank, "is not two pieces", err);
			break;
		}
		buf_reset(&b);
		append_piece(&b, pair.left, pair.left_len);
		buf_puts(&b, " ");
		append_piece(&b, pair.right, pair.right_len);
		gguf_element_string(kv, buf_text(&b), b.len);
		if (buf_failed(&b))
			rc = err_set_nomem(err, "a merge of tokenizer.json");
	}
	buf_deinit(&b);
	return rc;
}

/* --- SentencePiece-like -------------------------------------------------------------------------- */

struct piece { const char *text; struct token *token; };

static int by_text(const void *a, const void *b)
{
	return strcmp(((const struct piece *)a)->text, ((const struct piece *)b)->text);
}

static struct piece *sorted_pieces(struct vocabulary *v, size_t *count)
{
	struct piece *pieces = mem_alloc(v->count, sizeof(*pieces));

	*count = 0;
	for (size_t i = 0; pieces && i < v->count; i++)
		if (v->tokens[i].type != TOKEN_ABSENT)
			pieces[(*count)++] = (struct piece){ v->tokens[i].text, &v->tokens[i] };
	if (pieces)
		qsort(pieces, *count, sizeof(*pieces), by_text);
	return pieces;
}

/* The highest score wins, so the first merge that makes a piece gives it its score. */
static int score_merge(const struct json *merge, size_t rank, struct piece *pieces, size_t count, struct buf *joined,
		       struct err *err)
{
	struct piece key, *found;
	struct merge_pair pair;

	if (tokens_merge(merge, &pair) != 0)
		return bad_merge(rank, "is not two pieces", err);
	buf_reset(joined);
	buf_append(joined, pair.left, pair.left_len);
	buf_append(joined, pair.right, pair.right_len);
	if (buf_failed(joined))
		return err_set_nomem(err, "a merge of tokenizer.json");
	key.text = buf_text(joined);
	found = bsearch(&key, pieces, count, sizeof(*pieces), by_text);
	if (!found)
		return bad_merge(rank, "makes a piece that is not in the vocabulary", err);
	if (-(float)rank > found->token->score)
		found->token->score = -(float)rank;
	return 0;
}

int tokens_score(struct vocabulary *v, const struct json *merges, struct err *err)
{
	const size_t merge_count = json_size(merges);
	struct piece *pieces;
	size_t count, rank = 0;
	struct buf joined;
	int rc = 0;

	if (json_type(merges) != JSON_ARRAY)
		return err_set(err, ERR_INVALID, "tokenizer.json: model.merges is not an array");
	pieces = sorted_pieces(v, &count);
	if (!pieces)
		return err_set_nomem(err, "the tokens of tokenizer.json");
	for (size_t i = 0; i < v->count; i++) /* what no merge makes comes last; bytes and the unknown token do not count */
		v->tokens[i].score = v->tokens[i].type == TOKEN_NORMAL ? -(float)merge_count - 1 : 0;
	buf_init(&joined, 3 * PIECE_BYTES_MAX);
	for (const struct json *m = json_first(merges); rc == 0 && m; m = json_next(m), rank++)
		rc = score_merge(m, rank, pieces, count, &joined, err);
	buf_deinit(&joined);
	mem_free(pieces);
	return rc;
}
