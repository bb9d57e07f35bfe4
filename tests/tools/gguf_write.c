/* gguf_write PACKED_DIR FILE.gguf [EMBEDDINGS [HEAD]] - one GGUF file from a packed folder, for tests with real readers.
 *
 * EMBEDDINGS and HEAD: F32, F16, BF16, Q8_0 or Q6_K (default F16, and the same for the head). Each quantized module gets the
 * type that gguf_choose() picks, printed as "<type> <module>"; what is not quantized keeps its type, vectors are F32.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/half.h"
#include "common/safetensors.h"
#include "formats/gguf_blocks.h"
#include "formats/gguf_file.h"
#include "formats/gguf_meta.h"
#include "formats/gguf_tokenizer.h"
#include "formats/reader.h"

enum { SHARDS_MAX = 64, PARTS_MAX = 4096 };
#define TEXT_BYTES_MAX ((size_t)1 << 28)

struct shard { char *path; struct st_header header; };

struct part {
	char source[MODEL_NAME_MAX];    /* "" = rope factors */
	char module[MODEL_NAME_MAX];    /* quantized: without ".weight"; else "" */
	struct gguf_place place;
	struct codec_module m;
	size_t rows, cols;
};

static struct shard shards[SHARDS_MAX];
static size_t shard_count;
static struct part parts[PARTS_MAX];
static struct gguf_tensor tensors[PARTS_MAX];
static size_t count;
static struct model_config model;
static struct json *config;
static enum gguf_type embeddings = GGUF_F16, head = GGUF_F16;

static void stop(const char *what, const struct err *err)
{
	fprintf(stderr, "gguf_write: %s: %s\n", what, err ? err->text : "out of memory, or too many");
	exit(1);
}

static char *read_text(const char *dir, const char *name, size_t *len)
{
	struct err err = ERR_INIT;
	char *path = path_join(dir, name);
	char *text = path && file_exists(path) ? file_read_all(path, TEXT_BYTES_MAX, len, &err) : NULL;

	mem_free(path);
	return text;
}

static struct json *read_json(const char *dir, const char *name)
{
	struct err err = ERR_INIT;
	size_t len = 0;
	char *text = read_text(dir, name, &len);
	struct json *value = text ? json_parse(text, len, &err) : NULL;

	if (text && !value)
		stop(name, &err);
	mem_free(text);
	return value;
}

static void open_shards(const char *dir)
{
	struct err err = ERR_INIT;
	DIR *d = opendir(dir);

	for (struct dirent *e = d ? readdir(d) : NULL; e; e = readdir(d)) {
		const char *dot = strrchr(e->d_name, '.');

		if (!dot || strcmp(dot, ".safetensors") != 0)
			continue;
		shards[shard_count].path = path_join(dir, e->d_name);
		if (shard_count + 1 == SHARDS_MAX ||
		    st_header_read_path(&shards[shard_count].header, shards[shard_count].path, &err) != 0)
			stop(e->d_name, &err);
		shard_count++;
	}
	if (d)
		closedir(d);
}

/* 1 when no shard has it. */
static int read_stored(void *ctx, const char *name, struct stored_tensor *out, struct err *err)
{
	(void)ctx;
	memset(out, 0, sizeof(*out));
	for (size_t i = 0; i < shard_count; i++) {
		const struct st_tensor *t = st_find(&shards[i].header, name);
		int fd, rc;

		if (!t)
			continue;
		out->dtype = t->dtype;
		out->ndim = t->ndim;
		for (unsigned d = 0; d < t->ndim && d < 2; d++)
			out->shape[d] = t->shape[d];
		out->len = (size_t)(t->end - t->begin);
		out->bytes = mem_alloc(out->len, 1);
		fd = out->bytes ? file_open(shards[i].path, O_RDONLY, 0, err) : -1;
		rc = fd < 0 ? -1 : file_pread(fd, out->bytes, out->len, shards[i].header.data_start + t->begin, name, err);
		if (fd >= 0)
			close(fd);
		return rc;
	}
	return 1;
}

static bool is_stored(const char *module, const char *suffix, enum st_dtype *dtype)
{
	char name[MODEL_NAME_MAX + 16];

	snprintf(name, sizeof(name), "%s%s", module, suffix);
	for (size_t i = 0; i < shard_count; i++) {
		const struct st_tensor *t = st_find(&shards[i].header, name);

		if (t && dtype)
			*dtype = t->dtype;
		if (t)
			return true;
	}
	return false;
}

/* --- the plan ------------------------------------------------------------------------------------ */

static enum gguf_type plain_type(const struct part *p)
{
	enum st_dtype dtype = ST_F32;

	if (p->place.plain)
		return GGUF_F32;
	if (strcmp(p->source, MODEL_EMBED_NAME) == 0)
		return embeddings;
	if (strcmp(p->source, MODEL_HEAD_NAME) == 0)
		return head;
	is_stored(p->source, "", &dtype);
	return dtype == ST_BF16 ? GGUF_BF16 : dtype == ST_F16 ? GGUF_F16 : GGUF_F32;
}

static enum gguf_type module_type(struct part *p)
{
	const struct json *all = json_get(json_get(config, "quantization_config"), "modules");
	struct problems problems = { 0 };
	struct err err = ERR_INIT;
	enum gguf_type type;

	p->m = (struct codec_module){ .name = p->module, .rows = p->rows, .cols = p->cols };
	if (module_settings_from_json(&p->m.settings, json_get(all, p->module), &err) != 0)
		stop(p->module, &err);
	if (gguf_choose(&p->m, &type, &problems) != 0) {
		fprintf(stderr, "gguf_write: %s\n", problems.items[0]);
		exit(1);
	}
	printf("%s %s\n", gguf_type_name(type), p->module);
	return type;
}

static int add(void *ctx, const struct model_tensor *t)
{
	struct part *p = &parts[count];
	struct gguf_tensor *g = &tensors[count];
	size_t len = strlen(t->name);

	(void)ctx;
	if (count + 1 == PARTS_MAX || gguf_place_of(&model, t->name, &p->place) != 0)
		stop(t->name, NULL);
	snprintf(p->source, sizeof(p->source), "%s", t->name);
	p->rows = t->dim[1] ? t->dim[0] : 1;
	p->cols = t->dim[1] ? t->dim[1] : t->dim[0];
	if (len > 7 && strcmp(t->name + len - 7, ".weight") == 0) {
		snprintf(p->module, sizeof(p->module), "%.*s", (int)(len - 7), t->name);
		if (!is_stored(p->module, ".codes", NULL))
			p->module[0] = '\0';
	}
	*g = (struct gguf_tensor){ .name = p->place.name, .ndim = t->dim[1] ? 2 : 1, .ne = { p->cols, p->rows } };
	g->type = p->module[0] ? module_type(p) : plain_type(p);
	count++;
	return 0;
}

static void add_rope(void)
{
	const size_t n = gguf_rope_count(&model);

	if (n == 0)
		return;
	parts[count] = (struct part){ .rows = 1, .cols = n };
	tensors[count++] = (struct gguf_tensor){ .name = GGUF_ROPE_NAME, .type = GGUF_F32, .ndim = 1, .ne = { n } };
}

static void read_model(const char *dir)
{
	struct err err = ERR_INIT;
	struct json *plain;
	char *text;

	config = read_json(dir, "config.json");
	plain = json_copy(config);
	json_remove(plain, "quantization_config");
	text = json_print(plain, false);
	if (!text || model_config_parse(&model, text, strlen(text), NULL, &err) != 0)
		stop("config.json", &err);
	mem_free(text);
	json_free(plain);
}

/* --- the file ------------------------------------------------------------------------------------ */

static void put_meta(struct gguf_kv *kv, const char *dir)
{
	struct json *settings = read_json(dir, "tokenizer_config.json"), *generation = read_json(dir, "generation_config.json");
	struct err err = ERR_INIT;
	size_t len = 0, config_len = 0;
	char *text = read_text(dir, "tokenizer.json", &len), *config_text = read_text(dir, "config.json", &config_len);
	const struct gguf_tokenizer t = { .text = text, .len = len, .settings = settings, .generation = generation,
					  .config = config, .vocab = model.vocab };
	const struct gguf_about about = { .name = "test", .most = tensors[1].type, .config_text = config_text };

	if (gguf_meta_model(kv, &model, &about, &err) != 0 || !text || gguf_meta_tokenizer(kv, &t, &err) != 0)
		stop("metadata", &err);
	mem_free(text);
	mem_free(config_text);
	json_free(settings);
	json_free(generation);
}

static float *as_floats(const struct stored_tensor *t, size_t n)
{
	float *out = mem_alloc(n, sizeof(float));

	if (!out)
		stop("memory", NULL);
	if (t->dtype == ST_BF16)
		bf16_to_f32_array(t->bytes, out, n);
	else if (t->dtype == ST_F16)
		f16_to_f32_array(t->bytes, out, n);
	else
		memcpy(out, t->bytes, n * sizeof(float));
	return out;
}

static float *source_floats(const struct part *p)
{
	const size_t n = p->rows * p->cols;
	struct err err = ERR_INIT;
	struct stored_tensor t;
	float *values, *moved;
	size_t rows = p->place.plain ? n : p->rows, cols = n / rows;

	if (p->source[0] == '\0') {
		values = mem_alloc(n, sizeof(float));
		gguf_rope_factors(&model, values);
		return values;
	}
	if (read_stored(NULL, p->source, &t, &err) != 0)
		stop(p->source, &err);
	values = as_floats(&t, n);
	mem_free(t.bytes);
	moved = mem_alloc(n, sizeof(float));
	for (size_t r = 0; r < rows; r++)
		memcpy(moved + r * cols, values + gguf_row_source(rows, p->place.heads, r) * cols, cols * sizeof(float));
	mem_free(values);
	return moved;
}

static void encode_plain(const struct part *p, const struct gguf_tensor *g, void *out)
{
	struct err err = ERR_INIT;
	float *values = source_floats(p);

	if (gguf_encode_floats(g->name, g->type, values, p->rows, p->cols, out, &err) != 0)
		stop(g->name, &err);
	mem_free(values);
}

static void encode_module(const struct part *p, const struct gguf_tensor *g, void *out)
{
	const struct stored_source source = { .read = read_stored };
	struct stored_module s;
	struct err err = ERR_INIT;
	float *scales, *zeros;
	struct codec_values v;

	if (stored_module_read(config, p->module, p->rows, p->cols, source, &s, &err) != 0)
		stop(p->module, &err);
	scales = mem_alloc(s.rows * s.groups, sizeof(float));
	zeros = mem_alloc(s.rows * s.groups, sizeof(float));
	for (size_t i = 0; i < s.rows * s.groups; i++) {
		scales[i] = (float)s.scales[i];
		zeros[i] = (float)s.zeros[i];
	}
	v = (struct codec_values){ .rows = s.rows, .cols = s.cols, .group = s.cols / s.groups, .bits = p->m.settings.bits,
				   .codes = s.codes, .scales = scales, .zeros = zeros };
	if (gguf_encode(&p->m, g->type, &v, p->place.heads, out, &err) != 0)
		stop(p->module, &err);
	mem_free(scales);
	mem_free(zeros);
	stored_module_deinit(&s);
}

static void write_file(const char *path, const struct buf *start)
{
	struct err err = ERR_INIT;
	int fd = file_open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644, &err);

	if (fd < 0 || file_pwrite(fd, start->data, start->len, 0, path, &err) != 0)
		stop(path, &err);
	for (size_t i = 0; i < count; i++) {
		void *bytes = mem_alloc((size_t)gguf_padded(tensors[i].bytes), 1);

		if (!bytes)
			stop("memory", NULL);
		if (parts[i].module[0])
			encode_module(&parts[i], &tensors[i], bytes);
		else
			encode_plain(&parts[i], &tensors[i], bytes);
		if (file_pwrite(fd, bytes, (size_t)gguf_padded(tensors[i].bytes), start->len + tensors[i].offset, path, &err) != 0)
			stop(path, &err);
		mem_free(bytes);
	}
	close(fd);
}

static enum gguf_type type_named(const char *name)
{
	static const enum gguf_type types[] = { GGUF_F32, GGUF_F16, GGUF_BF16, GGUF_Q8_0, GGUF_Q6_K };

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		if (strcmp(gguf_type_name(types[i]), name) == 0)
			return types[i];
	stop(name, NULL);
	return GGUF_F16;
}

int main(int argc, char **argv)
{
	struct err err = ERR_INIT;
	struct gguf_kv kv;
	struct buf start;

	if (argc < 3 || argc > 5) {
		fprintf(stderr, "usage: gguf_write PACKED_DIR FILE.gguf [EMBEDDINGS [HEAD]]\n");
		return 2;
	}
	if (argc > 3)
		embeddings = head = type_named(argv[3]);
	if (argc > 4)
		head = type_named(argv[4]);
	open_shards(argv[1]);
	read_model(argv[1]);
	if (model_each_tensor(&model, add, NULL) != 0)
		stop("the model's tensors", NULL);
	add_rope();
	gguf_kv_init(&kv);
	buf_init(&start, (size_t)1 << 30);
	put_meta(&kv, argv[1]);
	if (gguf_layout(&kv, tensors, count, &start, &err) != 0)
		stop(argv[2], &err);
	write_file(argv[2], &start);
	gguf_kv_deinit(&kv);
	buf_deinit(&start);
	for (size_t i = 0; i < shard_count; i++) {
		st_header_deinit(&shards[i].header);
		mem_free(shards[i].path);
	}
	json_free(config);
	return 0;
}
