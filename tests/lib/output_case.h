/* output_case.h - a made-up model of two layers with a quantized part, and its checkpoints in memory.
 *
 * Codes are random and cover their range; scales and offsets are halves, zero-points of the kind asked for; everything
 * else is random numbers in the model's dtype. Failures of memory end the test.
 */
#ifndef QUARRY_TESTS_OUTPUT_CASE_H
#define QUARRY_TESTS_OUTPUT_CASE_H

#include "common/buf.h"
#include "formats/output.h"
#include "tests/lib/codec_case.h"

enum { OUTPUT_CASE_LAYERS = 2, OUTPUT_CASE_MODULES = OUTPUT_CASE_LAYERS * LIN_COUNT, OUTPUT_CASE_FILES = 32 };

struct output_case_model {
	const char *family;             /* "llama", "qwen2", "qwen3" */
	size_t hidden, intermediate;    /* 4 heads of hidden / 4, 2 for keys and values; tokens as fable-tiny has them */
	bool tied;
	enum st_dtype dtype;
};

struct output_case_file { char name[OUTPUT_FILE_MAX]; struct buf bytes; struct buf times; };

struct output_case {
	struct model_config config;
	char *config_text;
	struct json *config_json;
	struct codec_module modules[OUTPUT_CASE_MODULES + 2];
	char names[OUTPUT_CASE_MODULES][MODEL_NAME_MAX];
	struct codec_case cases[OUTPUT_CASE_MODULES];
	struct output_model model;
	struct output_source source;
	enum st_dtype dtype;
	char *tokenizer; size_t tokenizer_len;
	uint64_t reads;
	/* What was written last. */
	struct output_plan plan;
	struct output_case_file files[OUTPUT_CASE_FILES];
	struct output_stats stats;      /* of the last file; rounding: the largest of all */
	struct buf written_config, extra, index;
	bool discard;                   /* keep no bytes: then the case allocates nothing while it writes */
	uint64_t fail_read, fail_write, stop_at; /* the read, write or progress call that fails, from 1; 0 = none */
	uint64_t writes, steps;
};

/* All modules alike; change modules[].settings before output_case_values(). */
void output_case_init(struct output_case *c, const struct output_case_model *m, int bits, int64_t group,
		      enum zero_kind kind);
/* Embedding and head (0 or 16: as they are) become modules. */
void output_case_tables(struct output_case *c, int embeddings, int head);
void output_case_values(struct output_case *c);
/* Plans and writes everything into `files` and the texts. 0 or -1. */
int output_case_write(struct output_case *c, const char *format, uint64_t max_shard_size, struct err *err);
/* Forgets what was written. */
void output_case_clear(struct output_case *c);
void output_case_deinit(struct output_case *c);

/* Element i of a tensor of the source, as float32. */
float output_case_value(const struct output_case *c, const char *tensor, uint64_t i);
/* A reader's view of the files. */
struct stored_source output_case_stored(struct output_case *c);

#endif
