/* gguf_source.h - an open GGUF file as the checkpoint it was made from: names, shapes, row order, config.json.
 *
 * Written from the description of the format, as gguf_read.h. Architectures llama, qwen2 and qwen3.
 */
#ifndef QUARRY_FORMATS_GGUF_SOURCE_H
#define QUARRY_FORMATS_GGUF_SOURCE_H

#include "common/err.h"
#include "formats/gguf_read.h"

enum { GS_NAME_MAX = 128 };

struct gs_model {
	bool reordered;                 /* rows of q and k are in the order of architecture "llama" */
	uint64_t layers, heads, kv_heads;
};
/* From the metadata; ERR_UNSUPPORTED for other architectures, ERR_CORRUPT for numbers that cannot be. */
int gs_model(const struct gr_file *g, struct gs_model *out, struct err *err);

struct gs_tensor {
	char name[GS_NAME_MAX];         /* "model.layers.0.self_attn.q_proj.weight" */
	uint64_t rows, cols;            /* rows = 1 of a one-dimensional tensor */
	unsigned ndim;
	uint64_t heads;                 /* rows are reordered in so many heads; 0 = they are not */
};
/* 0; 1 when a checkpoint has no such tensor (rope factors, which config.json says); -1 when it is not known or cannot be. */
int gs_tensor(const struct gs_model *m, const struct gr_tensor *t, struct gs_tensor *out, struct err *err);
/* The row of the checkpoint's tensor that row `row` of the file's is. */
uint64_t gs_row(const struct gs_tensor *t, uint64_t row);
/* The config.json that the file carries; false when it carries none. */
bool gs_config(const struct gr_file *g, struct gr_text *out);
/* Small files beside config.json that a file may carry whole: tokenizer.json, tokenizer_config.json,
 * generation_config.json, chat_template.jinja. False when it carries none of this name. */
bool gs_text(const struct gr_file *g, const char *file, struct gr_text *out);
/* 0, or -1 when one of these is no text, larger than GS_TEXT_MAX, or (.json) no JSON object; sentences name the key. */
#define GS_TEXT_MAX ((size_t)48 << 20)
int gs_check_texts(const struct gr_file *g, struct err *err);

#endif
