/* table_bits.h - members "embeddings" and "lm_head" of a task's spec: the bits in which the checkpoint will store the tables
 * outside the blocks. A task that computes with the finished model reads their rows so (worker/model/table.h).
 */
#ifndef QUARRY_WORKER_TABLE_BITS_H
#define QUARRY_WORKER_TABLE_BITS_H

#include "common/err.h"
#include "common/json.h"

struct table_bits { int embeddings, lm_head; };

/* 16 where the spec says nothing. ERR_INVALID for other bits than formats/embedding.h knows. */
int table_bits_read(struct table_bits *t, const struct json *spec, struct err *err);

#endif
