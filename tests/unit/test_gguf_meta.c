/* GGUF metadata: keys of each family, names there and back, rope factors, tokenizers of both kinds, what is refused; all
 * of it read back by the reader. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/file.h"
#include "formats/gguf_meta.h"
#include "formats/gguf_read.h"
#include "formats/gguf_source.h"
#include "formats/gguf_tokenizer.h"

/* --- written and read back ----------------------------------------------------------------------- */

static int read_buf(void *ctx, uint64_t offset, void *out, size_t len, struct err *err)
{
	const struct buf *b = ctx;

	(void)err;
	assert_true(offset + len <= b->len);
	memcpy(out, b->data + offset, len);
	return 0;
}

/* A file without tensors. */
static void read_back(const struct gguf_kv *kv, struct gr_file *g)
{
	struct err err = ERR_INIT;
	struct buf out;

	buf_init(&out, 1 << 26);
	if (gguf_layout(kv, NULL, 0, &out, &err) != 0 || gr_open(g, "x.gguf", out.len, read_buf, &out, &err) != 0)
		fail_msg("%s", err.text);
	buf_deinit(&out);
}

static void expect_u64(const struct gr_file *g, const char *key, uint64_t want)
{
	uint64_t got = 0;

	if (!gr_u64(g, key, &got) || got != want)
		fail_msg("%s is %llu, not %llu", key, (unsigned long long)got, (unsigned long long)want);
}

static void expect_number(const struct gr_file *g, const char *key, double want)
{
	double got = -1;

	if (!gr_number(g, key, &got) || got != (double)(float)want)
		fail_msg("%s is %.9g, not %.9g", key, got, want);
}

static void expect_text(const struct gr_file *g, const char *key, const char *want)
{
	struct gr_text got = { "", 0 };

	if (!gr_string(g, key, &got) || got.len != strlen(want) || memcmp(got.at, want, got.len) != 0)
		fail_msg("%s is '%.*s', not '%s'", key, (int)got.len, got.at, want);
}

static void expect_bool(const struct gr_file *g, const char *key, bool want)
{
	bool got = !want;

	if (!gr_bool(g, key, &got) || got != want)
		fail_msg("%s is not %s", key, want ? "true" : "false");
}

static void parse_config(struct model_config *mc, const char *text)
{
	struct err err = ERR_INIT;

	if (model_config_parse(mc, text, strlen(text), NULL, &err) != 0)
		fail_msg("%s", err.text);
}

#define SIZES "\"hidden_size\":128,\"intermediate_size\":256,\"num_attention_heads\":4,\"num_key_value_heads\":2," \
	"\"num_hidden_layers\":2,\"vocab_size\":64,\"rms_norm_eps\":1e-5,\"max_position_embeddings\":512,\"hidden_act\":\"silu\""

static const char llama_config[] = "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"]," SIZES
	",\"rope_theta\":500000.0,\"attention_bias\":true,\"mlp_bias\":true,\"rope_scaling\":{\"rope_type\":\"llama3\","
	"\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":64}}";
static const char mistral_config[] = "{\"model_type\":\"mistral\",\"architectures\":[\"MistralForCausalLM\"]," SIZES
	",\"sliding_window\":null,\"rope_theta\":10000.0}";
static const char qwen2_config[] = "{\"model_type\":\"qwen2\",\"architectures\":[\"Qwen2ForCausalLM\"]," SIZES
	",\"rope_theta\":1000000.0,\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":4.0}}";
static const char qwen3_config[] = "{\"model_type\":\"qwen3\",\"architectures\":[\"Qwen3ForCausalLM\"]," SIZES
	",\"rope_theta\":1000000.0,\"head_dim\":64,\"tie_word_embeddings\":true}";

/* --- the model ----------------------------------------------------------------------------------- */

static void meta_of(const char *config, struct gr_file *g)
{
	const struct gguf_about about = { .name = "a model", .most = GGUF_Q4_K, .config_text = config };
	struct err err = ERR_INIT;
	struct model_config mc;
	struct gguf_kv kv;

	parse_config(&mc, config);
	assert_int_equal(gguf_check_model(&mc, NULL), 0);
	gguf_kv_init(&kv);
	if (gguf_meta_model(&kv, &mc, &about, &err) != 0)
		fail_msg("%s", err.text);
	read_back(&kv, g);
	gguf_kv_deinit(&kv);
}

static void test_llama_keys(void **state)
{
	struct gr_text text;
	struct gr_file g;

	(void)state;
	meta_of(llama_config, &g);
	expect_text(&g, "general.architecture", "llama");
	expect_text(&g, "general.name", "a model");
	expect_u64(&g, "general.file_type", 15);
	expect_u64(&g, "general.quantization_version", 2);
	expect_u64(&g, "general.alignment", 32);
	expect_u64(&g, "llama.block_count", 2);
	expect_u64(&g, "llama.context_length", 512);
	expect_u64(&g, "llama.embedding_length", 128);
	expect_u64(&g, "llama.feed_forward_length", 256);
	expect_u64(&g, "llama.attention.head_count", 4);
	expect_u64(&g, "llama.attention.head_count_kv", 2);
	expect_u64(&g, "llama.attention.key_length", 32);
	expect_u64(&g, "llama.attention.value_length", 32);
	expect_u64(&g, "llama.rope.dimension_count", 32);
	expect_u64(&g, "llama.vocab_size", 64);
	expect_number(&g, "llama.attention.layer_norm_rms_epsilon", 1e-5);
	expect_number(&g, "llama.rope.freq_base", 500000);
	assert_null(gr_pair(&g, "llama.rope.scaling.type"));
	assert_true(gs_config(&g, &text));
	assert_int_equal(text.len, strlen(llama_config));
	gr_close(&g);
}

static void test_other_families(void **state)
{
	struct gr_file g;

	(void)state;
	meta_of(mistral_config, &g);
	expect_text(&g, "general.architecture", "llama");
	gr_close(&g);
	meta_of(qwen2_config, &g);
	expect_text(&g, "general.architecture", "qwen2");
	expect_text(&g, "qwen2.rope.scaling.type", "linear");
	expect_number(&g, "qwen2.rope.scaling.factor", 4);
	gr_close(&g);
	meta_of(qwen3_config, &g);
	expect_text(&g, "general.architecture", "qwen3");
	expect_u64(&g, "qwen3.attention.key_length", 64);
	gr_close(&g);
}

static void expect_refused(const struct model_config *mc, const char *part)
{
	const struct gguf_about about = { .name = "", .most = GGUF_Q4_1 };
	struct problems problems = { 0 };
	struct err err = ERR_INIT;
	struct gguf_kv kv;

	assert_int_equal(gguf_check_model(mc, &problems), -1);
	assert_int_equal(problems.count, 1);
	if (!strstr(problems.items[0], part))
		fail_msg("'%s' lacks '%s'", problems.items[0], part);
	problems_deinit(&problems);
	gguf_kv_init(&kv);
	assert_int_equal(gguf_meta_model(&kv, mc, &about, &err), -1);
	gguf_kv_deinit(&kv);
}

static void test_refused_models(void **state)
{
	const struct gguf_about about = { .name = "", .most = GGUF_Q4_1 };
	struct err err = ERR_INIT;
	struct model_config mc;
	struct gguf_kv kv;

	(void)state;
	parse_config(&mc, qwen3_config);
	mc.rope.type = ROPE_LLAMA3;
	expect_refused(&mc, "Llama-3 rope scaling");
	mc.rope.type = ROPE_DEFAULT;
	mc.qkv_bias = true;
	expect_refused(&mc, "biases");
	mc.qkv_bias = false;
	mc.head_dim = 33;
	expect_refused(&mc, "even head_dim");
	mc.head_dim = 64;
	snprintf(mc.family, sizeof(mc.family), "gpt");
	expect_refused(&mc, "llama, mistral, qwen2 and qwen3");
	parse_config(&mc, qwen3_config);
	mc.max_position = (size_t)1 << 40;
	gguf_kv_init(&kv);
	assert_int_equal(gguf_meta_model(&kv, &mc, &about, &err), -1);
	assert_non_null(strstr(err.text, "qwen3.context_length"));
	gguf_kv_deinit(&kv);
}

/* Llama-3 scaling by its definition in other words: inverse wavelengths per original length. */
static void test_rope_factors(void **state)
{
	struct model_config mc;
	float factors[16];

	(void)state;
	parse_config(&mc, qwen2_config);
	assert_int_equal(gguf_rope_count(&mc), 0);
	parse_config(&mc, llama_config);
	assert_int_equal(gguf_rope_count(&mc), 16);
	gguf_rope_factors(&mc, factors);
	assert_true(factors[0] == 1);
	assert_true(factors[15] == 8);
	for (size_t i = 0; i < 16; i++) {
		const double frequency = pow(500000, -2.0 * (double)i / 32), wave = 6.283185307179586 / frequency;
		const double smooth = (64 / wave - 1) / (4 - 1);
		double want = frequency;

		if (wave > 64 / 1.0)
			want = frequency / 8;
		else if (wave >= 64 / 4.0)
			want = (1 - smooth) * frequency / 8 + smooth * frequency;
		if (fabs(frequency / (double)factors[i] / want - 1) > 1e-6)
			fail_msg("frequency %zu is %g, not %g", i, frequency / (double)factors[i], want);
	}
}

/* --- names --------------------------------------------------------------------------------------- */

struct walk { const struct model_config *mc; struct gs_model back; size_t seen, moved, plain; };

static int name_there_and_back(void *ctx, const struct model_tensor *t)
{
	struct walk *w = ctx;
	struct gr_tensor in_file = { .ndim = t->dim[1] ? 2 : 1, .ne = { t->dim[1] ? t->dim[1] : t->dim[0], t->dim[1] ? t->dim[0] : 1, 1, 1 } };
	struct err err = ERR_INIT;
	struct gguf_place place;
	struct gs_tensor back;

	if (gguf_place_of(w->mc, t->name, &place) != 0)
		fail_msg("%s has no name", t->name);
	assert_int_equal(place.plain, t->dim[1] == 0);
	memcpy(in_file.name, place.name, sizeof(place.name));
	if (gs_tensor(&w->back, &in_file, &back, &err) != 0)
		fail_msg("%s", err.text);
	assert_string_equal(back.name, t->name);
	assert_int_equal(back.heads, place.heads);
	assert_int_equal(back.cols, in_file.ne[0]);
	w->seen++;
	w->moved += place.heads > 0;
	w->plain += place.plain;
	return 0;
}

static void test_names(void **state)
{
	static const struct { const char *config; size_t seen, moved, plain; } table[] = {
		{ llama_config, 3 + 2 * 16, 2 * 4, 1 + 2 * 9 },
		{ mistral_config, 3 + 2 * 9, 2 * 2, 1 + 2 * 2 },
		{ qwen2_config, 3 + 2 * 12, 0, 1 + 2 * 5 },
		{ qwen3_config, 2 + 2 * 11, 0, 1 + 2 * 4 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		struct err err = ERR_INIT;
		struct model_config mc;
		struct walk w = { .mc = &mc };
		struct gr_file g;

		meta_of(table[i].config, &g);
		if (gs_model(&g, &w.back, &err) != 0)
			fail_msg("%s", err.text);
		parse_config(&mc, table[i].config);
		assert_int_equal(model_each_tensor(&mc, name_there_and_back, &w), 0);
		assert_int_equal(w.seen, table[i].seen);
		assert_int_equal(w.moved, table[i].moved);
		assert_int_equal(w.plain, table[i].plain);
		gr_close(&g);
	}
}

static void test_unknown_names(void **state)
{
	static const char *const there[] = {
		"model.layers.2.mlp.up_proj.weight", "model.layers.+1.mlp.up_proj.weight", "model.layers.01.mlp.up_proj.weight",
		"model.layers.0.mlp.up_proj.scale", "model.layers.0.mlp.up_proj", "model.layers.0.mlp.new_proj.weight",
		"model.layers.x", "model.layers.0.", "score.weight", "",
	};
	static const char *const back[] = {
		"blk.2.ffn_up.weight", "blk.+1.ffn_up.weight", "blk.01.ffn_up.weight", "blk.0.ffn_up.scale", "blk.0.ffn_new.weight",
		"blk.0.", "rope", "", "blk.0.ffn_up.weight.x",
	};
	const struct gs_model m = { .reordered = true, .layers = 2, .heads = 4, .kv_heads = 2 };
	struct gr_tensor t = { .ndim = 2, .ne = { 32, 36, 1, 1 } };
	struct err err = ERR_INIT;
	struct model_config mc;
	struct gguf_place place;
	struct gs_tensor out;

	(void)state;
	parse_config(&mc, llama_config);
	for (size_t i = 0; i < sizeof(there) / sizeof(there[0]); i++)
		if (gguf_place_of(&mc, there[i], &place) == 0)
			fail_msg("%s becomes %s", there[i], place.name);
	for (size_t i = 0; i < sizeof(back) / sizeof(back[0]); i++) {
		snprintf(t.name, sizeof(t.name), "%s", back[i]);
		if (gs_tensor(&m, &t, &out, &err) != -1)
			fail_msg("%s becomes %s", back[i], out.name);
	}
	snprintf(t.name, sizeof(t.name), "rope_freqs.weight");
	assert_int_equal(gs_tensor(&m, &t, &out, &err), 1);
	snprintf(t.name, sizeof(t.name), "blk.0.attn_q.weight"); /* 36 rows are no 4 heads of an even size */
	assert_int_equal(gs_tensor(&m, &t, &out, &err), -1);
	assert_non_null(strstr(err.text, "4 heads"));
	t.ndim = 3;
	assert_int_equal(gs_tensor(&m, &t, &out, &err), -1);
	assert_non_null(strstr(err.text, "3 dimensions"));
}

static void test_models_that_cannot_be(void **state)
{
	static const struct { const char *arch; int heads; const char *part; } table[] = {
		{ NULL, 4, "does not say its architecture" },
		{ "gemma", 4, "another architecture" },
		{ "llama", 0, "llama.attention.head_count is not an integer of 1" },
		{ "llama", -1, "llama.attention.head_count is not an integer of 1" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		struct err err = ERR_INIT;
		struct gs_model m;
		struct gguf_kv kv;
		struct gr_file g;

		gguf_kv_init(&kv);
		gguf_kv_u32(&kv, "llama.block_count", 2);
		if (table[i].arch)
			gguf_kv_string(&kv, "general.architecture", table[i].arch);
		if (table[i].heads >= 0)
			gguf_kv_u32(&kv, "llama.attention.head_count", (uint32_t)table[i].heads);
		read_back(&kv, &g);
		assert_int_equal(gs_model(&g, &m, &err), -1);
		if (!strstr(err.text, table[i].part))
			fail_msg("'%s' lacks '%s'", err.text, table[i].part);
		gr_close(&g);
		gguf_kv_deinit(&kv);
	}
}

/* --- tokenizers ---------------------------------------------------------------------------------- */

struct texts { const char *tokenizer, *settings, *generation, *config, *chat; size_t vocab; };

static int convert(struct gguf_kv *kv, const struct texts *x, struct err *err)
{
	struct json *parts[3] = { NULL };
	const char *texts[3] = { x->settings, x->generation, x->config };
	struct gguf_tokenizer t = { .text = x->tokenizer, .len = strlen(x->tokenizer), .chat_template = x->chat, .vocab = x->vocab };
	int rc = 0;

	for (size_t i = 0; i < 3 && rc == 0; i++)
		if (texts[i] && !(parts[i] = json_parse(texts[i], strlen(texts[i]), err)))
			rc = -1;
	t.settings = parts[0];
	t.generation = parts[1];
	t.config = parts[2];
	gguf_kv_init(kv);
	if (rc == 0)
		rc = gguf_meta_tokenizer(kv, &t, err);
	for (size_t i = 0; i < 3; i++)
		json_free(parts[i]);
	return rc;
}

static void converted(const struct texts *x, struct gr_file *g)
{
	struct err err = ERR_INIT;
	struct gguf_kv kv;

	if (convert(&kv, x, &err) != 0)
		fail_msg("%s", err.text);
	read_back(&kv, g);
	gguf_kv_deinit(&kv);
}

static void expect_strings(const struct gr_file *g, const char *key, const char *const *want, size_t count)
{
	const struct gr_pair *p = gr_pair(g, key);
	struct gr_text got;
	size_t at = 0;

	assert_non_null(p);
	assert_int_equal(p->count, count);
	for (size_t i = 0; i < count; i++) {
		assert_true(gr_next_string(g, p, &at, &got));
		if (got.len != strlen(want[i]) || memcmp(got.at, want[i], got.len) != 0)
			fail_msg("%s %zu is '%.*s', not '%s'", key, i, (int)got.len, got.at, want[i]);
	}
}

static void expect_numbers(const struct gr_file *g, const char *key, const double *want, size_t count)
{
	const struct gr_pair *p = gr_pair(g, key);
	size_t at = 0;
	double got;

	assert_non_null(p);
	assert_int_equal(p->count, count);
	for (size_t i = 0; i < count; i++) {
		assert_true(gr_next_number(g, p, &at, &got));
		if (got != want[i])
			fail_msg("%s %zu is %g, not %g", key, i, got, want[i]);
	}
}

#define LLAMA3_SPLIT "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|" \
	"\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define QWEN2_SPLIT "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|" \
	"\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define SPLIT_BY(regex) "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex \
	"\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}"
#define VOCAB "\"vocab\":{\"a\":0,\"b\":1,\"\xc4\xa0\":2,\"ab\":3,\"\xc4\xa0" "a\":4}"
#define BPE(merges) "\"model\":{\"type\":\"BPE\"," VOCAB ",\"merges\":" merges "}"
#define MERGES "[\"a b\",[\"\xc4\xa0\",\"a\"]]"
#define ADDED "\"added_tokens\":[{\"id\":5,\"content\":\"<s>\",\"special\":true},{\"id\":6,\"content\":\"<|im_end|>\",\"special\":false}," \
	"{\"id\":7,\"content\":\"\xe2\x96\x81mine\",\"special\":false}]"
#define TEMPLATE "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":\"TemplateProcessing\"," \
	"\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]}]}"

static void test_byte_level(void **state)
{
	static const char *const tokens[] = { "a", "b", "\xc4\xa0", "ab", "\xc4\xa0" "a", "<s>", "<|im_end|>", " mine", "[PAD8]", "[PAD9]" };
	static const double types[] = { 1, 1, 1, 1, 1, 3, 3, 4, 5, 5 };
	static const char *const merges[] = { "a b", "\xc4\xa0 a" };
	const struct texts x = { .tokenizer = "{" SPLIT_BY(LLAMA3_SPLIT) "," BPE(MERGES) "," ADDED "," TEMPLATE "}",
				 .settings = "{\"chat_template\":\"{{ x }}\",\"pad_token\":{\"content\":\"<s>\"}}",
				 .config = "{\"bos_token_id\":5,\"eos_token_id\":[4,6]}", .vocab = 10 };
	struct gr_file g;

	(void)state;
	converted(&x, &g);
	expect_text(&g, "tokenizer.ggml.model", "gpt2");
	expect_text(&g, "tokenizer.ggml.pre", "llama-bpe");
	expect_strings(&g, "tokenizer.ggml.tokens", tokens, 10);
	expect_numbers(&g, "tokenizer.ggml.token_type", types, 10);
	expect_strings(&g, "tokenizer.ggml.merges", merges, 2);
	expect_u64(&g, "tokenizer.ggml.bos_token_id", 5);
	expect_u64(&g, "tokenizer.ggml.eos_token_id", 4);
	expect_u64(&g, "tokenizer.ggml.eot_token_id", 6);
	expect_u64(&g, "tokenizer.ggml.padding_token_id", 5);
	expect_bool(&g, "tokenizer.ggml.add_bos_token", true);
	expect_bool(&g, "tokenizer.ggml.add_eos_token", false);
	expect_text(&g, "tokenizer.chat_template", "{{ x }}");
	assert_null(gr_pair(&g, "tokenizer.ggml.scores"));
	assert_null(gr_pair(&g, "tokenizer.ggml.unknown_token_id"));
	gr_close(&g);
}

static void test_ways_to_split(void **state)
{
	static const struct { const char *tokenizer, *pre; } table[] = {
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE(MERGES) "}", "qwen2" },
		{ "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}," BPE(MERGES) "}", "gpt-2" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		const struct texts x = { .tokenizer = table[i].tokenizer, .vocab = 5 };
		struct gr_file g;

		converted(&x, &g);
		expect_text(&g, "tokenizer.ggml.pre", table[i].pre);
		expect_bool(&g, "tokenizer.ggml.add_bos_token", false);
		assert_null(gr_pair(&g, "tokenizer.ggml.bos_token_id"));
		gr_close(&g);
	}
}

static void test_settings_come_first(void **state)
{
	const struct texts x = {
		.tokenizer = "{" SPLIT_BY(LLAMA3_SPLIT) "," BPE(MERGES) "," ADDED "," TEMPLATE "}",
		.settings = "{\"add_bos_token\":false,\"bos_token\":\"a\",\"eos_token\":\"<|im_end|>\",\"add_eos_token\":true,"
			    "\"chat_template\":[{\"name\":\"tool\",\"template\":\"T\"},{\"name\":\"default\",\"template\":\"D\"}]}",
		.config = "{\"bos_token_id\":5,\"eos_token_id\":5}", .generation = "{\"pad_token_id\":1}", .vocab = 8 };
	struct texts jinja = x;
	struct gr_file g;

	(void)state;
	converted(&x, &g);
	expect_u64(&g, "tokenizer.ggml.bos_token_id", 0);
	expect_u64(&g, "tokenizer.ggml.eos_token_id", 6);
	expect_u64(&g, "tokenizer.ggml.padding_token_id", 1);
	assert_null(gr_pair(&g, "tokenizer.ggml.eot_token_id")); /* it is the end of text already */
	expect_bool(&g, "tokenizer.ggml.add_bos_token", false);
	expect_bool(&g, "tokenizer.ggml.add_eos_token", true);
	expect_text(&g, "tokenizer.chat_template", "D");
	gr_close(&g);
	jinja.chat = "J";
	converted(&jinja, &g);
	expect_text(&g, "tokenizer.chat_template", "J");
	gr_close(&g);
	jinja.chat = NULL;
	jinja.settings = "{\"chat_template\":[{\"name\":\"tool\",\"template\":\"T\"}]}";
	jinja.tokenizer = "{" SPLIT_BY(LLAMA3_SPLIT) "," BPE(MERGES) "," TEMPLATE "}";
	jinja.config = "{}";
	jinja.generation = "{\"eos_token_id\":[3,2]}";
	converted(&jinja, &g);
	expect_text(&g, "tokenizer.chat_template", "T");
	expect_u64(&g, "tokenizer.ggml.eos_token_id", 3);
	expect_u64(&g, "tokenizer.ggml.eot_token_id", 2);
	assert_null(gr_pair(&g, "tokenizer.ggml.bos_token_id")); /* the template names a token that is not there */
	gr_close(&g);
}

#define PIECES "\"vocab\":{\"<unk>\":0,\"<s>\":1,\"<0x0A>\":2,\"\xe2\x96\x81\":3,\"a\":4,\"b\":5,\"ab\":6,\"\xe2\x96\x81" "ab\":7,\"\xe2\x96\x81" "a\":8}"
#define PIECE_MERGES "[\"a b\",\"\xe2\x96\x81 a\",\"\xe2\x96\x81 ab\",[\"\xe2\x96\x81" "a\",\"b\"]]"
#define PIECE_MODEL "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"byte_fallback\":true," PIECES ",\"merges\":" PIECE_MERGES "}"
#define PIECE_ADDED "\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},{\"id\":1,\"content\":\"<s>\",\"special\":true}]"

static void test_sentencepiece_like(void **state)
{
	static const double types[] = { 2, 3, 6, 1, 1, 1, 1, 1, 1 };
	static const double scores[] = { -1000, -1000, 0, -5, -5, -5, 0, -2, -1 };
	static const struct { const char *parts; bool space; } table[] = {
		{ "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"_\"}]}", true },
		{ "\"normalizer\":{\"type\":\"Replace\"}", false },
		{ "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"prepend_scheme\":\"first\"}", true },
		{ "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"prepend_scheme\":\"never\"}", false },
		{ "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"add_prefix_space\":true}", true },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		char text[2048];
		const struct texts x = { .tokenizer = text, .vocab = 9, .settings = "{\"bos_token\":\"<s>\",\"add_bos_token\":true}" };
		struct gr_file g;

		snprintf(text, sizeof(text), "{%s,%s,%s}", table[i].parts, PIECE_MODEL, PIECE_ADDED);
		converted(&x, &g);
		expect_text(&g, "tokenizer.ggml.model", "llama");
		expect_text(&g, "tokenizer.ggml.pre", "default");
		expect_numbers(&g, "tokenizer.ggml.token_type", types, 9);
		expect_numbers(&g, "tokenizer.ggml.scores", scores, 9);
		expect_u64(&g, "tokenizer.ggml.unknown_token_id", 0);
		expect_bool(&g, "tokenizer.ggml.add_bos_token", true);
		expect_bool(&g, "tokenizer.ggml.add_space_prefix", table[i].space);
		assert_null(gr_pair(&g, "tokenizer.ggml.merges"));
		gr_close(&g);
	}
}

static void test_spaces_in_merges(void **state)
{
	static const char *const merges[] = { "\xc4\xa0" "a b" };
	const struct texts x = { .tokenizer = "{" SPLIT_BY(QWEN2_SPLIT) "," BPE("[[\" a\",\"b\"]]") "}", .vocab = 5 };
	struct gr_file g;

	(void)state;
	converted(&x, &g);
	expect_strings(&g, "tokenizer.ggml.merges", merges, 1);
	gr_close(&g);
}

struct bad { const char *tokenizer; size_t vocab; enum err_code code; const char *part; };

static void test_refused_tokenizers(void **state)
{
	static const struct bad table[] = {
		{ "{", 5, ERR_INVALID, "tokenizer.json" },
		{ "{}", 5, ERR_UNSUPPORTED, "of type ''" },
		{ "{\"model\":{\"type\":\"Unigram\"}}", 5, ERR_UNSUPPORTED, "of type 'Unigram'" },
		{ "{" BPE(MERGES) "}", 5, ERR_UNSUPPORTED, "neither byte-level" },
		{ "{" SPLIT_BY(".") "," BPE(MERGES) "}", 5, ERR_UNSUPPORTED, "splits text by '.'" },
		{ "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true}," BPE(MERGES) "}", 5, ERR_UNSUPPORTED,
		  "add_prefix_space" },
		{ "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\"},{\"type\":\"ByteLevel\"}]}," BPE(MERGES) "}", 5,
		  ERR_UNSUPPORTED, "several rules" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE(MERGES) "}", 4, ERR_REFUSED, "has the id 4, but the model's embedding has 4 rows" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE(MERGES) "}", 0, ERR_REFUSED, "1 to 16777216 tokens" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE("3") "}", 5, ERR_INVALID, "merges is not an array" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE("[\"a b\",\"ab\"]") "}", 5, ERR_INVALID, "merge 1 is not two pieces" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE("[\"a b c\"]") "}", 5, ERR_INVALID, "merge 0 is not two pieces" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE("[[\"a\"]]") "}", 5, ERR_INVALID, "merge 0 is not two pieces" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE("[[\"a\",\"\"]]") "}", 5, ERR_INVALID, "merge 0 is not two pieces" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE("[[\"a\",3]]") "}", 5, ERR_INVALID, "merge 0 is not two pieces" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) ",\"model\":{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}}", 5, ERR_INVALID, "model.vocab" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) ",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", 5, ERR_INVALID,
		  "token 'b' has the id 0 of another one" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) ",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", 5, ERR_INVALID,
		  "not a non-negative integer" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE(MERGES) ",\"added_tokens\":[{\"id\":0,\"content\":\"x\"}]}", 5, ERR_INVALID,
		  "added token 'x' has the id 0" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE(MERGES) ",\"added_tokens\":[{\"id\":0}]}", 5, ERR_INVALID, "added_tokens" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE(MERGES) ",\"added_tokens\":[{\"id\":9,\"content\":\"x\"}]}", 6, ERR_REFUSED,
		  "the id 9" },
		{ "{" SPLIT_BY(QWEN2_SPLIT) "," BPE(MERGES) ",\"added_tokens\":[{\"id\":5,\"content\":\"a\"}]}", 6, ERR_INVALID,
		  "token 'a' has two ids" },
		{ "{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true," PIECES ",\"merges\":[\"a a\"]}}", 9, ERR_INVALID,
		  "merge 0 makes a piece that is not" },
		{ "{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true," PIECES ",\"merges\":[\"a\"]}}", 9, ERR_INVALID,
		  "merge 0 is not two pieces" },
		{ "{\"model\":{\"type\":\"BPE\",\"byte_fallback\":true," PIECES "}}", 9, ERR_INVALID, "merges is not an array" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		const struct texts x = { .tokenizer = table[i].tokenizer, .vocab = table[i].vocab };
		struct err err = ERR_INIT;
		struct gguf_kv kv;

		if (convert(&kv, &x, &err) == 0)
			fail_msg("row %zu ('%s') is accepted", i, table[i].part);
		if (err.code != table[i].code || !strstr(err.text, table[i].part))
			fail_msg("row %zu: %s, '%s'; it should be %s, '%s'", i, err_name(err.code), err.text,
				 err_name(table[i].code), table[i].part);
		gguf_kv_deinit(&kv);
	}
}

static void test_special_ids_beyond(void **state)
{
	static const char *const configs[] = { "{\"bos_token_id\":99}", "{\"eos_token_id\":99}", "{\"pad_token_id\":99}",
					       "{\"eos_token_id\":[1,99]}" };

	(void)state;
	for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
		const struct texts x = { .tokenizer = "{" SPLIT_BY(QWEN2_SPLIT) "," BPE(MERGES) "}", .config = configs[i], .vocab = 5 };
		struct err err = ERR_INIT;
		struct gguf_kv kv;

		assert_int_equal(convert(&kv, &x, &err), -1);
		assert_non_null(strstr(err.text, "is 99, but the model has 5 tokens"));
		gguf_kv_deinit(&kv);
	}
}

/* --- small files that are carried ---------------------------------------------------------------- */

static const struct gguf_carried carried_files[] = {
	{ GGUF_TOKENIZER_KEY, "tokenizer.json", "{ \"a\" : 1 }\n", 12 },
	{ GGUF_SETTINGS_KEY, "tokenizer_config.json", "{}", 2 },
	{ GGUF_GENERATION_KEY, "generation_config.json", NULL, 0 },
	{ GGUF_TEMPLATE_KEY, "chat_template.jinja", "{{ x\0y }}", 9 },
};

static void test_carried_files(void **state)
{
	const size_t count = sizeof(carried_files) / sizeof(carried_files[0]);
	struct err err = ERR_INIT;
	struct gguf_kv kv;
	struct gr_text got;
	struct gr_file g;

	(void)state;
	gguf_kv_init(&kv);
	for (size_t i = 0; i < count; i++)
		assert_int_equal(gguf_meta_carried(&kv, &carried_files[i], &err), 0);
	read_back(&kv, &g);
	gguf_kv_deinit(&kv);
	assert_int_equal(gs_check_texts(&g, &err), 0);
	for (size_t i = 0; i < count; i++) {
		const struct gguf_carried *c = &carried_files[i];

		assert_int_equal(gs_text(&g, c->file, &got), c->text != NULL);
		if (c->text) {
			assert_int_equal(got.len, c->len);
			assert_memory_equal(got.at, c->text, c->len);
		}
	}
	assert_false(gs_text(&g, "config.json", &got));
	gr_close(&g);
}

/* Bytes of a file that only its length says anything of. */
static char *long_text(void)
{
	char *text = mem_alloc(GS_TEXT_MAX + 1, 1);

	assert_non_null(text);
	memset(text, ' ', GS_TEXT_MAX + 1);
	return text;
}

static void refused_text(const struct gguf_kv *kv, enum err_code code, const char *part)
{
	struct err err = ERR_INIT;
	struct gr_file g;

	read_back(kv, &g);
	assert_int_equal(gs_check_texts(&g, &err), -1);
	if (err.code != code || !strstr(err.text, part))
		fail_msg("%s, '%s'; it should be %s, '%s'", err_name(err.code), err.text, err_name(code), part);
	gr_close(&g);
}

static void test_carried_files_refused(void **state)
{
	static const struct { const char *key, *text; enum err_code code; const char *part; } table[] = {
		{ "tokenizer.huggingface.json", "{", ERR_INVALID, "the gguf file's tokenizer.huggingface.json: " },
		{ "tokenizer.huggingface.json", "", ERR_INVALID, "the gguf file's tokenizer.huggingface.json: " },
		{ "tokenizer.huggingface.json", "[{}]", ERR_CORRUPT, "the gguf file's tokenizer.huggingface.json is not a JSON object" },
		{ "quarry.source_tokenizer_config", "3", ERR_CORRUPT, "quarry.source_tokenizer_config is not a JSON object" },
		{ "quarry.source_generation_config", "{}{}", ERR_INVALID, "quarry.source_generation_config: " },
		{ "tokenizer.huggingface.json", NULL, ERR_CORRUPT, "tokenizer.huggingface.json is not a string" },
		{ "quarry.source_chat_template", NULL, ERR_CORRUPT, "quarry.source_chat_template is not a string" },
	};
	struct gguf_carried large = { GGUF_TOKENIZER_KEY, "tokenizer.json", NULL, GGUF_CARRIED_MAX + 1 };
	char *spaces = long_text();
	struct err err = ERR_INIT;
	struct gguf_kv kv;

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		gguf_kv_init(&kv);
		if (table[i].text)
			gguf_kv_string(&kv, table[i].key, table[i].text);
		else
			gguf_kv_u32(&kv, table[i].key, 1);
		refused_text(&kv, table[i].code, table[i].part);
		gguf_kv_deinit(&kv);
	}
	gguf_kv_init(&kv);
	gguf_kv_text(&kv, GGUF_TEMPLATE_KEY, spaces, GS_TEXT_MAX + 1);
	refused_text(&kv, ERR_TOO_LARGE, "quarry.source_chat_template has 50331649 bytes; at most 50331648 are accepted");
	gguf_kv_deinit(&kv);
	gguf_kv_init(&kv);
	large.text = spaces;
	assert_int_equal(gguf_meta_carried(&kv, &large, &err), -1);
	assert_int_equal(err.code, ERR_REFUSED);
	assert_string_equal(err.text, "gguf carries tokenizer.json whole, and it has 50331649 bytes; at most 50331648 are written");
	assert_int_equal(kv.count, 0);
	gguf_kv_deinit(&kv);
	mem_free(spaces);
}

/* --- the sample model ---------------------------------------------------------------------------- */

static char *sample(const char *name)
{
	const char *root = getenv("QUARRY_ROOT");
	struct err err = ERR_INIT;
	char path[1024];
	size_t len;
	char *text;

	snprintf(path, sizeof(path), "%s/examples/fable-tiny/%s", root ? root : ".", name);
	text = file_read_all(path, 1 << 24, &len, &err);
	if (!text)
		fail_msg("%s", err.text);
	return text;
}

static void test_sample_model(void **state)
{
	char *tokenizer = sample("tokenizer.json"), *settings = sample("tokenizer_config.json"), *config = sample("config.json");
	const struct texts x = { .tokenizer = tokenizer, .settings = settings, .config = config, .vocab = 1024 };
	struct gr_file g;

	(void)state;
	converted(&x, &g);
	expect_text(&g, "tokenizer.ggml.pre", "llama-bpe");
	assert_int_equal(gr_pair(&g, "tokenizer.ggml.tokens")->count, 1024);
	assert_int_equal(gr_pair(&g, "tokenizer.ggml.merges")->count, 764);
	expect_u64(&g, "tokenizer.ggml.bos_token_id", 1020);
	expect_u64(&g, "tokenizer.ggml.eos_token_id", 1021);
	expect_u64(&g, "tokenizer.ggml.eot_token_id", 1022);
	expect_bool(&g, "tokenizer.ggml.add_bos_token", true);
	gr_close(&g);
	mem_free(tokenizer);
	mem_free(settings);
	mem_free(config);
}

/* --- without memory ------------------------------------------------------------------------------ */

static int everything(const struct texts *x, struct err *err)
{
	const struct gguf_about about = { .name = "m", .most = GGUF_Q4_1, .config_text = llama_config };
	struct model_config mc;
	struct gguf_kv kv;
	struct buf out;
	int rc;

	if (model_config_parse(&mc, llama_config, strlen(llama_config), NULL, err) != 0)
		return -1;
	rc = convert(&kv, x, err);
	if (rc == 0)
		rc = gguf_meta_model(&kv, &mc, &about, err);
	buf_init(&out, 1 << 20);
	if (rc == 0)
		rc = gguf_layout(&kv, NULL, 0, &out, err);
	buf_deinit(&out);
	gguf_kv_deinit(&kv);
	return rc;
}

static void test_without_memory(void **state)
{
	static const struct texts cases[] = {
		{ .tokenizer = "{" SPLIT_BY(LLAMA3_SPLIT) "," BPE(MERGES) "," ADDED "," TEMPLATE "}", .config = "{\"bos_token_id\":5}", .vocab = 10 },
		{ .tokenizer = "{" PIECE_MODEL "," PIECE_ADDED "}", .settings = "{\"bos_token\":\"<s>\"}", .vocab = 9 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		bool worked = false;

		for (uint64_t nth = 1; !worked && nth < 2000; nth++) {
			struct err err = ERR_INIT;

			mem_fail_after(nth);
			worked = everything(&cases[i], &err) == 0;
			mem_fail_after(0);
			if (!worked)
				assert_int_equal(err.code, ERR_NOMEM);
		}
		assert_true(worked);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_llama_keys),
		cmocka_unit_test(test_other_families),
		cmocka_unit_test(test_refused_models),
		cmocka_unit_test(test_rope_factors),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_unknown_names),
		cmocka_unit_test(test_models_that_cannot_be),
		cmocka_unit_test(test_byte_level),
		cmocka_unit_test(test_ways_to_split),
		cmocka_unit_test(test_settings_come_first),
		cmocka_unit_test(test_sentencepiece_like),
		cmocka_unit_test(test_spaces_in_merges),
		cmocka_unit_test(test_refused_tokenizers),
		cmocka_unit_test(test_special_ids_beyond),
		cmocka_unit_test(test_carried_files),
		cmocka_unit_test(test_carried_files_refused),
		cmocka_unit_test(test_sample_model),
		cmocka_unit_test(test_without_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
