/* gguf_meta.h - what a GGUF file says of the model: metadata keys, tensor names, row order, rope factors.
 *
 * Families llama and mistral are written as architecture "llama", whose readers expect rows of q and k (weights and
 * biases) in another order (gguf_row_source()); qwen2 and qwen3 as they are. Linear rope scaling becomes metadata;
 * Llama-3 scaling becomes the tensor rope_freqs.weight, which only "llama" has.
 * Pure; thread-safe. docs/formats.md has the tables.
 */
#ifndef QUARRY_FORMATS_GGUF_META_H
#define QUARRY_FORMATS_GGUF_META_H

#include "common/err.h"
#include "common/model_config.h"
#include "formats/gguf_file.h"

#define GGUF_ROPE_NAME "rope_freqs.weight"
#define GGUF_CONFIG_KEY "quarry.source_config"
#define GGUF_TOKENIZER_KEY "tokenizer.huggingface.json"
#define GGUF_SETTINGS_KEY "quarry.source_tokenizer_config"
#define GGUF_GENERATION_KEY "quarry.source_generation_config"
#define GGUF_TEMPLATE_KEY "quarry.source_chat_template"
#define GGUF_CARRIED_MAX ((size_t)48 << 20)

/* Small files of the source that are kept whole, so that they can be turned back; one that is absent has no key. */
struct gguf_carried {
	const char *key;                /* "quarry.source_tokenizer_config" */
	const char *file;               /* "tokenizer_config.json", for messages */
	const char *text;               /* NULL = absent */
	size_t len;
};
/* 0, or -1 (ERR_REFUSED) when it is larger than GGUF_CARRIED_MAX: readers take no head of any length. */
int gguf_meta_carried(struct gguf_kv *kv, const struct gguf_carried *c, struct err *err);

/* 0, or -1 with what this format cannot say of the model (problems may be NULL). */
int gguf_check_model(const struct model_config *mc, struct problems *problems);

struct gguf_about {
	const char *name;               /* general.name */
	enum gguf_type most;            /* the type of most weights */
	const char *config_text;        /* config.json, kept whole under GGUF_CONFIG_KEY so that the file can be turned
					 * back into a checkpoint; NULL = left out */
};
/* Adds everything but the tokenizer. The model passed gguf_check_model(). */
int gguf_meta_model(struct gguf_kv *kv, const struct model_config *mc, const struct gguf_about *about,
		    struct err *err);

/* Where a tensor of the source goes. */
struct gguf_place {
	char name[GGUF_NAME_MAX + 1];
	size_t heads;           /* its rows are reordered in so many heads; 0 = they are not */
	bool plain;             /* one-dimensional: always F32 */
};
/* 0, or -1 when a model of this family has no such tensor. */
int gguf_place_of(const struct model_config *mc, const char *source_name, struct gguf_place *out);

/* Numbers of rope_freqs.weight: head_dim / 2 for Llama-3 scaling, else 0 and the file has no such tensor. */
size_t gguf_rope_count(const struct model_config *mc);
void gguf_rope_factors(const struct model_config *mc, float *out);

#endif
