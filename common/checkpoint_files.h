/* checkpoint_files.h - private to checkpoint*.c: which files a checkpoint consists of. */
#ifndef QUARRY_COMMON_CHECKPOINT_FILES_H
#define QUARRY_COMMON_CHECKPOINT_FILES_H

#include "common/checkpoint.h"
#include "common/findings.h"
#include "common/json.h"

#define CHECKPOINT_INDEX_NAME "model.safetensors.index.json"

/* Finds the shards (from the index, else model.safetensors) and reads their headers into ck->files.
 * *index = the parsed index, owned by the caller, or NULL when there is none. A shard that cannot be
 * read is noted and keeps an empty header with data_start 0. */
void checkpoint_load_files(struct checkpoint *ck, struct findings *f, struct json **index);

/* The index's "weight_map"; NULL without an index. */
const struct json *checkpoint_weight_map(const struct json *index);

#endif
