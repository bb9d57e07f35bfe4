/* stored_case.h - a small model made up in memory, as a source of output_*(), and folders that hold it.
 *
 * Two blocks, hidden 256, vocabulary of examples/fable-tiny. Numbers of tensors that are not quantized are exact in F16 and
 * BF16. Failures of memory or I/O end the test.
 */
#ifndef QUARRY_TESTS_LIB_STORED_CASE_H
#define QUARRY_TESTS_LIB_STORED_CASE_H

#include "formats/output.h"
#include "tests/lib/codec_case.h"

enum { STORED_LAYERS = 2, STORED_HIDDEN = 256, STORED_VOCAB = 1024, STORED_MODULES = STORED_LAYERS * LIN_COUNT + 2 };

struct stored_options {
	const char *family;             /* "llama", "qwen2", "qwen3" */
	bool untied;
	int bits;
	int64_t group;
	enum zero_kind kind;
	unsigned skipped;               /* bit i: linear i of each block stays plain */
	int embeddings, lm_head;        /* 16 or 0: plain */
	enum st_dtype dtype;            /* of tensors that are not quantized */
};

struct stored_case {
	struct stored_options options;
	struct model_config config;
	char *config_text;
	struct json *json;
	struct codec_case linears[STORED_LAYERS * LIN_COUNT];
	struct codec_module modules[STORED_MODULES];
	size_t count;
};

void stored_case_init(struct stored_case *c, struct stored_options options);
void stored_case_deinit(struct stored_case *c);
struct output_model stored_case_model(struct stored_case *c);
struct output_source stored_case_source(struct stored_case *c);
/* Element `i` of a tensor that is not quantized. */
float stored_case_number(const char *tensor, uint64_t i);

/* A folder with all files of a format, cut after `shard` bytes (0: one file). The format must hold the model. */
void stored_case_write(struct stored_case *c, const char *format, const char *dir, uint64_t shard);
/* The same of any model and source; `config_text`: of the plain model. 0 or -1. */
int stored_write(const struct output_model *model, const struct output_source *source, const char *config_text,
		 const char *format, const char *dir, uint64_t shard, struct err *err);

/* --- changing files ------------------------------------------------------------------------------ */

/* A safetensors file in memory. */
struct loaded { struct st_item *items; size_t count; const char *path; };
struct loaded loaded_read(const char *path);
struct st_item *loaded_find(struct loaded *l, const char *name); /* fails the test when absent */
void loaded_remove(struct loaded *l, const char *name);
/* One more; the name is copied, `bytes` too. */
void loaded_add(struct loaded *l, const char *name, enum st_dtype dtype, unsigned ndim, uint64_t rows, uint64_t cols,
		const void *bytes, size_t len);
/* Writes to `path` and frees. */
void loaded_write(struct loaded *l);

/* Whole files; the text is the caller's. */
char *file_text(const char *dir, const char *name, size_t *len);
void file_put(const char *dir, const char *name, const void *bytes, size_t len);
bool files_equal(const char *dir_a, const char *dir_b, const char *name);

#endif
