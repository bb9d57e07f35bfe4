/* model_config.c - reads config.json into one shape and refuses what the forward pass lacks.
 *
 * Invariants of a configuration that was accepted:
 *  1. All sizes are positive and within the limits below, so that no product of two of them
 *     overflows and a hostile file cannot ask for absurd work.
 *  2. heads % kv_heads == 0, head_dim is even.
 *  3. Every option that would change the forward pass has a value that Quarry implements.
 * Keys that only matter for training or generation are not looked at. The rope keys are in
 * model_rope.c.
 */
#include "common/model_config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/findings.h"
#include "common/json.h"
#include "common/model_family.h"
#include "common/model_rope.h"
#include "common/utf8.h"

enum {
	LAYERS_MAX = 4096, HEADS_MAX = 4096, HEAD_DIM_MAX = 4096, WIDTH_MAX = 1 << 20,
	VOCAB_MAX = 1 << 24, POSITION_MAX = 1 << 30,
};

/* Present and not null. */
static const struct json *given(const struct json *config, const char *key)
{
	const struct json *value = json_get(config, key);

	return json_type(value) == JSON_NULL ? NULL : value;
}

/* --- values ------------------------------------------------------------------- */

/* An integer of 1..max; `otherwise` when not given, where 0 means that it must be. */
static size_t read_size(struct findings *f, const struct json *config, const char *key, size_t max,
			size_t otherwise)
{
	const struct json *value = given(config, key);
	int64_t number;

	if (!value && otherwise)
		return otherwise;
	if (value && json_int(value, &number) && number >= 1 && (uint64_t)number <= max)
		return (size_t)number;
	findings_add(f, ERR_INVALID, "\"%s\" %s an integer from 1 to %zu", key,
		     value ? "must be" : "is missing; it must be", max);
	return 1;
}

static bool read_bool(struct findings *f, const struct json *config, const char *key, bool otherwise)
{
	const struct json *value = given(config, key);

	if (value && json_type(value) != JSON_BOOL)
		findings_add(f, ERR_INVALID, "\"%s\" must be true or false", key);
	return json_bool(value, otherwise);
}

static void read_head_dim(struct findings *f, struct model_config *mc, const struct json *config,
			  const struct model_family *family)
{
	bool derived = family->default_head_dim == 0 || json_get(config, "head_dim"); /* null: derived */
	size_t otherwise = derived ? mc->hidden / mc->heads : family->default_head_dim;

	if (derived && !given(config, "head_dim") && f->count == 0 && mc->hidden % mc->heads != 0)
		findings_add(f, ERR_INVALID, "\"hidden_size\" %zu is not a multiple of "
			     "\"num_attention_heads\" %zu, and there is no \"head_dim\"",
			     mc->hidden, mc->heads);
	mc->head_dim = read_size(f, config, "head_dim", HEAD_DIM_MAX, otherwise ? otherwise : 1);
}

static void read_sizes(struct findings *f, struct model_config *mc, const struct json *config,
		       const struct model_family *family)
{
	unsigned before = f->count;
	size_t kv_default = family->default_kv_heads;

	mc->layers = read_size(f, config, "num_hidden_layers", LAYERS_MAX, 0);
	mc->hidden = read_size(f, config, "hidden_size", WIDTH_MAX, 0);
	mc->intermediate = read_size(f, config, "intermediate_size", WIDTH_MAX, 0);
	mc->heads = read_size(f, config, "num_attention_heads", HEADS_MAX, 0);
	if (kv_default == 0 || json_get(config, "num_key_value_heads"))
		kv_default = mc->heads; /* what the families make of null */
	mc->kv_heads = read_size(f, config, "num_key_value_heads", HEADS_MAX, kv_default);
	mc->vocab = read_size(f, config, "vocab_size", VOCAB_MAX, 0);
	mc->max_position = read_size(f, config, "max_position_embeddings", POSITION_MAX,
				     family->default_max_position);
	read_head_dim(f, mc, config, family);
	if (f->count > before)
		return;
	if (mc->heads % mc->kv_heads != 0)
		findings_add(f, ERR_INVALID, "\"num_attention_heads\" %zu must be a multiple of "
			     "\"num_key_value_heads\" %zu", mc->heads, mc->kv_heads);
	if (mc->head_dim % 2 != 0 || mc->head_dim > HEAD_DIM_MAX)
		findings_add(f, ERR_INVALID, "\"head_dim\" %zu must be even and at most %d", mc->head_dim,
			     HEAD_DIM_MAX);
	if (mc->heads * mc->head_dim > WIDTH_MAX)
		findings_add(f, ERR_INVALID, "\"num_attention_heads\" times \"head_dim\" is %zu; at most %d "
			     "is accepted", mc->heads * mc->head_dim, WIDTH_MAX);
}

static void read_eps(struct findings *f, struct model_config *mc, const struct json *config)
{
	const struct json *value = given(config, "rms_norm_eps");

	mc->rms_eps = value ? json_number(value, -1) : 1e-6;
	if (!(mc->rms_eps > 0 && mc->rms_eps < 1))
		findings_add(f, ERR_INVALID, "\"rms_norm_eps\" must be a number above 0 and below 1");
}

/* "dtype", formerly "torch_dtype". */
static void read_dtype(struct findings *f, struct model_config *mc, const struct json *config)
{
	static const char *const known[] = { "bfloat16", "float16", "float32" };
	char shown[UTF8_SHOWN_MAX];
	const char *key = given(config, "dtype") ? "dtype" : "torch_dtype";
	const struct json *value = given(config, key);
	const char *name = value ? json_string(value, "") : "bfloat16";

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		if (strcmp(name, known[i]) == 0) {
			snprintf(mc->dtype, sizeof(mc->dtype), "%s", name);
			return;
		}
	}
	findings_add(f, ERR_UNSUPPORTED, "\"%s\" is \"%s\"; supported are bfloat16, float16 and float32", key,
		     utf8_show(shown, name));
}

static void read_biases(struct findings *f, struct model_config *mc, const struct json *config,
			const struct model_family *family)
{
	bool attention = read_bool(f, config, "attention_bias", false);
	bool mlp = read_bool(f, config, "mlp_bias", false);

	switch (family->attention_bias) {
	case BIAS_NONE:
		if (attention)
			findings_add(f, ERR_UNSUPPORTED, "\"attention_bias\" is true, which the family %s "
				     "does not have", family->model_type);
		break;
	case BIAS_OPTION:
		mc->qkv_bias = mc->o_bias = attention;
		break;
	case BIAS_QKV:
		mc->qkv_bias = true;
		break;
	}
	mc->mlp_bias = mlp && family->mlp_bias_option;
	if (mlp && !family->mlp_bias_option)
		findings_add(f, ERR_UNSUPPORTED, "\"mlp_bias\" is true, which the family %s does not have",
			     family->model_type);
}

/* --- what is refused ---------------------------------------------------------- */

/* Keys that change the forward pass of some model, with the value at which they do not. */
static const struct neutral { const char *key; double value; const char *what; } neutrals[] = {
	{ "num_experts", 0, "mixtures of experts are" },
	{ "num_local_experts", 0, "mixtures of experts are" },
	{ "n_routed_experts", 0, "mixtures of experts are" },
	{ "moe_intermediate_size", 0, "mixtures of experts are" },
	{ "logit_scale", 1, "logit scaling is" },
	{ "logits_scaling", 1, "logit scaling is" },
	{ "final_logit_softcapping", 0, "logit soft-capping is" },
	{ "attn_logit_softcapping", 0, "attention soft-capping is" },
	{ "query_pre_attn_scalar", 0, "another attention scale is" },
	{ "attention_multiplier", 0, "another attention scale is" },
	{ "embedding_multiplier", 1, "embedding scaling is" },
	{ "scale_emb", 1, "embedding scaling is" },
	{ "residual_multiplier", 1, "residual scaling is" },
	{ "scale_depth", 0, "residual scaling is" },
	{ "partial_rotary_factor", 1, "partial rotary embedding is" },
	{ "rotary_pct", 1, "partial rotary embedding is" },
	{ "attention_chunk_size", 0, "chunked attention is" },
	{ "no_rope_layers", 0, "layers without rotary embedding are" },
	{ "alibi", 0, "ALiBi is" },
	{ "use_mrope", 0, "multi-dimensional rotary embedding is" },
	{ "use_qk_norm", 0, "this spelling of q/k norms is" },
	{ "is_encoder_decoder", 0, "encoder-decoder models are" },
	{ "add_cross_attention", 0, "cross attention is" },
	{ "quantization_config", 0, "already quantized checkpoints are" },
	{ "compression_config", 0, "already quantized checkpoints are" },
	{ "vision_config", 0, "vision models are" },
};

static bool is_neutral(const struct json *value, double neutral)
{
	switch (json_type(value)) {
	case JSON_NULL:
		return true;
	case JSON_BOOL:
		return !json_bool(value, false);
	case JSON_NUMBER:
		return json_number(value, NAN) == neutral;
	case JSON_STRING:
		return false;
	case JSON_ARRAY:
		return json_size(value) == 0;
	case JSON_OBJECT:
		return false;
	}
	return false;
}

static void refuse_options(struct findings *f, const struct json *config)
{
	char shown[UTF8_SHOWN_MAX];
	const struct json *act = given(config, "hidden_act");
	const char *name = act ? json_string(act, "?") : "silu";

	for (size_t i = 0; i < sizeof(neutrals) / sizeof(neutrals[0]); i++)
		if (!is_neutral(json_get(config, neutrals[i].key), neutrals[i].value))
			findings_add(f, ERR_UNSUPPORTED, "\"%s\" is set: %s not supported", neutrals[i].key,
				     neutrals[i].what);
	if (strcmp(name, "silu") != 0 && strcmp(name, "swish") != 0)
		findings_add(f, ERR_UNSUPPORTED, "\"hidden_act\" is \"%s\"; only \"silu\" is supported",
			     utf8_show(shown, name));
}

static void refuse_layer_types(struct findings *f, const struct json *config, size_t layers)
{
	const struct json *types = given(config, "layer_types");
	char shown[UTF8_SHOWN_MAX];

	if (!types)
		return;
	if (json_type(types) != JSON_ARRAY || json_size(types) != layers) {
		findings_add(f, ERR_INVALID, "\"layer_types\" must be an array of %zu names, one a layer",
			     layers);
		return;
	}
	for (const struct json *t = json_first(types); t; t = json_next(t)) {
		if (strcmp(json_string(t, "?"), "full_attention") == 0)
			continue;
		findings_add(f, ERR_UNSUPPORTED, "\"layer_types\" holds \"%s\"; only \"full_attention\" is "
			     "supported", utf8_show(shown, json_string(t, "?")));
		return;
	}
}

/* A window as long as the longest context, or one that no layer uses, changes nothing. */
static void refuse_window(struct findings *f, const struct model_config *mc, const struct json *config,
			  const struct model_family *family)
{
	const struct json *key = json_get(config, "sliding_window");
	const char *what = key ? "\"sliding_window\"" : "the family's default \"sliding_window\"";
	bool by_switch = family->window == WINDOW_SWITCH;
	size_t window;

	if (family->window == WINDOW_NEVER || (key && json_type(key) == JSON_NULL))
		return;
	if (by_switch && !read_bool(f, config, "use_sliding_window", false))
		return;
	if (by_switch && read_size(f, config, "max_window_layers", POSITION_MAX, 28) >= mc->layers)
		return;
	window = read_size(f, config, "sliding_window", (size_t)1 << 40, family->default_window);
	if (window < mc->max_position)
		findings_add(f, ERR_UNSUPPORTED, "%s of %zu is shorter than \"max_position_embeddings\" %zu: "
			     "sliding-window attention is not supported (null, or a window at least that "
			     "long, is accepted)", what, window, mc->max_position);
}

/* --- the whole ---------------------------------------------------------------- */

static const struct model_family *read_family(struct findings *f, struct model_config *mc,
					      const struct json *config)
{
	char shown[UTF8_SHOWN_MAX];
	const char *type = json_get_string(config, "model_type", "");
	const struct model_family *family = model_family_find(type);
	const struct json *architectures = given(config, "architectures");
	const char *architecture;

	if (!family) {
		findings_add(f, ERR_UNSUPPORTED, "\"model_type\" is \"%s\"; supported are llama, mistral, "
			     "qwen2 and qwen3", utf8_show(shown, type));
		return NULL;
	}
	architecture = architectures ? json_string(json_first(architectures), "") : family->architecture;
	if (strcmp(architecture, family->architecture) != 0)
		findings_add(f, ERR_UNSUPPORTED, "\"architectures\" begins with \"%s\"; for \"model_type\" "
			     "\"%s\" "
			     "only %s is supported", utf8_show(shown, architecture), family->model_type,
			     family->architecture);
	snprintf(mc->family, sizeof(mc->family), "%s", family->model_type);
	snprintf(mc->architecture, sizeof(mc->architecture), "%s", family->architecture);
	return family;
}

static void read_config(struct findings *f, struct model_config *mc, const struct json *config)
{
	const struct model_family *family = read_family(f, mc, config);

	if (family) {
		read_sizes(f, mc, config, family);
		read_biases(f, mc, config, family);
		refuse_window(f, mc, config, family);
		refuse_layer_types(f, config, mc->layers);
		mc->qk_norm = family->qk_norm;
	}
	read_eps(f, mc, config);
	read_dtype(f, mc, config);
	mc->tied_embeddings = read_bool(f, config, "tie_word_embeddings", false);
	model_rope_read(f, &mc->rope, config);
	refuse_options(f, config);
}

int model_config_parse(struct model_config *mc, const char *json_text, size_t len,
		       struct problems *problems, struct err *err)
{
	struct findings f = { .list = problems, .err = err, .where = "config.json" };
	struct err reason = ERR_INIT;
	struct json *config;

	*mc = (struct model_config){ 0 };
	config = json_parse(json_text, len, &reason);
	if (!config) {
		err_prefix(&reason, "config.json");
		return findings_add_err(&f, &reason);
	}
	if (json_type(config) == JSON_OBJECT)
		read_config(&f, mc, config);
	else
		findings_add(&f, ERR_INVALID, "must be a JSON object");
	json_free(config);
	return findings_result(&f);
}
