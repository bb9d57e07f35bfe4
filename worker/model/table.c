#include "worker/model/table.h"

#include <string.h>

#include "common/alloc.h"
#include "formats/embedding.h"

int table_read(struct checkpoint *ck, const char *name, int bits, uint64_t row, size_t rows, float *out, struct err *err)
{
	if (checkpoint_read_f32(ck, name, row, rows, out, err) != 0)
		return -1;
	return bits == TABLE_UNTOUCHED ? 0 : embedding_round(bits, name, row, out, rows, ck->config.hidden, err);
}

int head_rows_init(struct head_rows *h, struct checkpoint *ck, int bits, size_t capacity, struct err *err)
{
	const size_t row_bytes = ck->config.hidden * sizeof(float);

	*h = (struct head_rows){ .ck = ck, .bits = bits, .source = mem_alloc_aligned(capacity, row_bytes) };
	h->stored = bits == TABLE_UNTOUCHED ? h->source : mem_alloc_aligned(capacity, row_bytes);
	if (h->source && h->stored)
		return 0;
	head_rows_deinit(h);
	return err_set_nomem(err, "the output embedding");
}

void head_rows_deinit(struct head_rows *h)
{
	if (h->stored != h->source)
		mem_free(h->stored);
	mem_free(h->source);
	*h = (struct head_rows){ 0 };
}

int head_rows_read(struct head_rows *h, uint64_t row, size_t rows, struct err *err)
{
	const struct model_config *c = &h->ck->config;
	const char *name = c->tied_embeddings ? MODEL_EMBED_NAME : MODEL_HEAD_NAME;

	if (checkpoint_read_f32(h->ck, name, row, rows, h->source, err) != 0)
		return -1;
	if (h->bits == TABLE_UNTOUCHED)
		return 0;
	memcpy(h->stored, h->source, rows * c->hidden * sizeof(float));
	return embedding_round(h->bits, name, row, h->stored, rows, c->hidden, err);
}
