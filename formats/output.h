/* output.h - a whole checkpoint in one format: which files it has, which tensors are in them, and their bytes.
 *
 * The plan is a pure function of what `struct output_model` and the options say: the coordinator makes it to cut the
 * work into tasks, a worker makes the same one again to write its file, the command line to convert a folder. So a
 * task's spec names a file by its number and carries no tensor list.
 *
 *   output_check() -> output_plan_make() -> output_write() per file -> output_config(), output_index() for the rest
 *
 * No I/O: bytes come from a struct output_source and go to a struct output_sink. Thread-safe; one plan may be used
 * by several threads at once. Memory of output_write(): one module or a few rows of a carried tensor.
 */
#ifndef QUARRY_FORMATS_OUTPUT_H
#define QUARRY_FORMATS_OUTPUT_H

#include "common/buf.h"
#include "formats/codec.h"
#include "formats/gguf_types.h"

enum { OUTPUT_FILE_MAX = 64 };

/* A word of the recipe's `formats`: "mlx", "dense-f16", "gguf", ... */
struct output_format {
	const char *name;               /* in recipes, and the folder's name */
	const char *about;              /* a sentence for the model card */
	bool always;                    /* written whether asked for or not */
	const struct codec *codec;      /* NULL: gguf, one file for the whole model */
};
extern const struct output_format output_formats[];     /* ends with name == NULL */
const struct output_format *output_format_find(const char *name); /* NULL when unknown */

/* The model to write, borrowed. */
struct output_model {
	const struct model_config *config;
	const struct json *source_config;       /* config.json */
	/* Every linear of the blocks in model order, skipped ones too. Then, where they are quantized, the
	 * embedding ("model.embed_tokens") and the head ("lm_head") with layer -1 (formats/embedding.h). */
	const struct codec_module *modules;
	size_t count;
	/* The stored type of a tensor of the source; -1 when it has none of that name. */
	int (*dtype)(void *ctx, const char *tensor, enum st_dtype *out);
	void *ctx;
};

/* 0 when the format holds every module; else -1 and each sentence (module, what was asked, what would fit). Equal sentences
 * about many modules are told once with their number. -1 without a sentence: out of memory. `problems` may be NULL. */
int output_check(const struct output_format *f, const struct output_model *m, struct problems *problems);
/* Sentences about what known readers make of this model in this format, when there is something to know. 0, or -1 without memory. */
int output_caution(const struct output_format *f, const struct output_model *m, struct problems *warnings);
/* 0 when the format takes any z for the module; n when z must be a multiple of 1/n. */
unsigned output_zero_parts(const struct output_format *f, const struct codec_module *m);

/* Whether the format stores scales, offsets or values as 16-bit floats. */
bool output_in_halves(const struct output_format *f);
/* Weights of at most this size have scales and offsets within the 16-bit floats (largest 65504), whatever the fit and
 * the search around it make of them. */
#define OUTPUT_HALF_WEIGHTS 32768.0f

struct output_tensor {
	char name[MODEL_NAME_MAX + 16];
	size_t module;                  /* index of the module it belongs to, or SIZE_MAX: carried over */
	unsigned part;                  /* which of the codec's tensors */
	char source[MODEL_NAME_MAX];    /* carried over: the source's tensor; "" = made here (rope factors) */
	enum st_dtype dtype;            /* as stored; unused in gguf files */
	enum gguf_type gguf;            /* unused elsewhere */
	unsigned ndim;
	uint64_t shape[2], bytes;
};

struct output_file {
	char name[OUTPUT_FILE_MAX];     /* "model-00001-of-00002.safetensors", "model.gguf" */
	size_t first, end;              /* its tensors; a module's tensors stay together */
	uint64_t bytes;                 /* of tensor data */
};

struct output_plan {
	const struct output_format *format;
	const struct output_model *model;       /* borrowed */
	struct output_tensor *tensors; size_t tensor_count;
	struct output_file *files; size_t file_count;
	uint64_t bytes;                 /* of all tensor data */
	/* Of quantized modules of the blocks: what stands for their weights, and how many weights. */
	uint64_t quantized_bytes, quantized_weights;
};
/* The model passed output_check(). max_shard_size in bytes: at least one module or tensor per file; gguf ignores it. */
int output_plan_make(struct output_plan *p, const struct output_format *f, const struct output_model *m,
		     uint64_t max_shard_size, struct err *err);
void output_plan_deinit(struct output_plan *p);
/* Blocks that file `i` needs: calls `each` with ascending layer numbers. Returns what `each` last returned: non-zero stops. */
int output_file_layers(const struct output_plan *p, size_t i, int (*each)(void *ctx, int64_t layer), void *ctx);

/* Where bytes come from. */
struct output_source {
	/* Fills buffers of the caller: codes (N,K), scales and zeros (N,G) of model->modules[module], which is in a block. */
	int (*module)(void *ctx, size_t module, uint8_t *codes, float *scales, float *zeros, struct err *err);
	/* `rows` rows from `row` of a carried tensor (a vector is one column wide), raw as the source stores it. */
	int (*rows)(void *ctx, const char *tensor, uint64_t row, uint64_t rows, void *out, struct err *err);
	/* A small file of the model ("tokenizer.json"), mem_alloc()ed; NULL without err when the model has none. */
	char *(*text)(void *ctx, const char *file, size_t *len, struct err *err);
	void *ctx;
};

/* Where they go. */
struct output_sink {
	int (*write)(void *ctx, uint64_t offset, const void *bytes, size_t len, struct err *err);
	/* 0..1; non-zero stops the work with that function's err. May be NULL. */
	int (*progress)(void *ctx, double share, struct err *err);
	void *ctx;
};

struct output_stats {
	uint64_t bytes;                 /* the file's length */
	double rounding;                /* dense formats: largest relative error of rounding a weight to the dtype */
};
/* Writes all of file `i`, in any order of offsets, each byte once. */
int output_write(const struct output_plan *p, size_t i, const struct output_source *source,
		 const struct output_sink *sink, struct output_stats *stats, struct err *err);

/* 0 when the format can carry the model's small files; else what is wrong: gguf takes the tokenizer into the file, and not
 * every kind has a name there. Only source->text is called. */
int output_check_texts(const struct output_format *f, const struct output_model *m, const struct output_source *source,
		       struct err *err);

/* config.json in this format: members of `source` keep their text; the dtype and what the codec adds replace theirs. gguf: none,
 * *out stays empty. `recipe` (may be NULL): what packed tells of how it was made. */
int output_config(const struct output_format *f, const struct output_model *m, const char *source, const struct json *recipe,
		  struct buf *out, struct err *err);
/* The file that repeats quantization_config; *out stays empty when the format has none (codec->extra_file). */
int output_extra(const struct output_format *f, const struct output_model *m, struct buf *out, struct err *err);
/* model.safetensors.index.json; *out stays empty when the format needs none. */
int output_index(const struct output_plan *p, struct buf *out, struct err *err);

#endif
