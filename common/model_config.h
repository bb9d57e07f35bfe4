/* model_config.h - config.json of a decoder-only transformer, checked and made uniform.
 *
 * One row per family (model_family.c) says what differs: attention biases, q/k norms, defaults.
 * Older (rope_theta, rope_scaling, torch_dtype) and newer (rope_parameters, dtype) spellings give
 * the same struct. Anything that would change the forward pass and is not supported is refused by
 * name (ERR_UNSUPPORTED): unknown model_type, activation other than silu, rope types other than
 * default/llama3/linear, an effective sliding window, pre-quantized checkpoints, experts.
 * All problems are found, not just the first: see `problems`.
 */
#ifndef QUARRY_COMMON_MODEL_CONFIG_H
#define QUARRY_COMMON_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };

struct rope_config {
	enum rope_type type;
	double theta;
	double factor;                          /* linear, llama3 */
	double low_freq_factor, high_freq_factor;/* llama3 */
	double original_max_position;           /* llama3 */
};

struct model_config {
	char family[32];        /* model_type: "llama", "mistral", "qwen2", "qwen3" */
	char architecture[64];  /* architectures[0] */
	size_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, max_position;
	double rms_eps;
	bool tied_embeddings;
	bool qkv_bias, o_bias, mlp_bias; /* tensors present */
	bool qk_norm;           /* q_norm, k_norm of head_dim (qwen3) */
	char dtype[16];         /* "bfloat16", "float16", "float32": as configured, or "bfloat16" */
	struct rope_config rope;
};

/* A list of sentences, each one problem. */
struct problems { char **items; size_t count; };
int problems_add(struct problems *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void problems_deinit(struct problems *p);

/* 0 = usable. -1 = err holds the first problem; all are in `problems` (may be NULL). */
int model_config_parse(struct model_config *mc, const char *json_text, size_t len,
		       struct problems *problems, struct err *err);

/* The supported families, NULL-terminated: "llama", ... */
const char *const *model_families(void);

/* --- what tensors a model must hold ------------------------------------------------------- */

/* Input sites of a block: linears of one site share their input and so their H. */
enum block_site { SITE_ATTN_IN, SITE_O_IN, SITE_MLP_IN, SITE_DOWN_IN, SITE_COUNT };

/* The linear modules of a block in canonical order. */
enum block_linear { LIN_Q, LIN_K, LIN_V, LIN_O, LIN_GATE, LIN_UP, LIN_DOWN, LIN_COUNT };

enum block_norm { NORM_ATTN, NORM_MLP, NORM_Q, NORM_K, NORM_COUNT };

struct linear_shape {
	const char *suffix;     /* "self_attn.q_proj" */
	enum block_site site;
	size_t rows, cols;      /* N out features, K in features */
	bool bias;              /* "<module>.bias" exists */
};

struct linear_shape model_linear(const struct model_config *mc, enum block_linear which);
/* "input_layernorm", ...; NULL when this family has no such norm. *len = its length. */
const char *model_norm(const struct model_config *mc, enum block_norm which, size_t *len);

enum { MODEL_NAME_MAX = 192 };
/* "model.layers.3.self_attn.q_proj" (no ".weight") */
void model_linear_name(char out[MODEL_NAME_MAX], const struct model_config *mc, size_t layer,
		       enum block_linear which);
/* "model.layers.3.input_layernorm.weight" */
void model_norm_name(char out[MODEL_NAME_MAX], const struct model_config *mc, size_t layer,
		     enum block_norm which);
#define MODEL_EMBED_NAME "model.embed_tokens.weight"
#define MODEL_FINAL_NORM_NAME "model.norm.weight"
#define MODEL_HEAD_NAME "lm_head.weight"

/* Every tensor the model must have, in canonical order (embedding, blocks, norm, head unless
 * tied). visit() returns 0 to go on. shape has 1 or 2 dims (dim[1] = 0 when 1-d). layer = -1
 * outside blocks. */
struct model_tensor { const char *name; size_t dim[2]; long layer; };
int model_each_tensor(const struct model_config *mc,
		      int (*visit)(void *ctx, const struct model_tensor *t), void *ctx);

#endif
