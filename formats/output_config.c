/* output_config.c - config.json of a checkpoint. Members keep their source text (numbers are not printed anew: 10000.0
 * stays 10000.0), in their order; those that the format adds come last. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/json_scan.h"
#include "formats/output_parts.h"

enum { DEPTH_MAX = 64 };

struct rewrite {
	struct json_scan scan;
	struct buf *out;
	const char *dtype;              /* quoted; NULL: keep */
	const struct json *added;
	bool first, dtype_seen;
};

/* --- members of the source ----------------------------------------------------------------------- */

static bool key_is(const struct json_scan *s, const char *key)
{
	return !s->token_escaped && s->token_len == strlen(key) && memcmp(s->token, key, s->token_len) == 0;
}

/* Begin of the member's value, without the colon and the space around it. */
static void trim(const char **from, const char *to)
{
	while (*from < to && strchr(" \t\r\n:", **from))
		(*from)++;
}

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

/* What the source says of quantization is not said of the result, and added members replace the source's. */
static bool is_dropped(const struct rewrite *r)
{
	if (key_is(&r->scan, "quantization_config") || key_is(&r->scan, "quantization"))
		return true;
	for (const struct json *m = json_first(r->added); m; m = json_next(m))
		if (key_is(&r->scan, json_key(m)))
			return true;
	return false;
}

static int copy_member(struct rewrite *r, struct err *err)
{
	const char *key = r->scan.token, *from = r->scan.text + r->scan.pos;
	const size_t key_len = r->scan.token_len;
	const bool is_dtype = key_is(&r->scan, "dtype") || key_is(&r->scan, "torch_dtype");
	const bool drop = is_dropped(r);
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

/* --- members of the format ----------------------------------------------------------------------- */

/* In packed, which tells how it was made: the recipe's settings on top, and the tables that were asked for but are stored
 * as the source has them. */
static int add_recipe(const struct output_model *m, const struct json *recipe, struct json *quantization)
{
	static const char *const keys[] = { "bits", "group_size", "method", "zero_point", "symmetric", "rounding" };
	const struct output_table_bits tables = output_table_bits(m);
	int rc = 0;

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		if (!json_get(recipe, keys[i]))
			continue;
		json_remove(quantization, keys[i]);
		rc |= json_set(quantization, keys[i], json_copy(json_get(recipe, keys[i])));
	}
	if (tables.embeddings != 16)
		rc |= json_set_int(quantization, "embeddings", tables.embeddings);
	if (tables.head != 16)
		rc |= json_set_int(quantization, "lm_head", tables.head);
	return rc;
}

static struct json *added_members(const struct output_format *f, const struct output_model *m, const struct json *recipe,
				  struct err *err)
{
	struct json *o = json_new_object();
	int rc = o ? 0 : -1;

	if (rc == 0 && f->codec->config)
		rc = f->codec->config(m->modules, output_codec_count(f, m), m->source_config, o);
	if (rc == 0 && f->codec->tables == CODEC_TABLES_CARRIED)
		rc = add_recipe(m, recipe, json_get(o, "quantization_config"));
	if (rc == 0)
		return o;
	json_free(o);
	err_set_nomem(err, "config.json");
	return NULL;
}

static int put_added(struct rewrite *r)
{
	int rc = 0;

	for (const struct json *m = json_first(r->added); m; m = json_next(m)) {
		char *text = json_print(m, false);

		rc |= text ? put_text(r, json_key(m), text) : -1;
		mem_free(text);
	}
	return rc;
}

static int rewrite(struct rewrite *r, const char *source, struct err *err)
{
	int rc;

	json_scan_init(&r->scan, source, strlen(source), DEPTH_MAX);
	buf_puts(r->out, "{\n");
	if (copy_members(r, err) != 0)
		return -1;
	rc = r->dtype && !r->dtype_seen ? put_text(r, "torch_dtype", r->dtype) : 0;
	rc |= put_added(r);
	rc |= buf_puts(r->out, "\n}\n");
	return rc == 0 ? 0 : err_set_nomem(err, "config.json");
}

int output_config(const struct output_format *f, const struct output_model *m, const char *source, const struct json *recipe,
		  struct buf *out, struct err *err)
{
	struct rewrite r = { .out = out, .first = true };
	struct json *added;
	char dtype[32];
	int rc;

	if (!f->codec)
		return 0;
	added = added_members(f, m, recipe, err);
	if (!added)
		return -1;
	snprintf(dtype, sizeof(dtype), "\"%s\"", f->codec->config_dtype ? f->codec->config_dtype : "");
	r.dtype = f->codec->config_dtype ? dtype : NULL;
	r.added = added;
	rc = rewrite(&r, source, err);
	json_free(added);
	return rc;
}

int output_extra(const struct output_format *f, const struct output_model *m, struct buf *out, struct err *err)
{
	const struct json *quantization;
	struct json *added;
	char *text = NULL;
	int rc = 0;

	if (!f->codec || !f->codec->extra_file)
		return 0;
	added = added_members(f, m, NULL, err);
	if (!added)
		return -1;
	quantization = json_get(added, "quantization_config");
	if (quantization) {
		text = json_print(quantization, true);
		rc = text ? buf_puts(out, text) | buf_puts(out, "\n") : -1;
	}
	mem_free(text);
	json_free(added);
	return rc == 0 ? 0 : err_set_nomem(err, f->codec->extra_file);
}
