/* config.json of a result. Members keep their source text (numbers are not printed anew: 10000.0 stays
 * 10000.0), in their order. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/json_scan.h"
#include "server/finish.h"

enum { DEPTH_MAX = 64 };

static bool key_is(const struct json_scan *s, const char *key)
{
	return !s->token_escaped && s->token_len == strlen(key) && memcmp(s->token, key, s->token_len) == 0;
}

/* Bytes of the member's value, without the colon and the space around it. */
static void trim(const char **from, const char *to)
{
	while (*from < to && strchr(" \t\r\n:", **from))
		(*from)++;
}

struct rewrite {
	struct json_scan scan;
	struct buf *out;
	const char *dtype;      /* NULL: keep */
	bool first, dtype_seen;
};

static int put_member(struct rewrite *r, const char *key, size_t key_len, const char *value, size_t len)
{
	int rc = buf_puts(r->out, r->first ? "  \"" : ",\n  \"");

	r->first = false;
	rc |= buf_append(r->out, key, key_len);
	rc |= buf_puts(r->out, "\": ");
	return rc | buf_append(r->out, value, len);
}

static int put_text(struct rewrite *r, const char *key, const char *value)
{
	return put_member(r, key, strlen(key), value, strlen(value));
}

static int copy_member(struct rewrite *r, struct err *err)
{
	const char *key = r->scan.token, *from = r->scan.text + r->scan.pos;
	size_t key_len = r->scan.token_len;
	bool is_dtype = key_is(&r->scan, "dtype") || key_is(&r->scan, "torch_dtype");
	bool drop = key_is(&r->scan, "quantization_config");
	const char *to;

	if (json_scan_skip(&r->scan, err) != 0)
		return -1;
	to = r->scan.text + r->scan.pos;
	trim(&from, to);
	r->dtype_seen |= is_dtype;
	if (drop)
		return 0;
	if (is_dtype && r->dtype)
		return put_member(r, key, key_len, r->dtype, strlen(r->dtype));
	return put_member(r, key, key_len, from, (size_t)(to - from));
}

static int copy_members(struct rewrite *r, struct err *err)
{
	enum json_token token;

	if (json_scan_next(&r->scan, &token, err) != 0)
		return -1;
	if (token != JT_OBJECT_BEGIN)
		return err_set(err, ERR_CORRUPT, "config.json is not an object");
	for (;;) {
		if (json_scan_next(&r->scan, &token, err) != 0)
			return -1;
		if (token == JT_OBJECT_END)
			return 0;
		if (copy_member(r, err) != 0)
			return err->code != ERR_NONE ? -1 : err_set_nomem(err, "config.json");
	}
}

int finish_config(const char *source, const struct format *format, const char *quantization, struct buf *out,
		  struct err *err)
{
	char dtype[32];
	struct rewrite r = { .out = out, .first = true };
	int rc;

	snprintf(dtype, sizeof(dtype), "\"%s\"", format->config_dtype ? format->config_dtype : "");
	r.dtype = format->config_dtype ? dtype : NULL;
	json_scan_init(&r.scan, source, strlen(source), DEPTH_MAX);
	buf_puts(out, "{\n");
	if (copy_members(&r, err) != 0)
		return -1;
	rc = r.dtype && !r.dtype_seen ? put_text(&r, "torch_dtype", dtype) : 0;
	if (quantization)
		rc |= put_text(&r, "quantization_config", quantization);
	rc |= buf_puts(out, "\n}\n");
	return rc == 0 ? 0 : err_set_nomem(err, "config.json");
}

/* --- quantization_config ------------------------------------------------------ */

/* Settings of every module, from the quantize tasks' specs. */
static struct json *all_settings(struct store *db, const struct job_ref *job, struct err *err)
{
	struct json *modules = json_new_object();
	struct query *q = store_select(db, SQL_SPECS_OF_KIND, err, sql_i(job->first_task),
				       sql_i(job->first_task + job->task_count - 1), sql_i(KIND_QUANTIZE));
	int more, rc = modules ? 0 : -1;

	while (rc == 0 && (more = query_next(q, err)) != 0) {
		struct json *spec = more == 1 ? json_parse_stored(query_text(q, 0), err) : NULL;

		rc = spec ? 0 : -1;
		for (struct json *m = json_first(json_get(spec, "modules")); rc == 0 && m; m = json_next(m)) {
			struct json *settings = json_copy(m);

			json_remove(settings, "name");
			rc = json_set(modules, json_get_string(m, "name", "?"), settings);
		}
		json_free(spec);
	}
	query_done(q);
	if (rc == 0)
		return modules;
	json_free(modules);
	return NULL;
}

char *finish_quantization(struct store *db, const struct job_ref *job, const struct format *format,
			  const struct json *recipe, struct err *err)
{
	static const char *const keys[] = { "bits", "group_size", "method", "zero_point", "symmetric", "rounding" };
	struct json *o = json_new_object();
	char *text = NULL;
	int rc = json_set_string(o, "quant_method", format->quant_method) | json_set_int(o, "version", 1);

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (json_get(recipe, keys[i]))
			rc |= json_set(o, keys[i], json_copy(json_get(recipe, keys[i])));
	rc |= json_set(o, "modules", all_settings(db, job, err));
	if (rc == 0)
		text = json_print(o, false);
	json_free(o);
	if (!text && err->code == ERR_NONE)
		err_set_nomem(err, "quantization_config");
	return text;
}
