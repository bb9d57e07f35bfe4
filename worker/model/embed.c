/* See embed.h. */
#include "worker/model/embed.h"

#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/model/table.h"

struct wanted {
	int32_t id;
	size_t place;           /* row of the output */
};

static int compare_wanted(const void *left, const void *right)
{
	const struct wanted *a = left, *b = right;

	if (a->id != b->id)
		return a->id < b->id ? -1 : 1;
	return a->place < b->place ? -1 : a->place > b->place;
}

static int sort_ids(struct wanted *list, const int32_t *ids, size_t count, size_t vocab, struct err *err)
{
	for (size_t i = 0; i < count; i++) {
		if (ids[i] < 0 || (size_t)ids[i] >= vocab)
			return err_set(err, ERR_INVALID, "token %zu has id %ld; the model's ids are 0 to %zu",
				       i, (long)ids[i], vocab - 1);
		list[i] = (struct wanted){ ids[i], i };
	}
	qsort(list, count, sizeof(*list), compare_wanted);
	return 0;
}

/* Reads one piece that begins with list[0]'s row and hands out its rows; *done = entries served. */
static int serve_piece(struct checkpoint *ck, int bits, const struct wanted *list, size_t count, size_t piece_rows,
		       float *piece, float *out, size_t *done, struct err *err)
{
	const size_t hidden = ck->config.hidden, first = (size_t)list[0].id;
	size_t n = 0;

	while (n < count && (size_t)list[n].id - first < piece_rows)
		n++;
	if (table_read(ck, MODEL_EMBED_NAME, bits, first, (size_t)list[n - 1].id - first + 1, piece, err) != 0)
		return -1;
	for (size_t i = 0; i < n; i++)
		memcpy(out + list[i].place * hidden, piece + ((size_t)list[i].id - first) * hidden,
		       hidden * sizeof(*out));
	*done = n;
	return 0;
}

int embed_tokens(struct checkpoint *ck, int bits, const int32_t *ids, size_t count, float *out, struct err *err)
{
	const size_t hidden = ck->config.hidden, row_bytes = hidden * sizeof(float);
	const size_t fit = EMBED_CHUNK_BYTES / row_bytes, piece_rows = fit > 0 ? fit : 1;
	struct wanted *list = mem_alloc(count, sizeof(*list));
	float *piece = mem_alloc_aligned(piece_rows, row_bytes);
	size_t at = 0, done = 0;
	int rc = -1;

	if (!list || !piece) {
		err_set_nomem(err, "embedding rows");
		goto out;
	}
	if (sort_ids(list, ids, count, ck->config.vocab, err) != 0)
		goto out;
	for (at = 0; at < count; at += done)
		if (serve_piece(ck, bits, list + at, count - at, piece_rows, piece, out, &done, err) != 0)
			goto out;
	rc = 0;
out:
	mem_free(list);
	mem_free(piece);
	return rc;
}
