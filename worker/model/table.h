/* table.h - rows of a model's embedding or output head, as its source has them or as a checkpoint in fewer bits stores
 * them (formats/embedding.h).
 *
 * Rows are rounded one by one, so which of them are read together does not matter.
 */
#ifndef QUARRY_WORKER_MODEL_TABLE_H
#define QUARRY_WORKER_MODEL_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "common/checkpoint.h"

enum { TABLE_UNTOUCHED = 16 };  /* bits that stand for the source's values */

/* Rows [row, row + rows) of tensor `name`, (rows, hidden) floats. ERR_NUMERIC when `bits` do not hold a value. */
int table_read(struct checkpoint *ck, const char *name, int bits, uint64_t row, size_t rows, float *out, struct err *err);

/* Room for rows of the output head (lm_head, or the embedding when tied), both ways. */
struct head_rows {
	struct checkpoint *ck;          /* borrowed */
	int bits;
	float *source, *stored;         /* (capacity, hidden); the same memory when bits are 16 */
};
int head_rows_init(struct head_rows *h, struct checkpoint *ck, int bits, size_t capacity, struct err *err);
void head_rows_deinit(struct head_rows *h);
/* Fills the first `rows` with those from `row` on. */
int head_rows_read(struct head_rows *h, uint64_t row, size_t rows, struct err *err);

#endif
