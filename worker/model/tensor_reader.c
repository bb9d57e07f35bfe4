#include "worker/model/tensor_reader.h"

static int read_checkpoint(void *ctx, const char *name, uint64_t row, uint64_t rows, float *out,
			   struct err *err)
{
	return checkpoint_read_f32(ctx, name, row, rows, out, err);
}

static int read_layer(void *ctx, const char *name, uint64_t row, uint64_t rows, float *out,
		      struct err *err)
{
	return layer_blob_read_f32(ctx, name, row, rows, out, err);
}

struct tensor_reader tensor_reader_of_checkpoint(struct checkpoint *ck)
{
	return (struct tensor_reader){ .read = read_checkpoint, .ctx = ck };
}

struct tensor_reader tensor_reader_of_layer(struct layer_blob *blob)
{
	return (struct tensor_reader){ .read = read_layer, .ctx = blob };
}
