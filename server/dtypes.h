/* dtypes.h - the stored types of a model's tensors by name, from what VERB_MODEL_ADD recorded. */
#ifndef QUARRY_SERVER_DTYPES_H
#define QUARRY_SERVER_DTYPES_H

#include "common/err.h"
#include "common/json.h"
#include "common/safetensors.h"

struct dtype_entry { const char *name, *dtype; };

struct dtypes { struct dtype_entry *entries; size_t count; };

/* object: {"<tensor>": "BF16"}, borrowed. */
int dtypes_init(struct dtypes *d, const struct json *object, struct err *err);
void dtypes_deinit(struct dtypes *d);
/* As struct output_model wants it; ctx is a struct dtypes. */
int dtypes_find(void *ctx, const char *tensor, enum st_dtype *out);

#endif
