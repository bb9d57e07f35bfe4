/* embed.h - embedding rows of tokens, without holding the table.
 *
 * The ids are sorted and the table is read forwards in pieces of at most EMBED_CHUNK_BYTES that
 * start and end at a needed row, so a piece nobody needs is never read.
 */
#ifndef QUARRY_WORKER_MODEL_EMBED_H
#define QUARRY_WORKER_MODEL_EMBED_H

#include <stddef.h>
#include <stdint.h>

#include "common/checkpoint.h"

enum { EMBED_CHUNK_BYTES = 4 << 20 };

/* out (count, hidden) = embedding rows of ids (count), each 0 .. vocab-1, as a table of `bits` stores them: table.h. */
int embed_tokens(struct checkpoint *ck, int bits, const int32_t *ids, size_t count, float *out, struct err *err);

#endif
