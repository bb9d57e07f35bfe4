/* engine_model_source.h - a checkpoint made of uploaded blobs, as a struct source. */
#ifndef QUARRY_SERVER_ENGINE_MODEL_SOURCE_H
#define QUARRY_SERVER_ENGINE_MODEL_SOURCE_H

#include "common/json.h"
#include "common/source.h"

struct blobs;

/* What a file of a model is for. Stored: never change a number. */
enum model_file_role {
	MODEL_FILE_CONFIG = 1, MODEL_FILE_INDEX = 2, MODEL_FILE_SHARD = 3, MODEL_FILE_CARRIED = 4
};

/* files: [{"name","sha256"}], borrowed until close. A file named in the list but not stored is an error when
 * it is read; one that is not in the list is ERR_NOT_FOUND. */
struct source *source_blobs_open(struct blobs *blobs, const struct json *files, struct err *err);

#endif
