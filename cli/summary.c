#include "cli/summary.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/scores.h"
#include "cli/text.h"
#include "common/alloc.h"
#include "common/file.h"

enum { REPORT_MAX = 64 << 20, WORST_SHOWN = 5 };

static bool is_weights(const char *name)
{
	const char *dot = strrchr(name, '.');

	return dot && (strcmp(dot, ".safetensors") == 0 || strcmp(dot, ".gguf") == 0);
}

double weights_bytes(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	double sum = 0;

	while (d && (e = readdir(d))) {
		char *path = is_weights(e->d_name) ? path_join(dir, e->d_name) : NULL;
		struct stat st;

		if (path && stat(path, &st) == 0)
			sum += (double)st.st_size;
		mem_free(path);
	}
	if (d)
		closedir(d);
	return sum;
}

static struct json *read_report(const char *out_dir, struct err *err)
{
	char *path = path_join(out_dir, "report.json"), *text;
	struct json *report = NULL;
	size_t len = 0;

	if (!path) {
		err_set_nomem(err, "a path");
		return NULL;
	}
	text = file_read_all(path, REPORT_MAX, &len, err);
	if (text && !(report = json_parse(text, len, err)))
		err_prefix(err, "%s", path);
	mem_free(text);
	mem_free(path);
	return report;
}

/* --- parts ----------------------------------------------------------------------------------------- */

static void print_perplexities(const struct json *job)
{
	const struct json *list = json_get(job, "perplexity");
	char name[256], score[SCORE_MAX];

	if (json_size(list) == 0)
		printf("perplexity   not measured (--eval none)\n");
	for (const struct json *p = json_first(list); p; p = json_next(p)) {
		double before = json_get_number(p, "original", 0), after = json_get_number(p, "quantized", 0);

		printf("perplexity   %.3f before, %.3f after (%+.1f %%)  %s\n", before, after,
		       before > 0 ? (after / before - 1) * 100 : 0.0,
		       text_safe(json_get_string(p, "text", "?"), name, sizeof(name)));
		if (score_comparison(p, score))
			printf("             %s\n", score);
	}
}

/* What each step after rounding brought. */
static void print_steps(const struct json *job, const struct json *report)
{
	char score[SCORE_MAX];

	if (score_steps(report, score))
		printf("lost         %s\n", score);
	if (score_blocks(job, score))
		printf("distilled    %s\n", score);
	if (score_end_to_end(job, score))
		printf("distilled    %s\n", score);
}

/* The weights of the model that was quantized. */
static double source_bytes(const struct json *report)
{
	double sum = 0;

	for (const struct json *f = json_first(json_get(json_get(report, "model"), "files")); f; f = json_next(f))
		if (is_weights(json_get_string(f, "name", "")))
			sum += json_get_number(f, "bytes", 0);
	return sum;
}

/* Bits per weight of the quantized modules, scales and zero-points included; 0 when there is none. */
static double mean_bits(const struct json *report)
{
	double bits = 0, weights = 0;

	for (const struct json *m = json_first(json_get(report, "modules")); m; m = json_next(m)) {
		double count = json_get_number(m, "rows", 0) * json_get_number(m, "cols", 0);

		bits += count * json_get_number(m, "bits_per_weight", 0);
		weights += json_get_number(m, "bits_per_weight", 0) > 0 ? count : 0;
	}
	return weights > 0 ? bits / weights : 0;
}

static void print_sizes(const struct json *report, double before, const char *out_dir)
{
	char *packed = path_join(out_dir, "packed"), a[TEXT_SHORT], b[TEXT_SHORT];
	double after = packed ? weights_bytes(packed) : 0, bits = mean_bits(report);

	mem_free(packed);
	if (before > 0 && after > 0)
		printf("size         %s before, %s after packing (%.1f %%)\n", text_bytes(before, a),
		       text_bytes(after, b), after / before * 100);
	if (bits > 0)
		printf("             %.2f bits per weight in the quantized modules, scales and zero-points included\n",
		       bits);
}

struct worst { double loss; long long layer; const char *name; };

static int by_loss(const void *a, const void *b)
{
	double x = ((const struct worst *)a)->loss, y = ((const struct worst *)b)->loss;

	return (x < y) - (x > y);
}

/* The job's modules into `all`; how many. */
static size_t collect(const struct json *job, struct worst *all, size_t cap)
{
	size_t count = 0;

	for (const struct json *l = json_first(json_get(job, "layers")); l; l = json_next(l))
		for (const struct json *m = json_first(json_get(l, "modules")); m && count < cap; m = json_next(m))
			if (json_type(json_get(m, "relative_loss")) == JSON_NUMBER)
				all[count++] = (struct worst){ json_get_number(m, "relative_loss", 0),
					(long long)json_get_int(l, "layer", 0), json_get_string(m, "name", "?") };
	return count;
}

static int print_worst(const struct json *job, struct err *err)
{
	size_t layers = json_size(json_get(job, "layers")), cap = 0, count;
	struct worst *all;
	char name[256];

	for (const struct json *l = json_first(json_get(job, "layers")); l; l = json_next(l))
		cap += json_size(json_get(l, "modules"));
	all = mem_alloc(cap, sizeof(*all));
	if (!all)
		return err_set_nomem(err, "the worst modules");
	count = layers ? collect(job, all, cap) : 0;
	qsort(all, count, sizeof(*all), by_loss);
	for (size_t i = 0; i < count && i < WORST_SHOWN; i++)
		printf("%-12s layer %lld %s: %.2f %% of its output's energy lost\n", i ? "" : "worst", all[i].layer,
		       text_safe(all[i].name, name, sizeof(name)), all[i].loss * 100);
	mem_free(all);
	return 0;
}

static void print_warnings(const struct json *job)
{
	char safe[2048];

	for (const struct json *w = json_first(json_get(job, "warnings")); w; w = json_next(w))
		printf("warning      %s\n", text_safe(json_string(w, ""), safe, sizeof(safe)));
}

static void print_places(const char *out_dir)
{
	struct dirent **names = NULL;
	int count = scandir(out_dir, &names, NULL, alphasort);

	for (int i = 0; i < count; i++) {
		char *path = path_join(out_dir, names[i]->d_name), bytes[TEXT_SHORT];
		struct stat st;

		if (path && names[i]->d_name[0] != '.' && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
			printf("checkpoint   %s  (%s)\n", path, text_bytes(weights_bytes(path), bytes));
		mem_free(path);
		free(names[i]);
	}
	free(names);
	printf("report       %s/report.json\n", out_dir);
}

int summary_print(const struct json *job, const char *out_dir, double seconds, struct err *err)
{
	struct json *report = read_report(out_dir, err);
	char took[TEXT_SHORT];
	int rc;

	if (!report)
		return -1;
	print_perplexities(job);
	print_sizes(report, source_bytes(report), out_dir);
	print_steps(job, report);
	rc = print_worst(job, err);
	print_warnings(job);
	print_places(out_dir);
	printf("time         %s\n", text_duration(seconds, took));
	json_free(report);
	return rc;
}
