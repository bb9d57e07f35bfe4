/* README.md of a result: what it is, what it cost, how to load it. Nothing in it differs from run to run. */
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/result_card.h"
#include "server/finish.h"

enum { WORST_SHOWN = 5 };

#define FENCE "```"
#define TRANSFORMERS \
	FENCE "python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n" \
	"model = AutoModelForCausalLM.from_pretrained(\"this folder\")\n" \
	"tokenizer = AutoTokenizer.from_pretrained(\"this folder\")\n" FENCE
#define VLLM "\n\n" FENCE "\nvllm serve \"this folder\"\n" FENCE

/* What reads a format, and how. */
static const struct loading { const char *format, *library, *text; } loadings[] = {
	{ "packed", "quarry",
	  "Each quantized linear `P` is stored as `P.codes` (U32, a bit stream per row, least significant bit first), "
	  "`P.scales` and `P.zeros` (F32, rows by groups). A weight is `scale * (code - zero)`. The settings of each module "
	  "stand in `config.json` under `quantization_config` and in the metadata of the safetensors files. "
	  "`quarry convert` makes the other formats of it." },
	{ "mlx", "mlx", FENCE "\nmlx_lm.generate --model \"this folder\" --prompt \"Once upon a time\"\n" FENCE },
	{ "gguf", "gguf", FENCE "\nllama-cli -m model.gguf -p \"Once upon a time\"\n" FENCE },
	{ "compressed-tensors", "transformers", "With the package `compressed-tensors`:\n\n" TRANSFORMERS VLLM },
	{ "gptq", "transformers", "With the package `gptqmodel`:\n\n" TRANSFORMERS VLLM },
	{ "awq", "transformers", "With a package for AWQ kernels (`gptqmodel`):\n\n" TRANSFORMERS VLLM },
	{ "dense", "transformers", TRANSFORMERS },
	{ "dense-f16", "transformers", TRANSFORMERS },
	{ "dense-f32", "transformers", TRANSFORMERS },
};

static const struct loading *loading_of(const struct output_format *format)
{
	size_t i = 0;

	while (i + 1 < sizeof(loadings) / sizeof(loadings[0]) && strcmp(loadings[i].format, format->name) != 0)
		i++;
	return &loadings[i];
}

static void put_bytes(struct buf *out, double bytes)
{
	static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB" };
	size_t u = 0;

	while (bytes >= 1024 && u + 1 < sizeof(units) / sizeof(units[0])) {
		bytes /= 1024;
		u++;
	}
	buf_printf(out, u == 0 ? "%.0f %s" : "%.2f %s", bytes, units[u]);
}

static void put_head(struct buf *out, const struct json *report, const struct output_format *format)
{
	const struct json *recipe = json_get(report, "recipe");
	int64_t group = json_get_int(recipe, "group_size", -1);

	buf_printf(out, "---\nlibrary_name: %s\ntags:\n- quarry\n- quantized\n---\n\n# ", loading_of(format)->library);
	card_put_plain(out, json_get_string(json_get(report, "model"), "name", "model"));
	buf_printf(out, ", %lld bits", (long long)json_get_int(recipe, "bits", 0));
	if (group > 0)
		buf_printf(out, ", groups of %lld", (long long)group);
	else
		buf_puts(out, ", one group per output channel");
	buf_printf(out, "\n\nQuantized by Quarry %s. Format `%s`: %s.\n\n", json_get_string(report, "quarry", "?"),
		   format->name, format->about);
}

static void put_settings(struct buf *out, const struct json *recipe)
{
	static const char *const keys[] = {
		"bits", "group_size", "method", "zero_point", "symmetric", "rounding", "refine", "distill",
		"propagate", "samples", "seq_len",
	};

	buf_puts(out, "## Settings\n\n| option | value |\n| --- | --- |\n");
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		const struct json *value = json_get(recipe, keys[i]);
		char *text = value ? json_print(value, false) : NULL;

		if (text)
			buf_printf(out, "| %s | %s |\n", keys[i],
				   json_type(value) == JSON_STRING ? json_string(value, "") : text);
		mem_free(text);
	}
	if (json_size(json_get(recipe, "override")) > 0)
		buf_printf(out, "| overrides | %zu, see report.json |\n", json_size(json_get(recipe, "override")));
	buf_puts(out, "| calibration | ");
	card_put_plain(out, json_get_string(recipe, "calibration", "?"));
	buf_puts(out, " |\n\n");
}

/* What the steps after rounding did to the loss of the modules. */
static void put_steps(struct buf *out, const struct json *report)
{
	const struct json *summary = json_get(report, "summary"), *end = json_get(report, "distillation");
	double rounded = json_get_number(summary, "relative_loss_rounded", -1);

	if (json_type(json_get(summary, "storage_cost")) == JSON_NUMBER)
		buf_printf(out, "Scales and zero-points as the formats store them change the loss of nearest codes by %+.3f %%; rounding "
			   "and refinement chose codes for the stored values.\n\n",
			   100 * json_get_number(summary, "storage_cost", 0));
	if (rounded >= 0)
		buf_printf(out, "Output energy lost in the quantized modules: %.4f %% after rounding, %.4f %% after "
			   "refinement.\n\n", 100 * rounded, 100 * json_get_number(summary, "relative_loss", 0));
	if (json_type(end) == JSON_OBJECT)
		buf_printf(out, "KL divergence on a part of the calibration text: %.5f before end-to-end distillation, "
			   "%.5f after.\n\n", json_get_number(json_get(end, "before"), "kl", 0),
			   json_get_number(json_get(end, "after"), "kl", 0));
}

static void put_sizes(struct buf *out, const struct json *report, const struct output_format *format)
{
	const struct json *sizes = json_get(report, "sizes");

	buf_puts(out, "Weights: ");
	put_bytes(out, json_get_number(sizes, "source_bytes", 0));
	buf_puts(out, " before, ");
	put_bytes(out, json_get_number(json_get(sizes, "outputs"), format->name, 0));
	buf_printf(out, " in this folder; %.3f bits per weight in the quantized modules of the blocks, scales and zero-points "
		   "included.\n\n",
		   json_get_number(json_get(json_get(report, "outputs"), format->name), "bits_per_weight", 0));
}

struct worst { const char *name; double loss; };

static int by_loss(const void *a, const void *b)
{
	const struct worst *x = a, *y = b;

	if (x->loss != y->loss)
		return x->loss < y->loss ? 1 : -1;
	return strcmp(x->name, y->name);
}

static int put_worst(struct buf *out, const struct json *modules, struct err *err)
{
	struct worst *all = mem_alloc(json_size(modules), sizeof(*all));
	size_t count = 0;

	if (!all)
		return err_set_nomem(err, "the worst modules");
	for (const struct json *m = json_first(modules); m; m = json_next(m))
		if (json_type(json_get(m, "relative_loss")) == JSON_NUMBER)
			all[count++] = (struct worst){ json_get_string(m, "name", "?"),
						       json_get_number(m, "relative_loss", 0) };
	qsort(all, count, sizeof(*all), by_loss);
	if (count > 0)
		buf_puts(out, "Modules that lost most (share of their output's energy on the calibration text):\n\n");
	for (size_t i = 0; i < count && i < WORST_SHOWN; i++)
		buf_printf(out, "* %s: %.4f %%\n", all[i].name, 100 * all[i].loss);
	buf_puts(out, "\n");
	mem_free(all);
	return 0;
}

static void put_loading(struct buf *out, const struct output_format *format)
{
	buf_printf(out, "## How to load it\n\n%s\n", loading_of(format)->text);
}

int finish_card(const struct json *report, const struct output_format *format, struct buf *out, struct err *err)
{
	put_head(out, report, format);
	put_settings(out, json_get(report, "recipe"));
	buf_puts(out, "## What it cost\n\n");
	card_put_perplexity(out, report);
	put_steps(out, report);
	put_sizes(out, report, format);
	if (put_worst(out, json_get(report, "modules"), err) != 0)
		return -1;
	put_loading(out, format);
	return buf_failed(out) ? err_set_nomem(err, "README.md") : 0;
}
