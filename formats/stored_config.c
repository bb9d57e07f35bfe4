/* stored_config.c - the plain model's config.json: out of the one that a quantized checkpoint has, or out of GGUF metadata.
 *
 * Members keep their text (10000.0 stays 10000.0); those that tell of a quantization are left out.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/json_scan.h"
#include "common/utf8.h"
#include "formats/gguf_read.h"
#include "formats/stored_parts.h"

enum { DEPTH_MAX = 64, KEY_MAX = 80 };

/* --- leaving out --------------------------------------------------------------------------------- */

static bool is_left_out(const struct json_scan *s)
{
	static const char *const names[] = { "quantization", "quantization_config", "compression_config" };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (s->token_len == strlen(names[i]) && memcmp(s->token, names[i], s->token_len) == 0)
			return true;
	return false;
}

static int copy_member(struct json_scan *s, bool first, struct buf *out, struct err *err)
{
	const char *key = s->token, *from = s->text + s->pos, *to;
	const size_t key_len = s->token_len;

	if (json_scan_skip(s, err) != 0)
		return -1;
	to = s->text + s->pos;
	while (from < to && strchr(" \t\r\n:", *from))
		from++;
	buf_puts(out, first ? "  \"" : ",\n  \"");
	buf_append(out, key, key_len);
	buf_puts(out, "\": ");
	buf_append(out, from, (size_t)(to - from));
	return 0;
}

static int copy_plain(const char *text, size_t len, struct buf *out, struct err *err)
{
	struct json_scan s;
	enum json_token token;
	bool first = true;

	json_scan_init(&s, text, len, DEPTH_MAX);
	if (json_scan_next(&s, &token, err) != 0)
		return -1;
	if (token != JT_OBJECT_BEGIN)
		return err_set(err, ERR_CORRUPT, "config.json is not an object");
	buf_puts(out, "{\n");
	for (;;) {
		bool drop;

		if (json_scan_next(&s, &token, err) != 0)
			return -1;
		if (token == JT_OBJECT_END)
			break;
		drop = is_left_out(&s);
		if ((drop ? json_scan_skip(&s, err) : copy_member(&s, first, out, err)) != 0)
			return -1;
		first = first && drop;
	}
	buf_puts(out, "\n}\n");
	return buf_failed(out) ? err_set_nomem(err, "config.json") : 0;
}

int stored_take_config(struct stored_folder *f, const char *text, size_t len, struct findings *faults)
{
	struct problems list = { 0 };
	struct err reason = ERR_INIT;
	struct buf out;
	int rc;

	buf_init(&out, STORED_CONFIG_MAX + 64);
	rc = copy_plain(text, len, &out, &reason);
	if (rc == 0 && !(f->plain = json_parse(buf_text(&out), out.len, &reason)))
		rc = -1;
	if (rc == 0 && !(f->config_text = buf_take(&out)))
		rc = err_set_nomem(&reason, "config.json");
	buf_deinit(&out);
	if (rc != 0)
		return findings_add_err(faults, &reason);
	rc = model_config_parse(&f->config, f->config_text, strlen(f->config_text), &list, &reason);
	for (size_t i = 0; i < list.count; i++)
		findings_add(faults, reason.code, "%s", list.items[i]);
	if (rc != 0 && (list.count == 0 || err_retryable(reason.code)))
		findings_add_err(faults, &reason);
	problems_deinit(&list);
	return rc;
}

/* --- metadata ------------------------------------------------------------------------------------ */

/* Families by architecture. "llama" may be mistral, which computes the same. */
static const struct { const char *arch, *type, *class; } families[] = {
	{ "llama", "llama", "LlamaForCausalLM" },
	{ "qwen2", "qwen2", "Qwen2ForCausalLM" },
	{ "qwen3", "qwen3", "Qwen3ForCausalLM" },
};

struct meta { const struct gr_file *g; const char *arch; char key[KEY_MAX]; struct buf *out; struct err *err; };

static const char *key_of(struct meta *m, const char *name)
{
	snprintf(m->key, sizeof(m->key), "%s.%s", m->arch, name);
	return m->key;
}

/* `otherwise` = 0: it must be there. */
static int get_size(struct meta *m, const char *name, uint64_t otherwise, uint64_t *out)
{
	const char *key = key_of(m, name);

	*out = otherwise;
	if (gr_u64(m->g, key, out) || (otherwise && !gr_pair(m->g, key)))
		return 0;
	return err_set(m->err, ERR_CORRUPT, "the gguf file's %s is not a positive integer", key);
}

static int put_size(struct meta *m, const char *name, const char *member, uint64_t otherwise)
{
	uint64_t value;

	if (get_size(m, name, otherwise, &value) != 0)
		return -1;
	return buf_printf(m->out, "  \"%s\": %llu,\n", member, (unsigned long long)value);
}

/* The fewest digits that read back to the same float32, which is what the file holds. */
static int put_float(struct meta *m, const char *name, const char *member, double otherwise)
{
	const char *key = key_of(m, name);
	double value = otherwise;
	char text[40];

	if (!gr_number(m->g, key, &value) && gr_pair(m->g, key))
		return err_set(m->err, ERR_CORRUPT, "the gguf file's %s is not a number", key);
	if (!isfinite(value))
		return err_set(m->err, ERR_CORRUPT, "the gguf file's %s is not finite", key);
	for (int digits = 1; digits <= 17; digits++) {
		snprintf(text, sizeof(text), "%.*g", digits, value);
		if (strtof(text, NULL) == (float)value)
			break;
	}
	return buf_printf(m->out, "  \"%s\": %s,\n", member, text);
}

static bool is_text(struct gr_text t, const char *wanted)
{
	return t.len == strlen(wanted) && memcmp(t.at, wanted, t.len) == 0;
}

static int put_scaling(struct meta *m)
{
	struct gr_text type;
	double factor;

	if (!gr_string(m->g, key_of(m, "rope.scaling.type"), &type) || is_text(type, "none"))
		return 0;
	if (is_text(type, "linear") && gr_number(m->g, key_of(m, "rope.scaling.factor"), &factor) && isfinite(factor))
		return buf_printf(m->out, "  \"rope_scaling\": {\"type\": \"linear\", \"factor\": %.9g},\n", factor);
	return err_set(m->err, ERR_UNSUPPORTED, "the gguf file scales rotary embedding in another way than linearly, and carries no "
		       "config.json that says how");
}

static int put_members(struct meta *m, bool biased, bool tied, uint64_t vocab)
{
	uint64_t hidden, heads;

	if (get_size(m, "embedding_length", 0, &hidden) != 0 || get_size(m, "attention.head_count", 0, &heads) != 0)
		return -1;
	if (heads == 0)
		return err_set(m->err, ERR_CORRUPT, "the gguf file's %s is 0", m->key);
	if (put_size(m, "block_count", "num_hidden_layers", 0) != 0 ||
	    put_size(m, "embedding_length", "hidden_size", 0) != 0 ||
	    put_size(m, "feed_forward_length", "intermediate_size", 0) != 0 ||
	    put_size(m, "attention.head_count", "num_attention_heads", 0) != 0 ||
	    put_size(m, "attention.head_count_kv", "num_key_value_heads", heads) != 0 ||
	    put_size(m, "attention.key_length", "head_dim", hidden / heads ? hidden / heads : 1) != 0 ||
	    put_size(m, "context_length", "max_position_embeddings", 0) != 0 ||
	    put_float(m, "attention.layer_norm_rms_epsilon", "rms_norm_eps", 1e-6) != 0 ||
	    put_float(m, "rope.freq_base", "rope_theta", 10000) != 0 || put_scaling(m) != 0)
		return -1;
	if (biased && strcmp(m->arch, "llama") == 0)
		buf_puts(m->out, "  \"attention_bias\": true,\n");
	return buf_printf(m->out, "  \"hidden_act\": \"silu\",\n  \"tie_word_embeddings\": %s,\n  \"vocab_size\": %llu,\n"
			  "  \"torch_dtype\": \"float16\"\n}\n", tied ? "true" : "false", (unsigned long long)vocab);
}

int stored_gguf_config(const struct gr_file *g, bool biased, bool tied, uint64_t vocab, struct buf *out, struct err *err)
{
	struct meta m = { .g = g, .out = out, .err = err };
	struct gr_text arch = { "", 0 };
	size_t i = 0;
	int rc;

	gr_string(g, "general.architecture", &arch);
	while (i < sizeof(families) / sizeof(families[0]) && !is_text(arch, families[i].arch))
		i++;
	if (i == sizeof(families) / sizeof(families[0]))
		return err_set(err, ERR_UNSUPPORTED, "the gguf file is of another architecture than llama, qwen2 and qwen3");
	if (gr_find(g, "rope_freqs.weight"))
		return err_set(err, ERR_UNSUPPORTED, "the gguf file scales rotary embedding by factors (rope_freqs.weight), and carries "
			       "no config.json that says where they come from");
	m.arch = families[i].arch;
	buf_printf(out, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n", families[i].class, families[i].type);
	rc = put_members(&m, biased, tied, vocab);
	return rc == 0 && buf_failed(out) ? err_set_nomem(err, "config.json") : rc;
}
