#include <stdio.h>
#include <string.h>

#include "cli/connect.h"
#include "cli/embedded.h"
#include "cli/text.h"
#include "common/recipe.h"

static const struct arg_spec options[] = {
	{ "text", "FILE", "the text, plain or .jsonl; may be repeated (default: the shipped text)" },
	{ "seq-len", "N", "tokens per window (default 1024, or the model's longest)" },
	{ "windows", "N", "at most so many windows per text; 0 = all (default)" },
	{ "reference", "MODEL_DIR", "measure KL divergence and top-1 agreement against this model" },
	{ "json", NULL, "the result as JSON" },
	EMBEDDED_SPECS,
	{ NULL, NULL, NULL },
};

/* The command line in the words of `quantize`: --text is --eval, and so on. */
static int translate(const struct args *args, struct args *as, struct err *err)
{
	static const char *const names[][2] = { { "text", "eval" }, { "workers", "workers" },
						{ "backend", "backend" }, { "memory", "memory" },
						{ "devices", "devices" }, { "gpu-memory", "gpu-memory" },
						{ "work", "work" }, { "reference", "reference" } };

	*as = (struct args){ .command = args->command, .recipe = json_new_object() };
	for (size_t i = 0; i < args->value_count; i++)
		for (size_t n = 0; n < sizeof(names) / sizeof(names[0]); n++)
			if (strcmp(args->values[i].name, names[n][0]) == 0) {
				as->values[as->value_count].name = names[n][1];
				as->values[as->value_count++].value = args->values[i].value;
			}
	if (json_set_string(as->recipe, "kind", "evaluate") != 0)
		return err_set_nomem(err, "the recipe");
	if (args_has(args, "seq-len") &&
	    recipe_option(as->recipe, "seq-len", args_get(args, "seq-len", ""), err) != 0)
		return -1;
	return args_has(args, "windows")
		? recipe_option(as->recipe, "eval-windows", args_get(args, "windows", "0"), err) : 0;
}

static void print_text(const struct json *p)
{
	double reference = json_get_number(p, "reference", -1), kl = json_get_number(p, "kl", -1);
	long long windows = (long long)json_get_int(p, "windows", 0);
	char name[256];

	printf("perplexity  %.4f  %s  (%lld window%s)\n", json_get_number(p, "original", 0),
	       text_safe(json_get_string(p, "text", "?"), name, sizeof(name)), windows, windows == 1 ? "" : "s");
	if (reference >= 0)
		printf("reference   %.4f\n", reference);
	if (kl >= 0)
		printf("divergence  %.6f  (KL from the reference, natural logarithm, mean over the predictions)\n"
		       "top-1       %.2f %%  (predictions with the same likeliest token)\n",
		       kl, 100 * json_get_number(p, "top1", 0));
}

static void print_result(const struct json *perplexity)
{
	for (const struct json *p = json_first(perplexity); p; p = json_next(p))
		print_text(p);
}

static int evaluate(struct embedded *e, const struct args *args, struct err *err)
{
	struct json *job;

	if (embedded_start(e, false, err) != 0)
		return -1;
	job = embedded_finish(e, err);
	if (!job)
		return -1;
	if (args_has(args, "json"))
		print_json(json_get(job, "perplexity"));
	else
		print_result(json_get(job, "perplexity"));
	json_free(job);
	return 0;
}

static enum exit_status run(const struct args *args, struct err *err)
{
	struct embedded e = { 0 };
	struct args as;
	enum exit_status status = EXIT_USAGE;
	int rc;

	if (translate(args, &as, err) == 0 &&
	    embedded_init(&e, &as, args->positional[0], &status, err) == 0) {
		rc = evaluate(&e, args, err);
		embedded_deinit(&e, err);
		status = rc == 0 ? EXIT_OK : failed_status(err);
	}
	args_deinit(&as);
	return status;
}

const struct command cmd_eval = {
	.name = "eval", .usage = "MODEL_DIR --text FILE [options]", .summary = "measure a model's perplexity",
	.details = "The text is cut into windows of --seq-len tokens; perplexity is the exponential of the mean negative "
		   "log-likelihood\nof the predictions inside them. A --reference must share tokenizer, vocabulary, final "
		   "norm and output embedding,\nas a model and its quantized versions do.",
	.options = options, .least = 1, .most = 1, .run = run,
};
