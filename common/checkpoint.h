/* checkpoint.h - a Hugging Face checkpoint folder: config, index, shards, tensors.
 *
 * checkpoint_open() reads only config.json, the index and the safetensors headers and checks them
 * against each other: every tensor of the family present with the right shape and a float dtype
 * (BF16, F16, F32), nothing missing, nothing extra that the family does not know (rotary inv_freq
 * buffers, and an lm_head.weight beside tied embeddings, are ignored), no tensor twice, index files
 * plain names that exist and really hold what the map says.
 * Pickle files (*.bin, *.pt) are refused. Reads convert to float32.
 */
#ifndef QUARRY_COMMON_CHECKPOINT_H
#define QUARRY_COMMON_CHECKPOINT_H

#include "common/model_config.h"
#include "common/safetensors.h"
#include "common/source.h"

struct checkpoint_file { char *name; uint64_t bytes; struct st_header header; };

/* One tensor of one file; all of them, sorted by name. Private. */
struct checkpoint_entry { const struct st_tensor *tensor; size_t file; bool wanted, indexed; };

struct checkpoint {
	struct source *source;          /* borrowed */
	struct model_config config;
	char *config_text; size_t config_len;
	struct checkpoint_file *files;  /* the shards, sorted by name */
	size_t file_count;
	struct checkpoint_entry *entries;
	size_t entry_count;
};

/* -1: err = the first problem, all in `problems` (may be NULL). */
int checkpoint_open(struct checkpoint *ck, struct source *source, struct problems *problems,
		    struct err *err);
/* Only the index and the headers, which may hold any tensors: config.json is not looked at, ck->config stays empty.
 * For checkpoints that are quantized; checkpoint_read_*() give their float tensors. */
int checkpoint_open_files(struct checkpoint *ck, struct source *source, struct problems *problems, struct err *err);
void checkpoint_close(struct checkpoint *ck);

/* The tensor and (optional) its file; NULL when absent. */
const struct st_tensor *checkpoint_find(const struct checkpoint *ck, const char *name,
					const struct checkpoint_file **file);
/* Rows [row, row+rows) of a 2-d tensor (or elements of a 1-d one) as float32 into `out`
 * (rows * cols floats). A NaN or infinity is ERR_CORRUPT naming the tensor and the first such index. Several
 * threads may read an open checkpoint at once when its source says so (source.h). */
int checkpoint_read_f32(struct checkpoint *ck, const char *name, uint64_t row, uint64_t rows,
			float *out, struct err *err);
/* The same bytes as stored (no check of values): out has rows * row_bytes. */
int checkpoint_read_raw(struct checkpoint *ck, const char *name, uint64_t row, uint64_t rows,
			void *out, struct err *err);

/* Files a derived checkpoint carries over unchanged when the source has them (tokenizer.json,
 * tokenizer_config.json, generation_config.json, chat_template.jinja, ...); NULL-terminated. */
extern const char *const checkpoint_carried_files[];

#endif
