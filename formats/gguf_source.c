#include "formats/gguf_source.h"

#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "common/utf8.h"

enum { LAYERS_MAX = 1 << 20, KEY_MAX = 80 };

static bool is_text(struct gr_text text, const char *wanted)
{
	return text.len == strlen(wanted) && memcmp(text.at, wanted, text.len) == 0;
}

/* --- the model ----------------------------------------------------------------------------------- */

static const char *const known[] = { "llama", "qwen2", "qwen3" };

static const char *architecture(const struct gr_file *g, struct err *err)
{
	struct gr_text text;

	if (!gr_string(g, "general.architecture", &text)) {
		err_set(err, ERR_CORRUPT, "the gguf file does not say its architecture (general.architecture)");
		return NULL;
	}
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (is_text(text, known[i]))
			return known[i];
	err_set(err, ERR_UNSUPPORTED, "the gguf file is of another architecture than llama, qwen2 and qwen3");
	return NULL;
}

static int read_count(const struct gr_file *g, const char *arch, const char *name, uint64_t otherwise, uint64_t *out,
		      struct err *err)
{
	char key[KEY_MAX];

	snprintf(key, sizeof(key), "%s.%s", arch, name);
	if (!gr_pair(g, key) && otherwise > 0) {
		*out = otherwise;
		return 0;
	}
	if (!gr_u64(g, key, out) || *out == 0 || *out > LAYERS_MAX)
		return err_set(err, ERR_CORRUPT, "the gguf file's %s is not an integer of 1 to %d", key, LAYERS_MAX);
	return 0;
}

int gs_model(const struct gr_file *g, struct gs_model *out, struct err *err)
{
	const char *arch = architecture(g, err);

	if (!arch)
		return -1;
	out->reordered = arch == known[0];
	if (read_count(g, arch, "block_count", 0, &out->layers, err) != 0 ||
	    read_count(g, arch, "attention.head_count", 0, &out->heads, err) != 0)
		return -1;
	return read_count(g, arch, "attention.head_count_kv", out->heads, &out->kv_heads, err);
}

bool gs_config(const struct gr_file *g, struct gr_text *out)
{
	return gr_string(g, "quarry.source_config", out);
}

/* --- small files --------------------------------------------------------------------------------- */

static const struct carried { const char *file, *key; bool json; } carried[] = {
	{ "tokenizer.json", "tokenizer.huggingface.json", true },
	{ "tokenizer_config.json", "quarry.source_tokenizer_config", true },
	{ "generation_config.json", "quarry.source_generation_config", true },
	{ "chat_template.jinja", "quarry.source_chat_template", false },
};

bool gs_text(const struct gr_file *g, const char *file, struct gr_text *out)
{
	for (size_t i = 0; i < sizeof(carried) / sizeof(carried[0]); i++)
		if (strcmp(carried[i].file, file) == 0)
			return gr_string(g, carried[i].key, out);
	return false;
}

static int check_object(const char *key, struct gr_text text, struct err *err)
{
	struct json *value = json_parse(text.at, text.len, err);
	const bool object = json_type(value) == JSON_OBJECT;

	json_free(value);
	if (!value)
		return err_prefix(err, "the gguf file's %s", key);
	return object ? 0 : err_set(err, ERR_CORRUPT, "the gguf file's %s is not a JSON object", key);
}

static int check_text(const struct gr_file *g, const struct carried *c, struct err *err)
{
	struct gr_text text;

	if (!gr_pair(g, c->key))
		return 0;
	if (!gr_string(g, c->key, &text))
		return err_set(err, ERR_CORRUPT, "the gguf file's %s is not a string", c->key);
	if (text.len > GS_TEXT_MAX)
		return err_set(err, ERR_TOO_LARGE, "the gguf file's %s has %zu bytes; at most %zu are accepted", c->key, text.len,
			       GS_TEXT_MAX);
	return c->json ? check_object(c->key, text, err) : 0;
}

int gs_check_texts(const struct gr_file *g, struct err *err)
{
	for (size_t i = 0; i < sizeof(carried) / sizeof(carried[0]); i++)
		if (check_text(g, &carried[i], err) != 0)
			return -1;
	return 0;
}

/* --- tensors ------------------------------------------------------------------------------------- */

static const char *const whole_names[][2] = {
	{ "token_embd.weight", "model.embed_tokens.weight" },
	{ "output_norm.weight", "model.norm.weight" },
	{ "output.weight", "lm_head.weight" },
};

static const char *const block_names[][2] = {
	{ "attn_norm.", "input_layernorm." },
	{ "attn_q.", "self_attn.q_proj." },
	{ "attn_k.", "self_attn.k_proj." },
	{ "attn_v.", "self_attn.v_proj." },
	{ "attn_output.", "self_attn.o_proj." },
	{ "attn_q_norm.", "self_attn.q_norm." },
	{ "attn_k_norm.", "self_attn.k_norm." },
	{ "ffn_norm.", "post_attention_layernorm." },
	{ "ffn_gate.", "mlp.gate_proj." },
	{ "ffn_up.", "mlp.up_proj." },
	{ "ffn_down.", "mlp.down_proj." },
};

static bool whole_name(const char *name, struct gs_tensor *out)
{
	for (size_t i = 0; i < sizeof(whole_names) / sizeof(whole_names[0]); i++) {
		if (strcmp(name, whole_names[i][0]) != 0)
			continue;
		snprintf(out->name, sizeof(out->name), "%s", whole_names[i][1]);
		return true;
	}
	return false;
}

/* "blk.<i>.": the rest of the name, or NULL. */
static const char *after_block(const char *name, uint64_t layers, unsigned long *layer)
{
	char again[32];
	int used = 0;

	if (sscanf(name, "blk.%9lu.%n", layer, &used) != 1 || used == 0 || *layer >= layers)
		return NULL;
	snprintf(again, sizeof(again), "blk.%lu.", *layer);
	return strncmp(name, again, strlen(again)) == 0 ? name + strlen(again) : NULL;
}

static bool block_name(const struct gs_model *m, const char *name, struct gs_tensor *out)
{
	unsigned long layer;
	const char *rest = after_block(name, m->layers, &layer);

	for (size_t i = 0; rest && i < sizeof(block_names) / sizeof(block_names[0]); i++) {
		const size_t len = strlen(block_names[i][0]);
		const char *kind = rest + len;

		if (strncmp(rest, block_names[i][0], len) != 0)
			continue;
		if (strcmp(kind, "weight") != 0 && strcmp(kind, "bias") != 0)
			return false;
		if (m->reordered && strcmp(block_names[i][0], "attn_q.") == 0)
			out->heads = m->heads;
		if (m->reordered && strcmp(block_names[i][0], "attn_k.") == 0)
			out->heads = m->kv_heads;
		snprintf(out->name, sizeof(out->name), "model.layers.%lu.%s%s", layer, block_names[i][1], kind);
		return true;
	}
	return false;
}

int gs_tensor(const struct gs_model *m, const struct gr_tensor *t, struct gs_tensor *out, struct err *err)
{
	char shown[UTF8_SHOWN_MAX];

	memset(out, 0, sizeof(*out));
	if (strcmp(t->name, "rope_freqs.weight") == 0)
		return 1;
	if (!whole_name(t->name, out) && !block_name(m, t->name, out))
		return err_set(err, ERR_UNSUPPORTED, "gguf tensor %s is none that a model of this architecture has",
			       utf8_show(shown, t->name));
	if (t->ndim > 2)
		return err_set(err, ERR_CORRUPT, "gguf tensor %s has %u dimensions; 1 or 2 are right", utf8_show(shown, t->name),
			       t->ndim);
	out->ndim = t->ndim;
	out->rows = t->ndim == 2 ? t->ne[1] : 1;
	out->cols = t->ne[0];
	if (out->heads && (t->ndim == 2 ? out->rows : out->cols) % (2 * out->heads) != 0)
		return err_set(err, ERR_CORRUPT, "gguf tensor %s does not have the rows of %llu heads", utf8_show(shown, t->name),
			       (unsigned long long)out->heads);
	return 0;
}

/* Row h hd + 2 i + j of the file is row h hd + j hd/2 + i of the checkpoint, i < hd/2, j = 0, 1. */
uint64_t gs_row(const struct gs_tensor *t, uint64_t row)
{
	uint64_t size, head, i, j;

	if (t->heads == 0)
		return row;
	size = (t->ndim == 2 ? t->rows : t->cols) / t->heads;
	head = row / size;
	i = row % size / 2;
	j = row % 2;
	return head * size + j * (size / 2) + i;
}
