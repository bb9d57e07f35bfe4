/* tensor_reader.h - "give me these rows of that tensor as float32", from a checkpoint or a quantized layer. */
#ifndef QUARRY_WORKER_MODEL_TENSOR_READER_H
#define QUARRY_WORKER_MODEL_TENSOR_READER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/checkpoint.h"
#include "common/err.h"
#include "worker/model/layer_blob.h"

struct tensor_reader {
	/* Rows [row, row+rows) of a 2-d tensor, or elements of a 1-d one: `out` has room for rows of `cols` (1)
	 * values. */
	int (*read)(void *ctx, const char *name, uint64_t row, uint64_t rows, uint64_t cols, float *out,
		    struct err *err);
	void *ctx;
	bool threads;   /* read() may be called from several threads at once */
};

struct tensor_reader tensor_reader_of_checkpoint(struct checkpoint *ck);
struct tensor_reader tensor_reader_of_layer(struct layer_blob *blob);

#endif
