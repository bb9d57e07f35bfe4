/* task_tokenize.c - a calibration or evaluation text to token sequences. */
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/model_config.h"
#include "worker/sampler.h"
#include "worker/task_kinds.h"
#include "worker/tensor_file.h"

enum { TOKENIZER_BYTES_MAX = 256 << 20, CONFIG_BYTES_MAX = 1 << 20 };
static const size_t text_bytes_max = (size_t)4 << 30;

static struct tokenizer *load_tokenizer(struct source *model, struct err *err)
{
	size_t len;
	char *text = source_read_all(model, "tokenizer.json", TOKENIZER_BYTES_MAX, &len, err);
	struct tokenizer *t;

	if (!text)
		return NULL;
	t = tokenizer_new(text, len, err);
	if (!t)
		err_prefix(err, "tokenizer.json");
	mem_free(text);
	return t;
}

static int load_vocab(struct source *model, size_t *vocab, struct err *err)
{
	struct model_config config;
	size_t len;
	char *text = source_read_all(model, "config.json", CONFIG_BYTES_MAX, &len, err);
	int rc;

	if (!text)
		return -1;
	rc = model_config_parse(&config, text, len, NULL, err);
	mem_free(text);
	*vocab = rc == 0 ? config.vocab : 0;
	return rc;
}

static int read_spec(struct sampler *s, const struct json *spec, bool *calibration, bool *jsonl,
		     struct err *err)
{
	const char *role, *format;
	int64_t seq_len, wanted;

	if (json_require_string(spec, "role", &role, err) != 0 ||
	    json_require_string(spec, "name", &s->name, err) != 0 ||
	    json_require_string(spec, "format", &format, err) != 0 ||
	    json_require_int(spec, "seq_len", 2, 1 << 20, &seq_len, err) != 0)
		return -1;
	*calibration = strcmp(role, "calibration") == 0;
	*jsonl = strcmp(format, "jsonl") == 0;
	wanted = *calibration ? json_get_int(spec, "samples", 0) : json_get_int(spec, "max_windows", 0);
	if (wanted < 0 || (*calibration && wanted == 0))
		return err_set(err, ERR_INVALID, "a tokenize task needs a positive number of samples");
	s->seq_len = (size_t)seq_len;
	s->wanted = (size_t)wanted;
	s->seed = (uint64_t)json_get_int(spec, "seed", 0);
	return 0;
}

static int sample(struct sampler *s, const struct task_env *env, bool calibration, bool jsonl,
		  struct err *err)
{
	const struct task_input *input = task_input_find(env, "text", err);
	size_t len;
	char *text;
	int rc;

	if (!input)
		return -1;
	text = file_read_all(input->path, text_bytes_max, &len, err);
	if (!text)
		return -1;
	if (calibration && jsonl)
		rc = sampler_take_lines(s, text, len, err);
	else
		rc = sampler_take_windows(s, text, len, jsonl, calibration, err);
	mem_free(text);
	return rc;
}

static int write_result(const struct sampler *s, const struct task_env *env, struct json **result,
			struct err *err)
{
	char *path = task_output_path(env, "tokens", err);
	int rc = path ? tokens_file_write(path, s->ids.ids, s->sequences, s->seq_len, err) : -1;

	mem_free(path);
	if (rc != 0)
		return -1;
	*result = json_new_object();
	if (json_set_int(*result, "sequences", (int64_t)s->sequences) != 0 ||
	    json_set_int(*result, "tokens", (int64_t)(s->sequences * s->seq_len)) != 0 ||
	    json_set_int(*result, "text_tokens", (int64_t)s->text_tokens) != 0)
		return err_set_nomem(err, "a result");
	return 0;
}

int task_tokenize(const struct json *spec, struct task_env *env, struct json **result, struct err *err)
{
	struct sampler s = { 0 };
	struct tokenizer *tokenizer = NULL;
	bool calibration, jsonl;
	int rc = -1;

	if (read_spec(&s, spec, &calibration, &jsonl, err) != 0 ||
	    load_vocab(env->model, &s.vocab, err) != 0 ||
	    task_step(env, 0.1, "reading the tokenizer", err) != 0)
		return -1;
	tokenizer = load_tokenizer(env->model, err);
	if (!tokenizer)
		return -1;
	s.tokenizer = tokenizer;
	if (task_step(env, 0.3, "tokenizing", err) == 0 && sample(&s, env, calibration, jsonl, err) == 0)
		rc = write_result(&s, env, result, err);
	if (rc != 0) {
		json_free(*result);
		*result = NULL;
	}
	sampler_deinit(&s);
	tokenizer_free(tokenizer);
	return rc;
}
