#include "tests/lib/chain_case.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/source.h"
#include "worker/task.h"

/* More tokens than a piece of the plain backends has, and pieces that sequences do not fill. */
enum { SAMPLES = 40, SEQ_LEN = 72, PER_SHARD = 36, SHARDS = 2, LAYERS = 4, WINDOWS = 4, INPUTS = 16, TEXT = 4096 };

struct chain {
	struct backend *be;
	struct source *model;
	const char *dir;
	struct buf told;
};

/* --- running one task ------------------------------------------------------------------------------ */

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Every file of the folder, in the order of their names. */
static void tell_outputs(struct chain *c, const char *out)
{
	struct dirent *e;
	char *names[64], path[1024], hex[DIGEST_HEX];
	size_t count = 0;
	struct err err = ERR_INIT;
	DIR *d = opendir(out);

	assert_non_null(d);
	while ((e = readdir(d)) != NULL) {
		if (e->d_name[0] == '.')
			continue;
		assert_true(count < 64);
		names[count++] = mem_strdup(e->d_name);
	}
	closedir(d);
	qsort(names, count, sizeof(names[0]), by_name);
	for (size_t i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/%s", out, names[i]);
		if (digest_file(path, hex, NULL, &err) != 0)
			fail_msg("%s", err.text);
		buf_printf(&c->told, "  %s %s\n", names[i], hex);
		mem_free(names[i]);
	}
}

/* inputs: "name=path below the chain's folder", ended by NULL; a path that begins with / stands for itself. */
static void run(struct chain *c, const char *kind, const char *out, const char *spec_text, const char *const *inputs)
{
	struct err err = ERR_INIT;
	struct json *spec = json_parse(spec_text, strlen(spec_text), &err), *result = NULL;
	struct task_input list[INPUTS];
	char names[INPUTS][32], paths[INPUTS][1024], folder[512], *text;
	struct task_env env = { .backend = c->be, .model = c->model, .inputs = list, .out_dir = folder };

	snprintf(folder, sizeof(folder), "%s/%s", c->dir, out);
	for (; inputs[env.input_count]; env.input_count++) {
		const size_t i = env.input_count;
		const char *equals = strchr(inputs[i], '=');

		assert_true(i < INPUTS && equals);
		snprintf(names[i], sizeof(names[i]), "%.*s", (int)(equals - inputs[i]), inputs[i]);
		snprintf(paths[i], sizeof(paths[i]), "%s%s%s", equals[1] == '/' ? "" : c->dir, equals[1] == '/' ? "" : "/",
			 equals + 1);
		list[i] = (struct task_input){ .name = names[i], .path = paths[i] };
	}
	if (!spec || dir_make(folder, &err) != 0 || task_run(kind, spec, &env, &result, &err) != 0)
		fail_msg("%s into %s with %s: %s", kind, out, c->be->ops->name, err.text);
	text = json_print(result, false);
	buf_printf(&c->told, "%s %s: %s\n", kind, out, text);
	tell_outputs(c, folder);
	mem_free(text);
	json_free(spec);
	json_free(result);
}

/* --- the chain -------------------------------------------------------------------------------------- */

static void prepare(struct chain *c)
{
	char text[600], spec[256], out[16];

	snprintf(text, sizeof(text), "text=%s/examples/texts/calibration.jsonl", getenv("QUARRY_ROOT"));
	snprintf(spec, sizeof(spec), "{\"role\":\"calibration\",\"name\":\"c.jsonl\",\"format\":\"jsonl\",\"samples\":%d,"
		 "\"seq_len\":%d}", SAMPLES, SEQ_LEN);
	run(c, "tokenize", "cal", spec, (const char *[]){ text, NULL });
	snprintf(text, sizeof(text), "text=%s/examples/texts/evaluation.txt", getenv("QUARRY_ROOT"));
	snprintf(spec, sizeof(spec), "{\"role\":\"eval\",\"name\":\"e.txt\",\"format\":\"text\",\"max_windows\":%d,"
		 "\"seq_len\":%d}", WINDOWS, SEQ_LEN);
	run(c, "tokenize", "eval", spec, (const char *[]){ text, NULL });
	for (int s = 0; s < SHARDS; s++) {
		snprintf(spec, sizeof(spec), "{\"shard\":%d,\"first\":%d,\"count\":%d,\"seq_len\":%d}", s, s * PER_SHARD,
			 s == 0 ? PER_SHARD : SAMPLES - PER_SHARD, SEQ_LEN);
		snprintf(out, sizeof(out), "x0-%d", s);
		run(c, "embed", out, spec, (const char *[]){ "tokens=cal/tokens", NULL });
	}
}

/* What each layer is for: fields before the modules, settings, and a part of the names to skip. */
static const struct { const char *extra, *settings, *skip; } ways[LAYERS] = {
	{ "\"refine\":2,\"distill\":{\"samples\":3,\"epochs\":2,\"batch\":2},",
	  "\"bits\":2,\"group_size\":64,\"method\":\"neuqi\",\"zero_point\":\"float\",\"symmetric\":false,"
	  "\"rounding\":\"ldlq\"", NULL },
	{ "\"refine\":1,\"samples\":30,\"distill\":{\"samples\":4,\"epochs\":1,\"train_codes\":false},",
	  "\"bits\":3,\"group_size\":-1,\"method\":\"neuqi\",\"zero_point\":\"integer\",\"symmetric\":false,"
	  "\"rounding\":\"ldlq\"", "mlp.up" },
	{ "\"refine\":0,\"distill\":{\"samples\":40,\"epochs\":1,\"batch\":5},",
	  "\"bits\":4,\"group_size\":32,\"method\":\"minmax\",\"zero_point\":\"float\",\"symmetric\":true,"
	  "\"rounding\":\"nearest\"", "self_attn" },
	{ "\"refine\":1,\"distill\":null,",
	  "\"bits\":3,\"group_size\":64,\"method\":\"neuqi\",\"zero_point\":\"float\",\"symmetric\":false,"
	  "\"rounding\":\"ldlq\",\"zero_parts\":4", "o_proj" },
};

static void quantize(struct chain *c, int layer)
{
	static const char *const suffixes[] = { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
		"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj" };
	char spec[TEXT], in[SHARDS][64], out[32];
	int used = snprintf(spec, sizeof(spec), "{\"layer\":%d,\"damp\":0.01,%s\"modules\":[", layer, ways[layer].extra);

	for (int i = 0; i < 7; i++)
		used += snprintf(spec + used, sizeof(spec) - (size_t)used,
				 "%s{\"name\":\"model.layers.%d.%s\",\"skip\":%s,%s}", i ? "," : "", layer, suffixes[i],
				 ways[layer].skip && strstr(suffixes[i], ways[layer].skip) ? "true" : "false",
				 ways[layer].settings);
	snprintf(spec + used, sizeof(spec) - (size_t)used, "]}");
	for (int s = 0; s < SHARDS; s++)
		snprintf(in[s], sizeof(in[s]), "hidden-%d=x%d-%d/hidden", s, layer, s);
	snprintf(out, sizeof(out), "q%d", layer);
	run(c, "quantize", out, spec, (const char *[]){ in[0], in[1], NULL });
}

/* One shard through the original layer, and the first through the quantized one as well. */
static void capture(struct chain *c, int layer, int shard)
{
	char spec[64], in[64], through[64], out[32];

	snprintf(spec, sizeof(spec), "{\"layer\":%d,\"shard\":%d}", layer, shard);
	snprintf(in, sizeof(in), "hidden=x%d-%d/hidden", layer, shard);
	snprintf(out, sizeof(out), "x%d-%d", layer + 1, shard);
	run(c, "capture", out, spec, (const char *[]){ in, NULL });
	if (shard > 0)
		return;
	snprintf(through, sizeof(through), "layer=q%d/layer", layer);
	snprintf(out, sizeof(out), "p%d-%d", layer + 1, shard);
	run(c, "capture", out, spec, (const char *[]){ in, through, NULL });
}

static void evaluate(struct chain *c)
{
	const char *const plain[] = { "tokens=eval/tokens", NULL };
	const char *const compared[] = { "tokens=eval/tokens", "layer-0=q0/layer", "layer-1=q1/layer", "layer-2=q2/layer",
					 "layer-3=q3/layer", "reference=e-original/hidden", NULL };
	char spec[256];

	snprintf(spec, sizeof(spec), "{\"model\":\"original\",\"text\":0,\"chunk\":0,\"chunks\":1,\"seq_len\":%d,"
		 "\"keep_hidden\":true}", SEQ_LEN);
	run(c, "evaluate", "e-original", spec, plain);
	snprintf(spec, sizeof(spec), "{\"model\":\"quantized\",\"text\":0,\"chunk\":0,\"chunks\":1,\"seq_len\":%d,"
		 "\"keep_hidden\":false}", SEQ_LEN);
	run(c, "evaluate", "e-quantized", spec, compared);
}

static void distill(struct chain *c)
{
	run(c, "distill", "d", "{\"sequences\":4,\"epochs\":1,\"batch\":2,\"seed\":7}",
	    (const char *[]){ "tokens=cal/tokens", "layer-0=q0/layer", "layer-1=q1/layer", "layer-2=q2/layer",
			      "layer-3=q3/layer", "target-0=x4-0/hidden", "target-1=x4-1/hidden", NULL });
}

char *chain_case_run(struct backend *be, const char *dir)
{
	struct chain c = { .be = be, .dir = dir };
	struct err err = ERR_INIT;
	char path[512], *told;

	snprintf(path, sizeof(path), "%s/examples/fable-tiny", getenv("QUARRY_ROOT"));
	c.model = source_dir_open(path, &err);
	if (!c.model || dir_make(dir, &err) != 0)
		fail_msg("%s", err.text);
	buf_init(&c.told, 1 << 20);
	prepare(&c);
	for (int layer = 0; layer < LAYERS; layer++) {
		quantize(&c, layer);
		for (int s = 0; s < SHARDS; s++)
			capture(&c, layer, s);
	}
	evaluate(&c);
	distill(&c);
	told = buf_take(&c.told);
	assert_non_null(told);
	buf_deinit(&c.told);
	c.model->close(c.model);
	return told;
}
