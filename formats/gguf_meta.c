#include "formats/gguf_meta.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/utf8.h"

enum { KEY_MAX = 96, QUANTIZATION_VERSION = 2 };

static const struct { const char *family, *architecture; } architectures[] = {
	{ "llama", "llama" }, { "mistral", "llama" }, { "qwen2", "qwen2" }, { "qwen3", "qwen3" },
};

static const char *architecture_of(const struct model_config *mc)
{
	for (size_t i = 0; i < sizeof(architectures) / sizeof(architectures[0]); i++)
		if (strcmp(architectures[i].family, mc->family) == 0)
			return architectures[i].architecture;
	return NULL;
}

static bool is_llama(const struct model_config *mc)
{
	const char *arch = architecture_of(mc);

	return arch && strcmp(arch, "llama") == 0;
}

/* --- what cannot be said ------------------------------------------------------------------------- */

static int refuse(struct problems *problems, const char *sentence)
{
	if (problems)
		problems_add(problems, "%s", sentence);
	return -1;
}

int gguf_check_model(const struct model_config *mc, struct problems *problems)
{
	int rc = 0;

	if (!architecture_of(mc))
		return refuse(problems, "gguf is written for models of type llama, mistral, qwen2 and qwen3");
	if (mc->rope.type == ROPE_LLAMA3 && !is_llama(mc))
		rc = refuse(problems, "readers of gguf know Llama-3 rope scaling for models of type llama and mistral only; dense "
			    "holds this model");
	if (!is_llama(mc) && (mc->o_bias || mc->mlp_bias || (mc->qk_norm && mc->qkv_bias)))
		rc = refuse(problems, "readers of gguf know biases of qwen2's q_proj, k_proj and v_proj, and of llama, but not the "
			    "others of this model; dense holds it");
	if (mc->head_dim % 2 != 0)
		rc = refuse(problems, "gguf needs an even head_dim");
	return rc;
}

/* --- metadata ------------------------------------------------------------------------------------ */

struct meta {
	struct gguf_kv *kv;
	const char *arch;
	char key[KEY_MAX];
	struct err *err;
	int rc;
};

static const char *key_of(struct meta *m, const char *name)
{
	snprintf(m->key, sizeof(m->key), "%s.%s", m->arch, name);
	return m->key;
}

static void put_size(struct meta *m, const char *name, size_t value)
{
	if (value > INT32_MAX)
		m->rc = err_set(m->err, ERR_REFUSED, "gguf metadata %s holds numbers to %d, not %zu", key_of(m, name), INT32_MAX,
				value);
	else
		gguf_kv_u32(m->kv, key_of(m, name), (uint32_t)value);
}

static void put_number(struct meta *m, const char *name, double value)
{
	gguf_kv_f32(m->kv, key_of(m, name), (float)value);
}

static void put_general(struct meta *m, const struct gguf_about *about)
{
	gguf_kv_string(m->kv, "general.architecture", m->arch);
	gguf_kv_string(m->kv, "general.type", "model");
	gguf_kv_string(m->kv, "general.name", about->name);
	gguf_kv_u32(m->kv, "general.alignment", GGUF_ALIGNMENT);
	gguf_kv_u32(m->kv, "general.file_type", gguf_file_type(about->most));
	gguf_kv_u32(m->kv, "general.quantization_version", QUANTIZATION_VERSION);
}

static void put_sizes(struct meta *m, const struct model_config *mc)
{
	put_size(m, "block_count", mc->layers);
	put_size(m, "context_length", mc->max_position);
	put_size(m, "embedding_length", mc->hidden);
	put_size(m, "feed_forward_length", mc->intermediate);
	put_size(m, "vocab_size", mc->vocab);
	put_size(m, "attention.head_count", mc->heads);
	put_size(m, "attention.head_count_kv", mc->kv_heads);
	put_size(m, "attention.key_length", mc->head_dim);
	put_size(m, "attention.value_length", mc->head_dim);
	put_number(m, "attention.layer_norm_rms_epsilon", mc->rms_eps);
}

static void put_rope(struct meta *m, const struct model_config *mc)
{
	put_size(m, "rope.dimension_count", mc->head_dim);
	put_number(m, "rope.freq_base", mc->rope.theta);
	if (mc->rope.type != ROPE_LINEAR)
		return;
	gguf_kv_string(m->kv, key_of(m, "rope.scaling.type"), "linear");
	put_number(m, "rope.scaling.factor", mc->rope.factor);
}

int gguf_meta_model(struct gguf_kv *kv, const struct model_config *mc, const struct gguf_about *about,
		    struct err *err)
{
	struct meta m = { .kv = kv, .arch = architecture_of(mc), .err = err };

	if (gguf_check_model(mc, NULL) != 0)
		return err_set(err, ERR_REFUSED, "gguf cannot describe this model of type %s", mc->family);
	put_general(&m, about);
	put_sizes(&m, mc);
	put_rope(&m, mc);
	if (about->config_text)
		gguf_kv_string(kv, GGUF_CONFIG_KEY, about->config_text);
	return m.rc;
}

int gguf_meta_carried(struct gguf_kv *kv, const struct gguf_carried *c, struct err *err)
{
	if (!c->text)
		return 0;
	if (c->len > GGUF_CARRIED_MAX)
		return err_set(err, ERR_REFUSED, "gguf carries %s whole, and it has %zu bytes; at most %zu are written", c->file, c->len,
			       GGUF_CARRIED_MAX);
	gguf_kv_text(kv, c->key, c->text, c->len);
	return 0;
}

/* --- rope ---------------------------------------------------------------------------------------- */

size_t gguf_rope_count(const struct model_config *mc)
{
	return mc->rope.type == ROPE_LLAMA3 ? mc->head_dim / 2 : 0;
}

/* What each frequency is divided by. */
void gguf_rope_factors(const struct model_config *mc, float *out)
{
	const struct rope_config *r = &mc->rope;
	const double pi = 3.14159265358979323846;

	for (size_t i = 0; i < gguf_rope_count(mc); i++) {
		const double wavelength = 2 * pi * pow(r->theta, 2 * (double)i / (double)mc->head_dim);
		const double turns = r->original_max_position / wavelength;
		const double t = (turns - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);

		if (turns > r->high_freq_factor)
			out[i] = 1;
		else if (turns < r->low_freq_factor)
			out[i] = (float)r->factor;
		else
			out[i] = (float)(1 / ((1 - t) / r->factor + t));
	}
}

/* --- names --------------------------------------------------------------------------------------- */

static const struct { const char *source, *name; } outside[] = {
	{ MODEL_EMBED_NAME, "token_embd.weight" },
	{ MODEL_FINAL_NORM_NAME, "output_norm.weight" },
	{ MODEL_HEAD_NAME, "output.weight" },
};

static const struct { const char *source, *name; } inside[] = {
	{ "input_layernorm", "attn_norm" },
	{ "post_attention_layernorm", "ffn_norm" },
	{ "self_attn.q_proj", "attn_q" },
	{ "self_attn.k_proj", "attn_k" },
	{ "self_attn.v_proj", "attn_v" },
	{ "self_attn.o_proj", "attn_output" },
	{ "self_attn.q_norm", "attn_q_norm" },
	{ "self_attn.k_norm", "attn_k_norm" },
	{ "mlp.gate_proj", "ffn_gate" },
	{ "mlp.up_proj", "ffn_up" },
	{ "mlp.down_proj", "ffn_down" },
};

static int name_in_block(const char *source, unsigned long layer, const char *rest, struct gguf_place *out)
{
	const char *kind = strrchr(rest, '.');

	if (!kind || (strcmp(kind, ".weight") != 0 && strcmp(kind, ".bias") != 0))
		return -1;
	for (size_t i = 0; i < sizeof(inside) / sizeof(inside[0]); i++) {
		const size_t len = strlen(inside[i].source);

		if (len != (size_t)(kind - rest) || memcmp(inside[i].source, rest, len) != 0)
			continue;
		out->plain = kind[1] == 'b' || strstr(source, "norm.") != NULL;
		snprintf(out->name, sizeof(out->name), "blk.%lu.%s%s", layer, inside[i].name, kind);
		return 0;
	}
	return -1;
}

static size_t heads_of(const struct model_config *mc, const char *rest)
{
	if (!is_llama(mc))
		return 0;
	if (strncmp(rest, "self_attn.q_proj.", 17) == 0)
		return mc->heads;
	return strncmp(rest, "self_attn.k_proj.", 17) == 0 ? mc->kv_heads : 0;
}

int gguf_place_of(const struct model_config *mc, const char *source_name, struct gguf_place *out)
{
	char canonical[64];
	unsigned long layer;
	const char *rest;
	int used = 0;

	memset(out, 0, sizeof(*out));
	for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
		if (strcmp(source_name, outside[i].source) != 0)
			continue;
		snprintf(out->name, sizeof(out->name), "%s", outside[i].name);
		out->plain = strcmp(source_name, MODEL_FINAL_NORM_NAME) == 0;
		return 0;
	}
	if (sscanf(source_name, "model.layers.%9lu.%n", &layer, &used) != 1 || used == 0 || layer >= mc->layers)
		return -1;
	snprintf(canonical, sizeof(canonical), "model.layers.%lu.", layer);
	if (strncmp(source_name, canonical, strlen(canonical)) != 0) /* signs and leading zeros */
		return -1;
	rest = source_name + used;
	out->heads = heads_of(mc, rest);
	return name_in_block(source_name, layer, rest, out);
}
