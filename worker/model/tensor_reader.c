#include "worker/model/tensor_reader.h"

#include <inttypes.h>

/* Shapes were checked when the checkpoint was opened. */
static int read_checkpoint(void *ctx, const char *name, uint64_t row, uint64_t rows, uint64_t cols, float *out,
			   struct err *err)
{
	(void)cols;
	return checkpoint_read_f32(ctx, name, row, rows, out, err);
}

static int read_layer(void *ctx, const char *name, uint64_t row, uint64_t rows, uint64_t cols, float *out,
		      struct err *err)
{
	struct layer_blob *b = ctx;
	uint64_t stored;

	if (layer_blob_columns(b, name, &stored, err) != 0)
		return -1;
	if (stored != cols)
		return err_set(err, ERR_CORRUPT, "%s: tensor %s has %" PRIu64 " columns, the model has %" PRIu64,
			       b->path, name, stored, cols);
	return layer_blob_read_f32(b, name, row, rows, out, err);
}

struct tensor_reader tensor_reader_of_checkpoint(struct checkpoint *ck)
{
	return (struct tensor_reader){ .read = read_checkpoint, .ctx = ck, .threads = ck->source->threads };
}

struct tensor_reader tensor_reader_of_layer(struct layer_blob *blob)
{
	return (struct tensor_reader){ .read = read_layer, .ctx = blob, .threads = true };
}
