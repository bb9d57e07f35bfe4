/* inspect_print.c - what was found out, for people and as JSON. */
#include <stdio.h>
#include <string.h>

#include "cli/inspect.h"
#include "cli/settings.h"
#include "cli/text.h"

/* "1 234 567" */
static const char *thousands(uint64_t number, char out[TEXT_SHORT])
{
	char digits[TEXT_SHORT];
	const int len = snprintf(digits, sizeof(digits), "%llu", (unsigned long long)number);
	int used = 0;

	for (int i = 0; i < len; i++) {
		if (i > 0 && (len - i) % 3 == 0)
			out[used++] = ' ';
		out[used++] = digits[i];
	}
	out[used] = '\0';
	return out;
}

static size_t quantized_modules(const struct stored_folder *f)
{
	size_t count = 0;

	for (size_t i = 0; i < f->linears; i++)
		count += f->linear[i].quantized;
	return count;
}

static double quantized_bits(const struct stored_folder *f)
{
	uint64_t bytes, weights;

	stored_folder_quantized(f, &bytes, &weights);
	return weights ? 8.0 * (double)bytes / (double)weights : 0;
}

static void print_head(const struct inspected *i)
{
	const struct stored_folder *f = &i->folder;
	char number[TEXT_SHORT], bytes[TEXT_SHORT], safe[1024];

	printf("checkpoint   %s\n", text_safe(i->path, safe, sizeof(safe)));
	printf("format       %s\n", f->format);
	printf("model        %s, %s, %zu layers, %s parameters\n", f->config.family, f->config.architecture, f->config.layers,
	       thousands(stored_folder_parameters(f), number));
	printf("weights      %s", text_bytes((double)i->weight_bytes, bytes));
	if (quantized_bits(f) > 0)
		printf(", %.3f bits per weight in %zu of %zu modules", quantized_bits(f), quantized_modules(f), f->linears);
	printf("\n\n");
}

static int put_row(void *ctx, const struct setting_row *row)
{
	char shape[64], bits[32];

	snprintf(shape, sizeof(shape), "%llu x %llu", (unsigned long long)row->rows, (unsigned long long)row->cols);
	snprintf(bits, sizeof(bits), "%.3f", row->bits_per_weight);
	table_cell(ctx, row->layers);
	table_cell(ctx, row->module);
	table_cell(ctx, shape);
	table_cell(ctx, bits);
	table_cell(ctx, row->setting);
	return 0;
}

static int print_modules(struct stored_folder *f, struct err *err)
{
	static const char *const titles[] = { "layers", "module", "weights", "bits/weight", "stored" };
	struct table *t = table_new(titles, 5);
	struct setting_row row;
	int rc = t ? setting_rows(f, put_row, t, err) : err_set_nomem(err, "a table");

	for (int k = 0; rc == 0 && k < 2; k++)
		if (setting_table(f, k, &row))
			put_row(t, &row);
	if (rc == 0 && table_print(t) != 0)
		rc = err_set_nomem(err, "a table");
	table_free(t);
	return rc;
}

static int print_files(const struct inspected *i, struct err *err)
{
	static const char *const titles[] = { "file", "size", "SHA-256", "report.json" }, *const says[] = { "", "differs", "same" };
	struct table *t = table_new(titles, 4);
	char bytes[TEXT_SHORT];
	int rc;

	for (size_t k = 0; t && k < i->file_count; k++) {
		table_cell(t, i->files[k].name);
		table_cell(t, text_bytes((double)i->files[k].bytes, bytes));
		table_cell(t, i->files[k].sha256);
		table_cell(t, says[i->files[k].reported + 1]);
	}
	printf("\n");
	rc = t ? table_print(t) : -1;
	table_free(t);
	return rc == 0 ? 0 : err_set_nomem(err, "a table");
}

int inspect_print(struct inspected *i, struct err *err)
{
	if (!i->open)
		return 0;
	print_head(i);
	if (print_modules(&i->folder, err) != 0 || print_files(i, err) != 0)
		return -1;
	if (i->faults.count == 0)
		printf("\nverified: every tensor is there with its type and shape, every module decodes, every number is finite\n");
	return 0;
}

/* --- JSON ---------------------------------------------------------------------------------------- */

static struct json *module_json(struct stored_folder *f, size_t i)
{
	const struct codec_module *m = &f->modules[i];
	const struct stored_linear *l = &f->linear[i];
	struct json *o = json_new_object();
	char text[SETTING_MAX];
	int rc = o ? json_set_string(o, "name", m->name) : -1;

	setting_text(f, i, text);
	rc |= json_set_int(o, "rows", (int64_t)m->rows) | json_set_int(o, "cols", (int64_t)m->cols);
	rc |= json_set_bool(o, "quantized", l->quantized) | json_set_string(o, "stored", text);
	rc |= json_set_int(o, "bytes", (int64_t)l->bytes);
	rc |= l->type ? json_set_string(o, "type", l->type) : 0;
	if (l->quantized && !l->why_plain)
		rc |= json_set_int(o, "bits", m->settings.bits) | json_set_int(o, "group_size", m->settings.group_size) |
		      json_set_bool(o, "symmetric", m->settings.symmetric) |
		      json_set_string(o, "zero_point", zero_point_name(m->settings.zero_point)) |
		      (m->settings.zero_parts ? json_set_int(o, "zero_parts", m->settings.zero_parts) : 0);
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *file_json(const struct inspected_file *file)
{
	struct json *o = json_new_object();
	int rc = o ? json_set_string(o, "name", file->name) | json_set_int(o, "bytes", (int64_t)file->bytes) |
		     json_set_string(o, "sha256", file->sha256) : -1;

	if (file->reported >= 0)
		rc |= json_set_bool(o, "as_reported", file->reported == 1);
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static int put_lists(struct inspected *i, struct json *o)
{
	struct json *modules = json_new_array(), *files = json_new_array();
	int rc = modules && files ? 0 : -1;

	for (size_t k = 0; rc == 0 && k < i->folder.linears; k++)
		rc = json_push(modules, module_json(&i->folder, k));
	for (size_t k = 0; rc == 0 && k < i->file_count; k++)
		rc = json_push(files, file_json(&i->files[k]));
	rc |= json_set(o, "modules", modules);
	return rc | json_set(o, "files", files);
}

static int put_head(struct inspected *i, struct json *o)
{
	const struct stored_folder *f = &i->folder;
	struct setting_row row;
	uint64_t bytes, weights;
	int rc;

	stored_folder_quantized(f, &bytes, &weights);
	rc = json_set_string(o, "format", f->format) | json_set_string(o, "family", f->config.family) |
	     json_set_string(o, "architecture", f->config.architecture) | json_set_int(o, "layers", (int64_t)f->config.layers) |
	     json_set_int(o, "parameters", (int64_t)stored_folder_parameters(f)) |
	     json_set_int(o, "weight_bytes", (int64_t)i->weight_bytes) | json_set_int(o, "quantized_bytes", (int64_t)bytes) |
	     json_set_int(o, "quantized_weights", (int64_t)weights) | json_set_number(o, "bits_per_weight", quantized_bits(f));
	for (int t = 0; t < 2; t++)
		if (setting_table(&i->folder, t, &row))
			rc |= json_set_string(o, t == 0 ? "embeddings" : "lm_head", row.setting);
	return rc;
}

struct json *inspect_json(struct inspected *i)
{
	struct json *o = json_new_object(), *faults = json_new_array();
	int rc = o && faults ? json_set_string(o, "path", i->path) : -1;

	if (rc == 0 && i->open)
		rc = put_head(i, o) | put_lists(i, o);
	for (size_t k = 0; rc == 0 && k < i->faults.count; k++)
		rc = json_push(faults, json_new_string(i->faults.items[k]));
	rc |= json_set_bool(o, "ok", i->faults.count == 0);
	rc |= json_set(o, "faults", faults);
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}
