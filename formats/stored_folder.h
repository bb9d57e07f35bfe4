/* stored_folder.h - a checkpoint on disk, read back: what it is, and its bytes as a struct output_source.
 *
 * A folder in any of the formats (packed, mlx, gptq, awq, compressed-tensors, dense), a .gguf file, or a folder that holds
 * one .gguf file. Everything is read through the independent readers (reader.h, gguf_source.h), so that reading checks writing.
 *
 *   stored_folder_open() -> stored_folder_scan() -> stored_folder_model(), stored_folder_source() for output_*()
 *
 * open() reads config.json, the index and the heads of the files; scan() decodes every module once. What formats other than
 * packed do not write down is then known from the values: the kind of zero-points, groups that were stored as several equal
 * ones, tables that a rounding of formats/embedding.h leaves as they are.
 *
 * Invariants:
 *  1. Values are never changed. A module whose columns are not grouped in order (activation order) and a table of another
 *     kind of quantization are handed on as plain float32 weights, and said so (`why_plain`).
 *  2. Rows of GGUF files of architecture "llama" come in the order of the checkpoint.
 *  3. Input is untrusted: names, sizes, settings and values are checked; every fault is one sentence.
 *  4. Memory: the heads of all files, and one module or a few rows.
 * Reads come from one thread at a time.
 */
#ifndef QUARRY_FORMATS_STORED_FOLDER_H
#define QUARRY_FORMATS_STORED_FOLDER_H

#include "common/model_config.h"
#include "formats/codec.h"
#include "formats/output.h"
#include "formats/reader.h"

struct stored_ops;
struct stored_back;

/* How modules[i] lies in the files. */
struct stored_linear {
	bool quantized;
	const char *type;               /* "Q4_K" in a gguf file; NULL elsewhere */
	uint64_t bytes;                 /* of all that stands for its weights */
	const char *why_plain;          /* quantized in a way that is handed on as float32 only; else NULL */
};

struct stored_folder {
	const char *format;             /* "packed", "mlx", ..., "dense", "gguf" */
	char *dir;                      /* the folder that the files lie in */
	char *gguf_file;                /* name of the .gguf file in it, or NULL */
	char *config_text;              /* config.json of the plain model: without members that tell of a quantization */
	struct json *plain;             /* the same, parsed */
	struct model_config config;
	/* Every linear of the blocks in model order, then the tables (embedding, head) that are quantized in a way of
	 * formats/embedding.h. Of the tables nothing is known before the scan, but for packed. */
	struct codec_module *modules;
	size_t count, linears;          /* linears of blocks come first */
	struct stored_linear *linear;   /* (linears) */
	struct stored_linear tables[2]; /* embedding, head */
	bool scanned;
	/* Private. */
	char (*names)[MODEL_NAME_MAX];
	int table_bits[2];              /* 16, 8, 6, 4 */
	struct json *stored_config;     /* config.json as it is; NULL of a gguf file */
	const struct stored_ops *ops;
	struct stored_back *back;
	struct stored_module kept;      /* the module decoded last, for rows() */
	size_t kept_index;              /* SIZE_MAX: none */
	enum st_dtype cast;
	bool casts;
};

/* -1: err = the first problem, all in `problems` (may be NULL). On success the caller owns *f: stored_folder_close(). */
int stored_folder_open(struct stored_folder *f, const char *path, struct problems *problems, struct err *err);
void stored_folder_close(struct stored_folder *f);

/* Decodes every module and looks at every other number. Faults (a tensor that is missing, left over, of a wrong type or shape,
 * a scale that is not finite or not positive, a weight that is not finite) are added to `faults`, one sentence each; err = the
 * first. 0 = none. ERR_CANCELLED and failures of the machine end the scan at once. `progress` (may be NULL): 0..1, non-zero
 * stops with its err. */
int stored_folder_scan(struct stored_folder *f, int (*progress)(void *ctx, double share, struct err *err), void *ctx,
		       struct problems *faults, struct err *err);

/* What output_*() take; borrows from f. Scan first. */
void stored_folder_model(struct stored_folder *f, struct output_model *out);
struct output_source stored_folder_source(struct stored_folder *f);
/* From now on tensors that are carried over are handed out as this float type, rounded to nearest (a value beyond F16 is
 * ERR_NUMERIC): a checkpoint of one type whatever the format kept. */
void stored_folder_cast(struct stored_folder *f, enum st_dtype dtype);

/* Bits that embedding and head are to have in what is written: 16, 8, 6 or 4; 0 = as the checkpoint has it. 0, or -1 with
 * the sentence when the head is the embedding and other bits are asked of it. */
int stored_folder_tables(struct stored_folder *f, int embeddings, int lm_head, struct err *err);

/* Weights of the model, and bytes and number of those in quantized modules of the blocks. */
uint64_t stored_folder_parameters(const struct stored_folder *f);
void stored_folder_quantized(const struct stored_folder *f, uint64_t *bytes, uint64_t *weights);
/* The model's weight files: calls `each` with plain names in order; non-zero stops and is returned. */
int stored_folder_files(const struct stored_folder *f, int (*each)(void *ctx, const char *name), void *ctx);

#endif
