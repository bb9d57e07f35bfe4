/* codec_files OUT_DIR - small modules in every format, for real libraries to read.
 *
 * For each module and format that holds it OUT_DIR/<case>/ gets model.safetensors, config.json (quantization only) and
 * expected.safetensors: "codes" U8 (N,K), "scales" and "zeros" F32 (N,G) as they were before writing. stdout: a line
 * "<case> <format> <bits> <group> <zero kind>" for each. OUT_DIR/mixed-<format>/config.json is of a block in which q, k, v
 * have 4 bits in groups of 64, o 8 bits in groups of 32 and down none (gate and up as q).
 */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/alloc.h"
#include "tests/lib/codec_case.h"

#define MODULE "model.layers.0.self_attn.q_proj"

enum { PATH_BYTES = 1024 };

static const struct { uint64_t rows, cols; int64_t group; } sizes[] = {
	{ 64, 256, 64 }, { 96, 256, -1 }, { 32, 128, 32 }, { 64, 512, 256 }, { 128, 384, 128 },
};

static int fail(const char *what, const struct err *err)
{
	fprintf(stderr, "codec_files: %s: %s\n", what, err->text);
	return -1;
}

static struct st_item item(char *name, enum st_dtype dtype, unsigned ndim, uint64_t rows, uint64_t cols,
			   const void *data)
{
	return (struct st_item){ { .name = name, .dtype = dtype, .ndim = ndim, .shape = { rows, cols } }, data };
}

static int write_expected(const struct codec_case *c, const char *dir)
{
	static const char *const keys[] = { "format" }, *const values[] = { "pt" };
	const uint64_t groups = c->v.cols / c->v.group;
	char codes[] = "codes", scales[] = "scales", zeros[] = "zeros", path[PATH_BYTES];
	struct err err = ERR_INIT;
	struct st_item items[] = {
		item(codes, ST_U8, 2, c->v.rows, c->v.cols, c->codes),
		item(scales, ST_F32, 2, c->v.rows, groups, c->scales),
		item(zeros, ST_F32, 2, c->v.rows, groups, c->zeros),
	};

	snprintf(path, sizeof(path), "%s/expected.safetensors", dir);
	return st_write_file(path, items, 3, keys, values, 1, &err) == 0 ? 0 : fail(path, &err);
}

static int write_model(const struct codec_case *c, const char *dir)
{
	static const char *const keys[] = { "format" };
	struct st_item items[CODEC_TENSORS_MAX];
	char names[CODEC_TENSORS_MAX][160], path[PATH_BYTES];
	struct err err = ERR_INIT;

	for (unsigned i = 0; i < c->count; i++) {
		const struct codec_tensor *t = &c->tensors[i];

		snprintf(names[i], sizeof(names[i]), "%s%s", c->name, t->suffix);
		items[i] = item(names[i], t->dtype, t->ndim, t->shape[0], t->shape[1], c->bytes[i]);
	}
	snprintf(path, sizeof(path), "%s/model.safetensors", dir);
	return st_write_file(path, items, c->count, keys, &c->codec->meta_format, 1, &err) == 0 ? 0 : fail(path, &err);
}

static int write_config(const struct json *config, const char *dir)
{
	char path[PATH_BYTES], *text = json_print(config, true);
	FILE *f;
	int rc;

	snprintf(path, sizeof(path), "%s/config.json", dir);
	f = fopen(path, "w");
	rc = f && text && fputs(text, f) >= 0 ? 0 : -1;
	if (f && fclose(f) != 0)
		rc = -1;
	mem_free(text);
	return rc;
}

static int write_case(const char *out, const struct codec *codec, struct codec_module m, enum zero_kind kind)
{
	struct err err = ERR_INIT;
	struct codec_case c;
	char name[160], dir[PATH_BYTES - 32];
	int rc;

	codec_case_init(&c, m, m.cols + (uint64_t)m.settings.bits);
	codec_case_room(&c, codec);
	snprintf(name, sizeof(name), "%s-%d-%lld-%s-%llux%llu", codec->name, m.settings.bits,
		 (long long)m.settings.group_size, zero_kind_name(kind), (unsigned long long)m.rows,
		 (unsigned long long)m.cols);
	snprintf(dir, sizeof(dir), "%s/%s", out, name);
	rc = codec_case_encode(&c, &err) == 0 ? 0 : fail(name, &err);
	if (rc == 0 && mkdir(dir, 0777) != 0)
		rc = -1;
	if (rc == 0)
		rc = write_expected(&c, dir) | write_model(&c, dir) | write_config(c.config, dir);
	if (rc == 0)
		printf("%s %s %d %lld %s\n", name, codec->name, m.settings.bits, (long long)m.settings.group_size,
		       zero_kind_name(kind));
	codec_case_deinit(&c);
	return rc;
}

static int write_mixed(const char *out, const struct codec *codec)
{
	static const char *const names[] = { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
					     "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj" };
	struct json *config = json_new_object();
	struct codec_module m[LIN_COUNT];
	char full[LIN_COUNT][64], dir[PATH_BYTES - 32];
	int rc;

	for (int i = 0; i < LIN_COUNT; i++) {
		snprintf(full[i], sizeof(full[i]), "model.layers.0.%s", names[i]);
		m[i] = codec_case_module(full[i], 64, 256, i == LIN_O ? 8 : 4, i == LIN_O ? 32 : 64, KIND_INTEGER);
		m[i].linear = (enum block_linear)i;
		m[i].settings.skip = i == LIN_DOWN;
	}
	snprintf(dir, sizeof(dir), "%s/mixed-%s", out, codec->name);
	rc = codec->config(m, LIN_COUNT, NULL, config) == 0 && mkdir(dir, 0777) == 0 ? write_config(config, dir) : -1;
	json_free(config);
	return rc;
}

int main(int argc, char **argv)
{
	int rc = 0;

	if (argc != 2) {
		fprintf(stderr, "usage: codec_files OUT_DIR\n");
		return 2;
	}
	for (const struct codec *const *c = codec_list; rc == 0 && *c; c++)
		for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++)
			for (int bits = 2; bits <= 8; bits++)
				for (enum zero_kind kind = 0; rc == 0 && kind < KINDS; kind++) {
					struct codec_module m = codec_case_module(MODULE, sizes[s].rows, sizes[s].cols, bits,
										  sizes[s].group, kind);

					if ((*c)->check(&m, NULL) == 0)
						rc = write_case(argv[1], *c, m, kind);
				}
	for (const struct codec *const *c = codec_list; rc == 0 && *c; c++)
		rc = (*c)->config ? write_mixed(argv[1], *c) : 0;
	return rc == 0 ? 0 : 1;
}
