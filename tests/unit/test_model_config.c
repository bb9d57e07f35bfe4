/* config.json: both spellings of every family give the right struct; whatever would change the
 * forward pass is refused by name; hostile sizes do not get through. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/findings.h"
#include "common/model_config.h"

/* A good configuration in which a case replaces or adds members: `change` is put in front, and a
 * member of the base with the same key is left out. */
static const char *const bases[][2] = {
	{ "llama",
	  "\"model_type\":\"llama\"|\"architectures\":[\"LlamaForCausalLM\"]|\"hidden_size\":64|"
	  "\"intermediate_size\":128|\"num_hidden_layers\":2|\"num_attention_heads\":4|"
	  "\"num_key_value_heads\":2|\"vocab_size\":100|\"max_position_embeddings\":2048|"
	  "\"rms_norm_eps\":1e-05|\"hidden_act\":\"silu\"|\"rope_theta\":10000.0|"
	  "\"tie_word_embeddings\":false|\"torch_dtype\":\"bfloat16\"" },
	{ "mistral",
	  "\"model_type\":\"mistral\"|\"architectures\":[\"MistralForCausalLM\"]|\"hidden_size\":64|"
	  "\"intermediate_size\":128|\"num_hidden_layers\":2|\"num_attention_heads\":4|"
	  "\"num_key_value_heads\":2|\"vocab_size\":100|\"max_position_embeddings\":32768|"
	  "\"sliding_window\":null|\"rms_norm_eps\":1e-05" },
	{ "qwen2",
	  "\"model_type\":\"qwen2\"|\"architectures\":[\"Qwen2ForCausalLM\"]|\"hidden_size\":64|"
	  "\"intermediate_size\":128|\"num_hidden_layers\":2|\"num_attention_heads\":4|"
	  "\"num_key_value_heads\":2|\"vocab_size\":100|\"max_position_embeddings\":32768|"
	  "\"sliding_window\":4096|\"use_sliding_window\":false|\"max_window_layers\":1|"
	  "\"rope_theta\":1000000.0|\"tie_word_embeddings\":true" },
	{ "qwen3",
	  "\"model_type\":\"qwen3\"|\"architectures\":[\"Qwen3ForCausalLM\"]|\"hidden_size\":64|"
	  "\"intermediate_size\":128|\"num_hidden_layers\":2|\"num_attention_heads\":4|"
	  "\"num_key_value_heads\":2|\"head_dim\":32|\"vocab_size\":100|\"max_position_embeddings\":4096|"
	  "\"rope_parameters\":{\"rope_theta\":1000000.0,\"rope_type\":\"default\"}|\"dtype\":\"float16\"" },
};

/* Whether `change` sets the key that `member` ("\"key\":value") begins with, at its top level. */
static bool replaces(const char *change, const char *member)
{
	char key[80];
	size_t len = strcspn(member, ":") + 1;
	const char *at;

	snprintf(key, sizeof(key), "%.*s", (int)len, member);
	at = strstr(change, key);
	return at && (at == change || at[-1] == ',' || at[-1] == '~');
}

/* `change` is JSON members; "~\"key\":" (a tilde) only removes the key. */
static void make_config(const char *family, const char *change, char out[4096])
{
	const char *base = NULL;
	char copy[2048], *save = NULL;
	bool removes = change[0] == '~';

	for (size_t i = 0; i < sizeof(bases) / sizeof(bases[0]); i++)
		if (strcmp(bases[i][0], family) == 0)
			base = bases[i][1];
	assert_non_null(base);
	snprintf(copy, sizeof(copy), "%s", base);
	strcpy(out, "{");
	for (char *m = strtok_r(copy, "|", &save); m; m = strtok_r(NULL, "|", &save)) {
		if (replaces(change, m))
			continue;
		if (out[1])
			strcat(out, ",");
		strcat(out, m);
	}
	if (change[0] && !removes) {
		strcat(out, ",");
		strcat(out, change);
	}
	strcat(out, "}");
}

static int parse(const char *family, const char *change, struct model_config *mc, struct err *err)
{
	char text[4096];

	make_config(family, change, text);
	return model_config_parse(mc, text, strlen(text), NULL, err);
}

static void parse_good(const char *family, const char *change, struct model_config *mc)
{
	struct err err = ERR_INIT;

	if (parse(family, change, mc, &err) != 0)
		fail_msg("%s with %s: %s", family, change, err.text);
}

/* --- families ----------------------------------------------------------------- */

static void test_llama(void **state)
{
	struct model_config mc;

	(void)state;
	parse_good("llama", "", &mc);
	assert_string_equal(mc.family, "llama");
	assert_string_equal(mc.architecture, "LlamaForCausalLM");
	assert_int_equal(mc.layers, 2);
	assert_int_equal(mc.hidden, 64);
	assert_int_equal(mc.intermediate, 128);
	assert_int_equal(mc.heads, 4);
	assert_int_equal(mc.kv_heads, 2);
	assert_int_equal(mc.head_dim, 16);
	assert_int_equal(mc.vocab, 100);
	assert_int_equal(mc.max_position, 2048);
	assert_true(mc.rms_eps == 1e-5);
	assert_false(mc.tied_embeddings || mc.qkv_bias || mc.o_bias || mc.mlp_bias || mc.qk_norm);
	assert_string_equal(mc.dtype, "bfloat16");
	assert_int_equal(mc.rope.type, ROPE_DEFAULT);
	assert_true(mc.rope.theta == 10000);
	parse_good("llama", "\"attention_bias\":true,\"mlp_bias\":true", &mc);
	assert_true(mc.qkv_bias && mc.o_bias && mc.mlp_bias);
	parse_good("llama", "\"sliding_window\":128", &mc); /* the family has no window: no effect */
	parse_good("llama", "~\"num_key_value_heads\":", &mc);
	assert_int_equal(mc.kv_heads, 4);
	parse_good("llama", "\"num_key_value_heads\":null", &mc);
	assert_int_equal(mc.kv_heads, 4);
	parse_good("llama", "\"head_dim\":24", &mc);
	assert_int_equal(mc.head_dim, 24);
	parse_good("llama", "~\"max_position_embeddings\":", &mc);
	assert_int_equal(mc.max_position, 2048);
	parse_good("llama", "~\"rms_norm_eps\":", &mc);
	assert_true(mc.rms_eps == 1e-6);
	parse_good("llama", "~\"architectures\":", &mc);
	assert_string_equal(mc.architecture, "LlamaForCausalLM");
}

static void test_mistral(void **state)
{
	struct model_config mc;

	(void)state;
	parse_good("mistral", "", &mc);
	assert_false(mc.qkv_bias || mc.o_bias || mc.qk_norm);
	assert_true(mc.rope.theta == 10000);
	assert_string_equal(mc.dtype, "bfloat16");
	parse_good("mistral", "\"sliding_window\":32768", &mc);
	parse_good("mistral", "\"sliding_window\":4096,\"max_position_embeddings\":4096", &mc);
	parse_good("mistral", "\"num_attention_heads\":16,\"num_key_value_heads\":8,\"head_dim\":128", &mc);
	assert_int_equal(mc.head_dim, 128);
}

static void test_qwen2(void **state)
{
	struct model_config mc;

	(void)state;
	parse_good("qwen2", "", &mc);
	assert_true(mc.qkv_bias && mc.tied_embeddings);
	assert_false(mc.o_bias || mc.mlp_bias || mc.qk_norm);
	assert_true(mc.rope.theta == 1e6);
	parse_good("qwen2", "~\"use_sliding_window\":", &mc);
	parse_good("qwen2", "\"use_sliding_window\":true,\"sliding_window\":null", &mc);
	parse_good("qwen2", "\"use_sliding_window\":true,\"sliding_window\":32768", &mc);
	parse_good("qwen2", "\"use_sliding_window\":true,\"max_window_layers\":2", &mc);
	parse_good("qwen2", "\"use_mrope\":false", &mc);
}

static void test_qwen3(void **state)
{
	struct model_config mc;

	(void)state;
	parse_good("qwen3", "", &mc);
	assert_true(mc.qk_norm);
	assert_false(mc.qkv_bias);
	assert_int_equal(mc.head_dim, 32);
	assert_string_equal(mc.dtype, "float16");
	assert_true(mc.rope.theta == 1e6);
	parse_good("qwen3", "~\"head_dim\":", &mc);
	assert_int_equal(mc.head_dim, 128);
	parse_good("qwen3", "\"head_dim\":null", &mc);
	assert_int_equal(mc.head_dim, 16);
	parse_good("qwen3", "\"attention_bias\":true", &mc);
	assert_true(mc.qkv_bias && mc.o_bias);
	parse_good("qwen3", "\"layer_types\":[\"full_attention\",\"full_attention\"]", &mc);
}

static void test_family_list(void **state)
{
	const char *const *names = model_families();

	(void)state;
	assert_string_equal(names[0], "llama");
	assert_string_equal(names[1], "mistral");
	assert_string_equal(names[2], "qwen2");
	assert_string_equal(names[3], "qwen3");
	assert_null(names[4]);
}

/* --- spellings ---------------------------------------------------------------- */

#define LLAMA3 "\"factor\":8.0,\"high_freq_factor\":4.0,\"low_freq_factor\":1.0," \
	       "\"original_max_position_embeddings\":1024"

static void assert_llama3(const char *change)
{
	struct model_config mc;

	parse_good("llama", change, &mc);
	assert_int_equal(mc.rope.type, ROPE_LLAMA3);
	assert_true(mc.rope.theta == 500000);
	assert_true(mc.rope.factor == 8 && mc.rope.high_freq_factor == 4 && mc.rope.low_freq_factor == 1);
	assert_true(mc.rope.original_max_position == 1024);
}

static void test_rope_spellings(void **state)
{
	struct model_config mc;

	(void)state;
	assert_llama3("\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\"," LLAMA3 "}");
	assert_llama3("\"rope_theta\":500000,\"rope_scaling\":{\"type\":\"llama3\"," LLAMA3 "}");
	assert_llama3("\"rope_theta\":null,\"rope_parameters\":{\"rope_theta\":500000.0,\"rope_type\":\"llama3\"," LLAMA3 "}");
	assert_llama3("\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\"," LLAMA3 "},"
		      "\"rope_parameters\":{\"rope_theta\":500000.0,\"rope_type\":\"llama3\"," LLAMA3 "}");
	assert_llama3("\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
		      "\"high_freq_factor\":4,\"low_freq_factor\":1},\"original_max_position_embeddings\":1024");
	parse_good("llama", "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}", &mc);
	assert_int_equal(mc.rope.type, ROPE_LINEAR);
	assert_true(mc.rope.factor == 2.5 && mc.rope.theta == 10000);
	parse_good("llama", "\"rope_scaling\":null", &mc);
	assert_int_equal(mc.rope.type, ROPE_DEFAULT);
	parse_good("llama", "~\"rope_theta\":", &mc);
	assert_true(mc.rope.theta == 10000);
	parse_good("llama", "\"rope_parameters\":{\"partial_rotary_factor\":1.0,\"rope_theta\":10000.0}",
		   &mc);
}

static void test_dtype_spellings(void **state)
{
	struct model_config mc;

	(void)state;
	parse_good("llama", "\"torch_dtype\":\"float16\"", &mc);
	assert_string_equal(mc.dtype, "float16");
	parse_good("llama", "\"dtype\":\"float32\"", &mc);
	assert_string_equal(mc.dtype, "float32");
	parse_good("llama", "\"torch_dtype\":null", &mc);
	assert_string_equal(mc.dtype, "bfloat16");
}

static void test_harmless_options(void **state)
{
	struct model_config mc;

	(void)state;
	parse_good("llama", "\"quantization_config\":null,\"num_experts\":0,\"logit_scale\":1.0,\"alibi\":false,"
		   "\"partial_rotary_factor\":1,\"final_logit_softcapping\":null,\"no_rope_layers\":[],"
		   "\"hidden_act\":\"swish\",\"pretraining_tp\":2,\"attention_dropout\":0.1,\"auto_map\":{}", &mc);
}

/* --- refusals ----------------------------------------------------------------- */

static const struct refusal { const char *family, *change; enum err_code code; const char *says; } refusals[] = {
	{ "llama", "\"model_type\":\"gpt2\"", ERR_UNSUPPORTED, "\"model_type\" is \"gpt2\"; supported are "
	"llama" },
	{ "llama", "\"model_type\":\"mixtral\"", ERR_UNSUPPORTED, "\"mixtral\"" },
	{ "llama", "~\"model_type\":", ERR_UNSUPPORTED, "\"model_type\" is \"\"" },
	{ "llama", "\"model_type\":5", ERR_UNSUPPORTED, "\"model_type\" is \"\"" },
	{ "llama", "\"architectures\":[\"LlamaForSequenceClassification\"]", ERR_UNSUPPORTED, "only "
	"LlamaForCausalLM" },
	{ "llama", "\"architectures\":[]", ERR_UNSUPPORTED, "\"architectures\" begins with \"\"" },
	{ "llama", "\"hidden_act\":\"gelu\"", ERR_UNSUPPORTED, "\"hidden_act\" is \"gelu\"; only \"silu\"" },
	{ "llama", "\"hidden_act\":3", ERR_UNSUPPORTED, "\"hidden_act\"" },
	{ "llama", "\"quantization_config\":{\"quant_method\":\"gptq\"}", ERR_UNSUPPORTED, "already "
	"quantized" },
	{ "llama", "\"num_experts\":8", ERR_UNSUPPORTED, "\"num_experts\" is set: mixtures of experts" },
	{ "llama", "\"num_local_experts\":8", ERR_UNSUPPORTED, "mixtures of experts" },
	{ "llama", "\"partial_rotary_factor\":0.5", ERR_UNSUPPORTED, "\"partial_rotary_factor\"" },
	{ "llama", "\"rope_parameters\":{\"partial_rotary_factor\":0.5}", ERR_UNSUPPORTED,
	"\"partial_rotary_factor\"" },
	{ "llama", "\"final_logit_softcapping\":30.0", ERR_UNSUPPORTED, "soft-capping" },
	{ "llama", "\"attn_logit_softcapping\":50.0", ERR_UNSUPPORTED, "soft-capping" },
	{ "llama", "\"logits_scaling\":8", ERR_UNSUPPORTED, "logit scaling" },
	{ "llama", "\"residual_multiplier\":0.22", ERR_UNSUPPORTED, "residual scaling" },
	{ "llama", "\"embedding_multiplier\":12", ERR_UNSUPPORTED, "embedding scaling" },
	{ "llama", "\"alibi\":true", ERR_UNSUPPORTED, "ALiBi" },
	{ "llama", "\"no_rope_layers\":[1]", ERR_UNSUPPORTED, "\"no_rope_layers\"" },
	{ "llama", "\"use_qk_norm\":true", ERR_UNSUPPORTED, "q/k norms" },
	{ "llama", "\"vision_config\":{}", ERR_UNSUPPORTED, "vision" },
	{ "llama", "\"is_encoder_decoder\":true", ERR_UNSUPPORTED, "encoder-decoder" },
	{ "llama", "\"final_logit_softcapping\":\"x\"", ERR_UNSUPPORTED, "soft-capping" },
	{ "llama", "\"layer_types\":[\"full_attention\",\"sliding_attention\"]", ERR_UNSUPPORTED,
	"\"sliding_attention\"" },
	{ "llama", "\"layer_types\":[\"full_attention\",1]", ERR_UNSUPPORTED, "\"layer_types\"" },
	{ "llama", "\"layer_types\":[\"full_attention\"]", ERR_INVALID, "array of 2 names" },
	{ "llama", "\"torch_dtype\":\"float64\"", ERR_UNSUPPORTED, "\"torch_dtype\" is \"float64\"" },
	{ "llama", "\"dtype\":\"auto\"", ERR_UNSUPPORTED, "\"dtype\" is \"auto\"" },
	{ "llama", "\"dtype\":1", ERR_UNSUPPORTED, "\"dtype\"" },
	{ "llama", "\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}", ERR_UNSUPPORTED, "\"rope_type\" "
	"is \"dynamic\"" },
	{ "llama", "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}", ERR_UNSUPPORTED, "\"yarn\"" },
	{ "llama", "\"rope_scaling\":{\"rope_type\":\"longrope\"}", ERR_UNSUPPORTED, "\"longrope\"" },
	{ "llama", "\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1}}", ERR_UNSUPPORTED, "per "
	"layer type (\"full_attention\")" },
	{ "llama", "\"rope_scaling\":[1]", ERR_INVALID, "\"rope_scaling\" must be an object or null" },
	{ "llama", "\"rope_scaling\":{\"type\":\"linear\"}", ERR_INVALID, "\"factor\" of the rotary "
	"embedding is missing" },
	{ "llama", "\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}", ERR_INVALID, "at least 1" },
	{ "llama", "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}", ERR_INVALID,
	"\"low_freq_factor\" of the rotary embedding is missing" },
	{ "llama", "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":1,\"original_max_position_embeddings\":8}", ERR_INVALID, "must be above" },
	{ "llama", "\"rope_theta\":0", ERR_INVALID, "\"rope_theta\"" },
	{ "llama", "\"rope_theta\":\"big\"", ERR_INVALID, "\"rope_theta\"" },
	{ "llama", "\"rope_parameters\":{\"rope_theta\":7}", ERR_INVALID, "10000 at the top and 7 in "
	"\"rope_parameters\"" },
	{ "llama", "\"rope_parameters\":{\"rope_theta\":10000},\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}", ERR_INVALID, "contradict" },
	{ "llama", "\"rope_parameters\":{\"type\":\"linear\",\"factor\":4},\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}", ERR_INVALID, "contradict" },
	{ "llama", "~\"hidden_size\":", ERR_INVALID, "\"hidden_size\" is missing" },
	{ "llama", "~\"vocab_size\":", ERR_INVALID, "\"vocab_size\" is missing" },
	{ "llama", "\"hidden_size\":0", ERR_INVALID, "\"hidden_size\" must be an integer from 1" },
	{ "llama", "\"hidden_size\":-64", ERR_INVALID, "\"hidden_size\"" },
	{ "llama", "\"hidden_size\":64.5", ERR_INVALID, "\"hidden_size\"" },
	{ "llama", "\"hidden_size\":\"64\"", ERR_INVALID, "\"hidden_size\"" },
	{ "llama", "\"hidden_size\":9007199254740992", ERR_INVALID, "\"hidden_size\"" },
	{ "llama", "\"num_hidden_layers\":100000", ERR_INVALID, "\"num_hidden_layers\"" },
	{ "llama", "\"vocab_size\":1e12", ERR_INVALID, "\"vocab_size\"" },
	{ "llama", "\"intermediate_size\":null", ERR_INVALID, "\"intermediate_size\"" },
	{ "llama", "\"num_attention_heads\":0", ERR_INVALID, "\"num_attention_heads\"" },
	{ "llama", "\"num_key_value_heads\":3", ERR_INVALID, "multiple of \"num_key_value_heads\" 3" },
	{ "llama", "\"num_key_value_heads\":8", ERR_INVALID, "multiple of" },
	{ "llama", "\"num_attention_heads\":6,\"num_key_value_heads\":6", ERR_INVALID, "there is no "
	"\"head_dim\"" },
	{ "llama", "\"num_attention_heads\":128,\"num_key_value_heads\":128", ERR_INVALID, "there is no "
	"\"head_dim\"" },
	{ "llama", "\"head_dim\":15", ERR_INVALID, "\"head_dim\" 15 must be even" },
	{ "llama", "\"head_dim\":8192", ERR_INVALID, "\"head_dim\"" },
	{ "llama", "\"hidden_size\":1048576,\"num_attention_heads\":1,\"num_key_value_heads\":1",
	ERR_INVALID, "\"head_dim\" 1048576" },
	{ "llama", "\"num_attention_heads\":4096,\"num_key_value_heads\":1,\"head_dim\":4096", ERR_INVALID,
	"at most 1048576" },
	{ "llama", "\"rms_norm_eps\":0", ERR_INVALID, "\"rms_norm_eps\"" },
	{ "llama", "\"rms_norm_eps\":\"x\"", ERR_INVALID, "\"rms_norm_eps\"" },
	{ "llama", "\"tie_word_embeddings\":\"yes\"", ERR_INVALID, "\"tie_word_embeddings\" must be true or "
	"false" },
	{ "llama", "\"attention_bias\":1", ERR_INVALID, "\"attention_bias\" must be true or false" },
	{ "mistral", "\"attention_bias\":true", ERR_UNSUPPORTED, "\"attention_bias\"" },
	{ "mistral", "\"mlp_bias\":true", ERR_UNSUPPORTED, "\"mlp_bias\"" },
	{ "mistral", "\"sliding_window\":4096", ERR_UNSUPPORTED, "\"sliding_window\" of 4096 is shorter "
	"than \"max_position_embeddings\" 32768" },
	{ "mistral", "~\"sliding_window\":", ERR_UNSUPPORTED, "the family's default \"sliding_window\" of "
	"4096" },
	{ "mistral", "\"sliding_window\":0", ERR_INVALID, "\"sliding_window\"" },
	{ "qwen2", "\"use_sliding_window\":true", ERR_UNSUPPORTED, "\"sliding_window\" of 4096" },
	{ "qwen2", "\"use_sliding_window\":1", ERR_INVALID, "\"use_sliding_window\"" },
	{ "qwen2", "\"use_mrope\":true", ERR_UNSUPPORTED, "\"use_mrope\"" },
	{ "qwen3", "\"max_position_embeddings\":32768,\"use_sliding_window\":true,\"max_window_layers\":1",
	ERR_UNSUPPORTED, "\"sliding_window\" of" },
	{ "qwen3", "\"mlp_bias\":true", ERR_UNSUPPORTED, "\"mlp_bias\"" },
};

static void test_refusals(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
		const struct refusal *r = &refusals[i];
		struct model_config mc;
		struct err err = ERR_INIT;

		if (parse(r->family, r->change, &mc, &err) == 0)
			fail_msg("%s with %s is accepted", r->family, r->change);
		if (!strstr(err.text, r->says) || strncmp(err.text, "config.json: ", 13) != 0)
			fail_msg("%s with %s says \"%s\", not \"%s\"", r->family, r->change, err.text,
				 r->says);
		if (err.code != r->code)
			fail_msg("%s with %s: %s", r->family, r->change, err_name(err.code));
	}
}

static void test_not_json(void **state)
{
	struct model_config mc;
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(model_config_parse(&mc, "{", 1, NULL, &err), -1);
	assert_non_null(strstr(err.text, "config.json: not valid JSON at byte 1"));
	assert_int_equal(model_config_parse(&mc, "[]", 2, NULL, &err), -1);
	assert_string_equal(err.text, "config.json: must be a JSON object");
}

static void test_every_problem(void **state)
{
	static const char change[] = "\"hidden_act\":\"relu\",\"vocab_size\":0,\"rope_scaling\":{\"type\":\"yarn\"}";
	char text[4096];
	struct problems problems = { 0 };
	struct model_config mc;
	struct err err = ERR_INIT;

	(void)state;
	make_config("llama", change, text);
	assert_int_equal(model_config_parse(&mc, text, strlen(text), &problems, &err), -1);
	assert_int_equal(problems.count, 3);
	assert_string_equal(problems.items[0], err.text);
	assert_non_null(strstr(problems.items[0], "\"vocab_size\""));
	assert_non_null(strstr(problems.items[1], "\"yarn\""));
	assert_non_null(strstr(problems.items[2], "\"relu\""));
	problems_deinit(&problems);
}

static void test_out_of_memory(void **state)
{
	char text[4096];
	int rc = -1;
	uint64_t n;

	(void)state;
	for (int good = 0; good < 2; good++) {
		make_config("llama", good ? "" : "\"hidden_act\":\"relu\",\"num_experts\":4", text);
		for (n = 1, rc = -1; n < 1000; n++) {
			struct problems problems = { 0 };
			struct model_config mc;
			struct err err = ERR_INIT;
			bool done;

			mem_fail_after(n);
			rc = model_config_parse(&mc, text, strlen(text), &problems, &err);
			mem_fail_after(0);
			done = good ? rc == 0 : err.code == ERR_UNSUPPORTED;
			if (!done)
				assert_int_equal(err.code, ERR_NOMEM);
			assert_int_equal(rc, good && done ? 0 : -1);
			problems_deinit(&problems);
			if (done)
				break;
		}
		assert_in_range(n, 10, 999);
	}
}

static void test_findings_limit(void **state)
{
	struct problems list = { 0 };
	struct err err = ERR_INIT;
	struct findings f = { .list = &list, .err = &err };

	(void)state;
	assert_int_equal(findings_result(&f), 0);
	for (int i = 0; i < 1000; i++)
		findings_add(&f, ERR_INVALID, "problem %d", i);
	assert_int_equal(list.count, FINDINGS_MAX + 1);
	assert_string_equal(list.items[FINDINGS_MAX], "there are more problems than are listed");
	assert_string_equal(err.text, "problem 0");
	assert_int_equal(findings_add_err(&f, &(struct err){ .code = ERR_IO, .text = "disk" }), -1);
	assert_string_equal(err.text, "disk");
	findings_add(&f, ERR_INVALID, "late");
	findings_add_err(&f, &(struct err){ .code = ERR_IO, .text = "later" });
	assert_string_equal(err.text, "disk");
	assert_int_equal(findings_result(&f), -1);
	problems_deinit(&list);
}

/* --- layout ------------------------------------------------------------------- */

struct expected { const char *const *names; const size_t (*dims)[2]; size_t count, seen; };

static int compare_next(void *ctx, const struct model_tensor *t)
{
	struct expected *e = ctx;

	assert_true(e->seen < e->count);
	assert_string_equal(t->name, e->names[e->seen]);
	assert_int_equal(t->dim[0], e->dims[e->seen][0]);
	assert_int_equal(t->dim[1], e->dims[e->seen][1]);
	assert_int_equal(t->layer, strncmp(t->name, "model.layers.", 13) == 0 ? 0 : -1);
	e->seen++;
	return 0;
}

static void test_layout(void **state)
{
	static const char *const names[] = {
		"model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
		"model.layers.0.post_attention_layernorm.weight", "model.layers.0.self_attn.q_norm.weight",
		"model.layers.0.self_attn.k_norm.weight", "model.layers.0.self_attn.q_proj.weight",
		"model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.k_proj.weight",
		"model.layers.0.self_attn.k_proj.bias", "model.layers.0.self_attn.v_proj.weight",
		"model.layers.0.self_attn.v_proj.bias", "model.layers.0.self_attn.o_proj.weight",
		"model.layers.0.self_attn.o_proj.bias", "model.layers.0.mlp.gate_proj.weight",
		"model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight",
		"model.norm.weight", "lm_head.weight",
	};
	static const size_t dims[][2] = {
		{ 100, 64 }, { 64, 0 }, { 64, 0 }, { 32, 0 }, { 32, 0 }, { 128, 64 }, { 128, 0 }, { 64, 64 },
		{ 64, 0 }, { 64, 64 }, { 64, 0 }, { 64, 128 }, { 64, 0 }, { 128, 64 }, { 128, 64 },
		{ 64, 128 }, { 64, 0 }, { 100, 64 },
	};
	struct expected e = { .names = names, .dims = dims, .count = sizeof(names) / sizeof(names[0]) };
	struct model_config mc;

	(void)state;
	parse_good("qwen3", "\"num_hidden_layers\":1,\"attention_bias\":true", &mc);
	assert_int_equal(model_each_tensor(&mc, compare_next, &e), 0);
	assert_int_equal(e.seen, e.count);
	mc.tied_embeddings = true;
	e.seen = 0;
	assert_int_equal(model_each_tensor(&mc, compare_next, &e), 0);
	assert_int_equal(e.seen, e.count - 1);
}

struct stopper { int left; };

static int stop_after(void *ctx, const struct model_tensor *t)
{
	struct stopper *s = ctx;

	(void)t;
	return s->left-- == 0 ? 7 : 0;
}

static void test_layout_stops(void **state)
{
	struct model_config mc;

	(void)state;
	parse_good("qwen2", "", &mc);
	for (int i = 0; i < 26; i++) { /* 1 + 2 layers of 12 + 1; tied */
		struct stopper s = { .left = i };

		assert_int_equal(model_each_tensor(&mc, stop_after, &s), 7);
	}
	assert_int_equal(model_each_tensor(&mc, stop_after, &(struct stopper){ .left = 26 }), 0);
}

static void test_layout_parts(void **state)
{
	struct model_config mc;
	char name[MODEL_NAME_MAX];
	size_t len;

	(void)state;
	parse_good("llama", "", &mc);
	assert_null(model_norm(&mc, NORM_Q, &len));
	assert_null(model_norm(&mc, NORM_COUNT, &len));
	assert_null(model_linear(&mc, LIN_COUNT).suffix);
	assert_string_equal(model_norm(&mc, NORM_MLP, &len), "post_attention_layernorm");
	assert_int_equal(len, 64);
	assert_int_equal(model_linear(&mc, LIN_DOWN).site, SITE_DOWN_IN);
	assert_int_equal(model_linear(&mc, LIN_O).site, SITE_O_IN);
	assert_int_equal(model_linear(&mc, LIN_V).site, SITE_ATTN_IN);
	assert_int_equal(model_linear(&mc, LIN_UP).site, SITE_MLP_IN);
	model_linear_name(name, &mc, 12, LIN_GATE);
	assert_string_equal(name, "model.layers.12.mlp.gate_proj");
	model_norm_name(name, &mc, 3, NORM_ATTN);
	assert_string_equal(name, "model.layers.3.input_layernorm.weight");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_llama),
		cmocka_unit_test(test_mistral),
		cmocka_unit_test(test_qwen2),
		cmocka_unit_test(test_qwen3),
		cmocka_unit_test(test_family_list),
		cmocka_unit_test(test_rope_spellings),
		cmocka_unit_test(test_dtype_spellings),
		cmocka_unit_test(test_harmless_options),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_not_json),
		cmocka_unit_test(test_every_problem),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_findings_limit),
		cmocka_unit_test(test_layout),
		cmocka_unit_test(test_layout_stops),
		cmocka_unit_test(test_layout_parts),
	};

	return cmocka_run_group_tests_name("model_config", tests, NULL, NULL);
}
