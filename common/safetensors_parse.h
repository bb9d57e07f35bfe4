/* safetensors_parse.h - private to the safetensors reader and writer. */
#ifndef QUARRY_COMMON_SAFETENSORS_PARSE_H
#define QUARRY_COMMON_SAFETENSORS_PARSE_H

#include "common/safetensors.h"

#define ST_META_NAME "__metadata__"

/* Fills tensors (in file order, unchecked against each other) and metadata of a zeroed header from
 * its JSON text. On failure what was filled so far stays: st_header_deinit(). */
int st_parse_header(struct st_header *h, const char *text, size_t len, struct err *err);

/* Bytes of a tensor from its shape and dtype; -1 (ERR_CORRUPT) on overflow or odd bits. */
int st_tensor_bytes(const struct st_tensor *t, uint64_t *bytes, struct err *err);

#endif
