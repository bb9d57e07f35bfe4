#include "tests/lib/distill_case.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/checkpoint.h"
#include "common/digest.h"
#include "common/file.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"

enum { TEXT_BYTES = 8192, PATH_BYTES = 600 };

static const char two_bits[] = "\"bits\":2,\"group_size\":64,\"method\":\"neuqi\",\"zero_point\":\"float\","
	"\"symmetric\":false,\"rounding\":\"ldlq\"";

static char *keep(struct distill_case *c, const char *text)
{
	char *copy = mem_strdup(text);

	assert_non_null(copy);
	assert_true(c->owned_count < sizeof(c->owned) / sizeof(c->owned[0]));
	return c->owned[c->owned_count++] = copy;
}

static void add_input(struct distill_case *c, const char *name, const char *path)
{
	assert_true(c->input_count < DISTILL_CASE_INPUTS);
	c->inputs[c->input_count++] = (struct task_input){ .name = keep(c, name), .path = keep(c, path) };
}

/* --- the tasks before ------------------------------------------------------------------------------- */

struct making {
	struct distill_case *c;
	const struct distill_case_options *o;
	struct backend *backend;
	size_t shards;
};

static void run_before(struct making *m, const char *kind, const char *spec_text, const char *out,
		       const struct task_input *inputs, size_t count)
{
	struct err err = ERR_INIT;
	struct json *spec = json_parse(spec_text, strlen(spec_text), &err), *result = NULL;
	struct task_env env = { .backend = m->backend, .model = m->c->model, .inputs = inputs, .input_count = count,
				.out_dir = out };

	if (!spec || dir_make(out, &err) != 0 || task_run(kind, spec, &env, &result, &err) != 0)
		fail_msg("%s: %s", kind, err.text);
	json_free(spec);
	json_free(result);
}

static void in_dir(const struct making *m, char path[PATH_BYTES], const char *name)
{
	snprintf(path, PATH_BYTES, "%s/%s", m->o->dir, name);
}

static void make_tokens(struct making *m)
{
	char spec[256], out[PATH_BYTES], path[PATH_BYTES];
	struct task_input text = { .name = "text", .path = path };

	snprintf(path, sizeof(path), "%s/examples/texts/calibration.jsonl", getenv("QUARRY_ROOT"));
	snprintf(spec, sizeof(spec), "{\"role\":\"calibration\",\"name\":\"calibration.jsonl\",\"format\":\"jsonl\","
		 "\"samples\":%zu,\"seq_len\":%zu}", m->o->sequences, m->o->seq_len);
	in_dir(m, out, "cal");
	run_before(m, "tokenize", spec, out, &text, 1);
	in_dir(m, path, "cal/tokens");
	add_input(m->c, "tokens", path);
}

static void make_hidden(struct making *m, size_t shard)
{
	size_t first = shard * m->o->per_shard, left = m->o->sequences - first;
	char spec[256], name[64], out[PATH_BYTES], path[PATH_BYTES];
	struct task_input in = { .name = "tokens", .path = path };

	in_dir(m, path, "cal/tokens");
	snprintf(spec, sizeof(spec), "{\"shard\":%zu,\"first\":%zu,\"count\":%zu,\"seq_len\":%zu}", shard, first,
		 left < m->o->per_shard ? left : m->o->per_shard, m->o->seq_len);
	snprintf(name, sizeof(name), "x0-%zu", shard);
	in_dir(m, out, name);
	run_before(m, "embed", spec, out, &in, 1);
	in.name = "hidden";
	for (size_t l = 0; l < m->c->layers; l++) {
		snprintf(name, sizeof(name), "x%zu-%zu/hidden", l, shard);
		in_dir(m, path, name);
		snprintf(name, sizeof(name), "x%zu-%zu", l + 1, shard);
		in_dir(m, out, name);
		snprintf(spec, sizeof(spec), "{\"layer\":%zu,\"shard\":%zu}", l, shard);
		run_before(m, "capture", spec, out, &in, 1);
	}
	snprintf(name, sizeof(name), "x%zu-%zu/hidden", m->c->layers, shard);
	in_dir(m, path, name);
	snprintf(name, sizeof(name), "target-%zu", shard);
	add_input(m->c, name, path);
}

static void layer_spec(const struct making *m, size_t layer, char spec[TEXT_BYTES])
{
	static const char *const suffixes[] = { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
		"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj" };
	int used = snprintf(spec, TEXT_BYTES, "{\"layer\":%zu,\"damp\":0.01,\"samples\":%zu,\"refine\":0,\"distill\":null,"
			    "\"modules\":[", layer, m->o->sequences);

	for (int i = 0; i < 7; i++)
		used += snprintf(spec + used, TEXT_BYTES - (size_t)used,
				 "%s{\"name\":\"model.layers.%zu.%s\",\"skip\":%s,%s}", i ? "," : "", layer, suffixes[i],
				 m->o->skip && strstr(suffixes[i], m->o->skip) ? "true" : "false",
				 m->o->settings ? m->o->settings : two_bits);
	snprintf(spec + used, TEXT_BYTES - (size_t)used, "]}");
}

static void make_layer(struct making *m, size_t layer)
{
	struct task_input inputs[DISTILL_CASE_INPUTS];
	char spec[TEXT_BYTES], name[64], out[PATH_BYTES], path[PATH_BYTES];
	struct distill_case strings = { 0 };

	for (size_t s = 0; s < m->shards; s++) {
		snprintf(name, sizeof(name), "x%zu-%zu/hidden", layer, s);
		in_dir(m, path, name);
		snprintf(name, sizeof(name), "hidden-%zu", s);
		inputs[s] = (struct task_input){ .name = keep(&strings, name), .path = keep(&strings, path) };
	}
	layer_spec(m, layer, spec);
	snprintf(name, sizeof(name), "q%zu", layer);
	in_dir(m, out, name);
	run_before(m, "quantize", spec, out, inputs, m->shards);
	snprintf(path, sizeof(path), "%.500s/layer", out);
	snprintf(name, sizeof(name), "layer-%zu", layer);
	add_input(m->c, name, path);
	distill_case_free(&strings);
}

static size_t count_layers(struct source *model)
{
	struct checkpoint ck;
	struct err err = ERR_INIT;
	size_t layers;

	if (checkpoint_open(&ck, model, NULL, &err) != 0)
		fail_msg("%s", err.text);
	layers = ck.config.layers;
	checkpoint_close(&ck);
	return layers;
}

void distill_case_make(struct distill_case *c, const struct distill_case_options *options)
{
	struct making m = { .c = c, .o = options };
	struct err err = ERR_INIT;

	*c = (struct distill_case){ .dir = options->dir, .sequences = options->sequences, .seq_len = options->seq_len };
	c->model = source_dir_open(options->model_dir, &err);
	if (!c->model)
		fail_msg("%s", err.text);
	c->layers = count_layers(c->model);
	m.backend = case_open(tested_backend(), 2);
	m.shards = (options->sequences + options->per_shard - 1) / options->per_shard;
	make_tokens(&m);
	for (size_t s = 0; s < m.shards; s++)
		make_hidden(&m, s);
	for (size_t l = 0; l < c->layers; l++)
		make_layer(&m, l);
	m.backend->ops->close(m.backend);
}

void distill_case_free(struct distill_case *c)
{
	for (size_t i = 0; i < c->owned_count; i++)
		mem_free(c->owned[i]);
	if (c->model)
		c->model->close(c->model);
	*c = (struct distill_case){ 0 };
}

/* --- running ------------------------------------------------------------------------------------------ */

struct json *distill_case_run(const struct distill_case *c, const struct distill_run_options *run, struct err *err)
{
	struct task_input inputs[DISTILL_CASE_INPUTS + 1];
	struct json *spec = json_parse(run->spec, strlen(run->spec), err), *result = NULL;
	struct task_env env = {
		.model = c->model, .inputs = inputs, .input_count = c->input_count, .out_dir = run->out,
		.progress = run->progress, .progress_ctx = run->ctx, .scratch_dir = run->scratch,
		.checkpoint = run->leave, .checkpoint_ctx = run->ctx,
	};

	assert_non_null(spec);
	memcpy(inputs, c->inputs, c->input_count * sizeof(inputs[0]));
	if (run->checkpoint)
		inputs[env.input_count++] = (struct task_input){ .name = "checkpoint", .path = run->checkpoint };
	assert_int_equal(dir_remove(run->out, err), 0);
	assert_int_equal(dir_make(run->out, err), 0);
	env.backend = case_open(run->backend ? run->backend : tested_backend(), run->threads ? run->threads : 1);
	if (run->ready)
		run->ready(run->ctx);
	if (task_run("distill", spec, &env, &result, err) != 0)
		assert_null(result);
	env.backend->ops->close(env.backend);
	json_free(spec);
	return result;
}

struct json *distill_case_must_run(const struct distill_case *c, const struct distill_run_options *run)
{
	struct err err = ERR_INIT;
	struct json *result = distill_case_run(c, run, &err);

	if (!result)
		fail_msg("distill: %s", err.text);
	return result;
}

struct killing { const char *stop_at; int left; };

static bool kill_at(void *ctx, double fraction, const char *what)
{
	struct killing *k = ctx;

	(void)fraction;
	if (strstr(what, k->stop_at) && --k->left == 0)
		kill(getpid(), SIGKILL);
	return true;
}

void distill_case_kill(const struct distill_case *c, const struct distill_run_options *run, const char *stop_at, int nth)
{
	struct killing k = { stop_at, nth };
	struct distill_run_options killed = *run;
	struct err err = ERR_INIT;
	int status;
	pid_t child = fork();

	assert_true(child >= 0);
	if (child == 0) {
		killed.progress = kill_at;
		killed.ctx = &k;
		distill_case_run(c, &killed, &err);
		_exit(1); /* it should not have come to its end */
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
}

/* --- comparing ------------------------------------------------------------------------------------------- */

static void digest_output(const char *dir, size_t layer, char hex[DIGEST_HEX])
{
	char path[PATH_BYTES];
	struct err err = ERR_INIT;

	snprintf(path, sizeof(path), "%s/layer-%zu", dir, layer);
	if (digest_file(path, hex, NULL, &err) != 0)
		fail_msg("%s", err.text);
}

bool distill_case_same(const struct distill_case *c, const char *a, const char *b)
{
	for (size_t l = 0; l < c->layers; l++) {
		char left[DIGEST_HEX], right[DIGEST_HEX];

		digest_output(a, l, left);
		digest_output(b, l, right);
		if (strcmp(left, right) != 0)
			return false;
	}
	return true;
}

void distill_case_assert_same(const struct distill_case *c, const char *a, const char *b)
{
	if (!distill_case_same(c, a, b))
		fail_msg("the layers of %s and %s differ", a, b);
}
