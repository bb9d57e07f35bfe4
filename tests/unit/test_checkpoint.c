/* A checkpoint folder: the sample model opens and reads; each way of damaging a copy of it is
 * refused with a sentence; no name leads out of the folder. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/checkpoint.h"
#include "common/file.h"
#include "common/half.h"
#include "common/json.h"

#define FIRST "model-00001-of-00002.safetensors"
#define SECOND "model-00002-of-00002.safetensors"
#define INDEX "model.safetensors.index.json"
#define DOWN "model.layers.1.mlp.down_proj.weight"
#define BUFFER "model.layers.0.self_attn.rotary_emb.inv_freq"
#define NORM "model.layers.0.input_layernorm.weight"

static char sample[1024];

/* --- copies ------------------------------------------------------------------- */

static void copy_file(const char *from_dir, const char *to_dir, const char *name)
{
	char *from = path_join(from_dir, name), *to = path_join(to_dir, name);
	struct err err = ERR_INIT;
	size_t len;
	char *bytes = file_read_all(from, 1 << 24, &len, &err);

	if (!bytes || file_write_atomic(to, bytes, len, &err) != 0)
		fail_msg("%s", err.text);
	mem_free(bytes);
	mem_free(from);
	mem_free(to);
}

static void make_copy(const char *dir)
{
	static const char *const names[] = { "config.json", INDEX, FIRST, SECOND };

	assert_int_equal(dir_make(dir, NULL), 0);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		copy_file(sample, dir, names[i]);
}

static void write_text(const char *dir, const char *name, const char *text)
{
	char *path = path_join(dir, name);

	assert_int_equal(file_write_atomic(path, text, strlen(text), NULL), 0);
	mem_free(path);
}

/* Replaces the first `from` in a text file; the test fails when it is not there. */
static void edit_text(const char *dir, const char *name, const char *from, const char *to)
{
	char *path = path_join(dir, name), *edited;
	size_t len;
	char *text = file_read_all(path, 1 << 20, &len, NULL), *at = strstr(text, from);

	if (!at)
		fail_msg("%s has no %s", name, from);
	edited = mem_alloc(len + strlen(to) + 1, 1);
	memcpy(edited, text, (size_t)(at - text));
	strcat(edited, to);
	strcat(edited, at + strlen(from));
	assert_int_equal(file_write_atomic(path, edited, strlen(edited), NULL), 0);
	mem_free(edited);
	mem_free(text);
	mem_free(path);
}

/* --- shards ------------------------------------------------------------------- */

struct shard { struct st_header header; struct st_item items[64]; size_t count; char *bytes; };

static void load_shard(struct shard *s, const char *dir, const char *name)
{
	char *path = path_join(dir, name);
	struct err err = ERR_INIT;
	size_t len;

	s->bytes = file_read_all(path, 1 << 24, &len, &err);
	if (!s->bytes || st_header_read_path(&s->header, path, &err) != 0)
		fail_msg("%s", err.text);
	s->count = s->header.count;
	for (size_t i = 0; i < s->count; i++)
		s->items[i] = (struct st_item){ s->header.tensors[i],
			s->bytes + s->header.data_start + s->header.tensors[i].begin };
	mem_free(path);
}

static void store_shard(struct shard *s, const char *dir, const char *name)
{
	char *path = path_join(dir, name);

	assert_int_equal(st_write_file(path, s->items, s->count, NULL, NULL, 0, NULL), 0);
	st_header_deinit(&s->header);
	mem_free(s->bytes);
	mem_free(path);
}

static struct st_item *item(struct shard *s, const char *name)
{
	for (size_t i = 0; i < s->count; i++)
		if (strcmp(s->items[i].tensor.name, name) == 0)
			return &s->items[i];
	fail_msg("no tensor %s", name);
	return NULL;
}

static void remove_item(struct shard *s, const char *name)
{
	*item(s, name) = s->items[s->count - 1];
	s->count--;
}

static void add_item(struct shard *s, const char *name, const struct st_item *like)
{
	s->items[s->count] = *like;
	s->items[s->count++].tensor.name = (char *)(uintptr_t)name;
}

/* --- damage ------------------------------------------------------------------- */

static void drop_tensor(const char *dir)
{
	struct shard s;

	load_shard(&s, dir, FIRST);
	remove_item(&s, NORM);
	store_shard(&s, dir, FIRST);
	edit_text(dir, INDEX, "\"" NORM "\": \"" FIRST "\",", "");
}

static void drop_tensor_keep_index(const char *dir)
{
	struct shard s;

	load_shard(&s, dir, FIRST);
	remove_item(&s, NORM);
	store_shard(&s, dir, FIRST);
}

static void add_tensor(const char *dir)
{
	struct shard s;

	load_shard(&s, dir, FIRST);
	add_item(&s, "model.layers.0.extra.weight", item(&s, NORM));
	store_shard(&s, dir, FIRST);
	edit_text(dir, INDEX, "\"weight_map\": {", "\"weight_map\": {\"model.layers.0.extra.weight\": "
		  "\"" FIRST "\",");
}

static void add_unlisted_tensor(const char *dir)
{
	struct shard s;

	load_shard(&s, dir, FIRST);
	add_item(&s, "model.layers.0.self_attn.rotary_emb.inv_freq", item(&s, NORM));
	store_shard(&s, dir, FIRST);
}

static void put_tensor_twice(const char *dir)
{
	struct shard one, two;

	load_shard(&one, dir, FIRST);
	load_shard(&two, dir, SECOND);
	add_item(&two, NORM, item(&one, NORM));
	store_shard(&two, dir, SECOND);
	st_header_deinit(&one.header);
	mem_free(one.bytes);
}

static void reshape(const char *dir)
{
	struct shard s;
	struct st_tensor *t;

	load_shard(&s, dir, FIRST);
	t = &item(&s, DOWN)->tensor;
	t->shape[0] = 512, t->shape[1] = 192;
	store_shard(&s, dir, FIRST);
}

static void flatten(const char *dir)
{
	struct shard s;
	struct st_tensor *t;

	load_shard(&s, dir, FIRST);
	t = &item(&s, DOWN)->tensor;
	t->ndim = 1, t->shape[0] = 192 * 512;
	store_shard(&s, dir, FIRST);
}

static void retype(const char *dir)
{
	struct shard s;

	load_shard(&s, dir, FIRST);
	item(&s, DOWN)->tensor.dtype = ST_I16;
	store_shard(&s, dir, FIRST);
}

static void name_missing_file(const char *dir)
{
	edit_text(dir, INDEX, "\"" NORM "\": \"" FIRST "\"", "\"" NORM "\": "
		  "\"model-00003-of-00003.safetensors\"");
}

static void swap_files(const char *dir)
{
	edit_text(dir, INDEX, "\"" NORM "\": \"" FIRST "\"", "\"" NORM "\": \"" SECOND "\"");
}

static void truncate_shard(const char *dir)
{
	char *path = path_join(dir, SECOND);

	assert_int_equal(truncate(path, 1000000), 0);
	mem_free(path);
}

static void truncate_header(const char *dir)
{
	char *path = path_join(dir, SECOND);

	assert_int_equal(truncate(path, 100), 0);
	mem_free(path);
}

static void lengthen_shard(const char *dir)
{
	char *path = path_join(dir, SECOND);
	FILE *file = fopen(path, "ab");

	assert_non_null(file);
	fputc(0, file);
	fclose(file);
	mem_free(path);
}

static void remove_shard(const char *dir)
{
	char *path = path_join(dir, SECOND);

	assert_int_equal(unlink(path), 0);
	mem_free(path);
}

static void shard_is_folder(const char *dir)
{
	char *path = path_join(dir, SECOND);

	remove_shard(dir);
	assert_int_equal(mkdir(path, 0777), 0);
	mem_free(path);
}

static void shard_is_pipe(const char *dir)
{
	char *path = path_join(dir, SECOND);

	remove_shard(dir);
	assert_int_equal(mkfifo(path, 0666), 0);
	mem_free(path);
}

static void name_with_slash(const char *dir)
{
	edit_text(dir, INDEX, "\"" NORM "\": \"" FIRST "\"", "\"" NORM "\": \"/etc/passwd\"");
}

static void name_with_dots(const char *dir)
{
	edit_text(dir, INDEX, "\"" NORM "\": \"" FIRST "\"", "\"" NORM "\": \"../config.json\"");
}

static void name_no_text(const char *dir)
{
	edit_text(dir, INDEX, "\"" NORM "\": \"" FIRST "\"", "\"" NORM "\": 7");
}

static void index_not_json(const char *dir)
{
	write_text(dir, INDEX, "{\"weight_map\": {");
}

static void index_key_twice(const char *dir)
{
	edit_text(dir, INDEX, "\"" NORM "\"", "\"model.embed_tokens.weight\"");
}

static void index_no_map(const char *dir)
{
	write_text(dir, INDEX, "{\"metadata\": {}}");
}

static void index_empty_map(const char *dir)
{
	write_text(dir, INDEX, "{\"weight_map\": {}}");
}

static void index_too_long(const char *dir)
{
	char *path = path_join(dir, INDEX);

	assert_int_equal(truncate(path, (16 << 20) + 1), 0);
	mem_free(path);
}

static void index_many_files(const char *dir)
{
	struct json *index = json_new_object(), *map = json_new_object();
	char *text;

	for (int i = 0; i < 4097; i++) {
		char name[64];

		snprintf(name, sizeof(name), "f%04d.safetensors", i);
		assert_int_equal(json_set_string(map, name, name), 0);
	}
	json_set(index, "weight_map", map);
	text = json_print(index, false);
	write_text(dir, INDEX, text);
	mem_free(text);
	json_free(index);
}

/* More tensors than are accepted, over two files that are each within the limit. */
static void too_many_tensors(const char *dir)
{
	struct json *index = json_new_object(), *map = json_new_object();
	struct st_item *items = mem_alloc(40000, sizeof(*items));
	char (*names)[16] = mem_alloc(40000, sizeof(*names)), *text;

	for (int file = 0; file < 2; file++) {
		char *path = path_join(dir, file ? SECOND : FIRST);

		for (int i = 0; i < 40000; i++) {
			snprintf(names[i], sizeof(names[i]), "%d.%05d", file, i);
			items[i] = (struct st_item){ .tensor = { .name = names[i], .dtype = ST_U8,
			.ndim = 1 } };
		}
		assert_int_equal(st_write_file(path, items, 40000, NULL, NULL, 0, NULL), 0);
		json_set_string(map, file ? "b" : "a", file ? SECOND : FIRST);
		mem_free(path);
	}
	json_set(index, "weight_map", map);
	text = json_print(index, false);
	write_text(dir, INDEX, text);
	mem_free(text);
	mem_free(items);
	mem_free(names);
	json_free(index);
}

static void only_pickle(const char *dir)
{
	assert_int_equal(dir_remove(dir, NULL), 0);
	assert_int_equal(dir_make(dir, NULL), 0);
	copy_file(sample, dir, "config.json");
	write_text(dir, "pytorch_model.bin", "x");
}

static void no_weights(const char *dir)
{
	only_pickle(dir);
	char *path = path_join(dir, "pytorch_model.bin");

	unlink(path);
	mem_free(path);
}

static void no_config(const char *dir)
{
	char *path = path_join(dir, "config.json");

	unlink(path);
	mem_free(path);
}

static void other_family(const char *dir)
{
	edit_text(dir, "config.json", "\"model_type\": \"llama\"", "\"model_type\": \"gpt2\"");
}

static void more_layers(const char *dir)
{
	edit_text(dir, "config.json", "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5");
}

static void untied(const char *dir)
{
	edit_text(dir, "config.json", "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
}

static const struct damage {
	void (*apply)(const char *dir);
	enum err_code code;
	size_t problems; /* how many are listed */
	const char *says;
} damages[] = {
	{ drop_tensor, ERR_CORRUPT, 1, "tensor \"" NORM "\" is missing" },
	{ drop_tensor_keep_index, ERR_CORRUPT, 2, INDEX " says that " FIRST " holds tensor \"" NORM "\"" },
	{ add_tensor, ERR_UNSUPPORTED, 1, FIRST ": tensor \"model.layers.0.extra.weight\" is no part of a "
	"llama" },
	{ add_unlisted_tensor, ERR_CORRUPT, 1, "inv_freq\", which " INDEX " does not list" },
	{ put_tensor_twice, ERR_CORRUPT, 0, "tensor \"" NORM "\" is both in " },
	{ reshape, ERR_CORRUPT, 1, "tensor \"" DOWN "\" has 2 dimensions, 512 x 192; config.json asks for "
	"2, 192 x 512" },
	{ flatten, ERR_CORRUPT, 1, "has 1 dimensions, 98304 x 1; config.json asks for 2, 192 x 512" },
	{ retype, ERR_UNSUPPORTED, 1, "tensor \"" DOWN "\" is I16; supported are BF16, F16 and F32" },
	{ name_missing_file, ERR_NOT_FOUND, 2, INDEX " names model-00003-of-00003.safetensors, which is not "
	"in" },
	{ swap_files, ERR_CORRUPT, 1, "says that " SECOND " holds tensor \"" NORM "\", which it does not" },
	{ truncate_shard, ERR_CORRUPT, 1, SECOND ": the header describes 1574784 bytes of data" },
	{ truncate_header, ERR_CORRUPT, 1, SECOND ": its header claims" },
	{ lengthen_shard, ERR_CORRUPT, 1, "something was appended?" },
	{ remove_shard, ERR_NOT_FOUND, 1, INDEX " names " SECOND ", which is not in" },
	{ shard_is_folder, ERR_INVALID, 1, SECOND " is not a regular file" },
	{ shard_is_pipe, ERR_INVALID, 1, SECOND " is not a regular file" },
	{ name_with_slash, ERR_CORRUPT, 2, "into \"/etc/passwd\", which is not the plain name" },
	{ name_with_dots, ERR_CORRUPT, 2, "into \"../config.json\", which is not the plain name" },
	{ name_no_text, ERR_CORRUPT, 2, "into \"?\", which is not the plain name" },
	{ index_not_json, ERR_INVALID, 1, INDEX ": not valid JSON at byte 16" },
	{ index_key_twice, ERR_INVALID, 1, "the key \"model.embed_tokens.weight\" appears twice" },
	{ index_no_map, ERR_CORRUPT, 1, "\"weight_map\" must be an object" },
	{ index_empty_map, ERR_CORRUPT, 1, "\"weight_map\" must be an object" },
	{ index_too_long, ERR_TOO_LARGE, 1, "at most 16777216 are accepted" },
	{ index_many_files, ERR_CORRUPT, 1, "4097 shards; at most 4096" },
	{ too_many_tensors, ERR_CORRUPT, 1, "the checkpoint holds 80000 tensors; at most 65536" },
	{ only_pickle, ERR_UNSUPPORTED, 1, "as pickle (pytorch_model.bin)" },
	{ no_weights, ERR_NOT_FOUND, 1, "holds no weights: there is neither " INDEX " nor "
	"model.safetensors" },
	{ no_config, ERR_NOT_FOUND, 1, "config.json" },
	{ other_family, ERR_UNSUPPORTED, 1, "\"model_type\" is \"gpt2\"" },
	{ more_layers, ERR_CORRUPT, 9, "tensor \"model.layers.4." },
	{ untied, ERR_CORRUPT, 1, "tensor \"lm_head.weight\" is missing" },
};

static bool any_says(const struct problems *problems, const char *says)
{
	for (size_t i = 0; i < problems->count; i++)
		if (strstr(problems->items[i], says))
			return true;
	return false;
}

static void check_damage(const struct damage *d, size_t number)
{
	struct problems problems = { 0 };
	struct err err = ERR_INIT;
	struct checkpoint ck;
	struct source *source;

	make_copy("copy");
	d->apply("copy");
	source = source_dir_open("copy", &err);
	assert_non_null(source);
	if (checkpoint_open(&ck, source, &problems, &err) == 0)
		fail_msg("damage %zu is accepted; it should say \"%s\"", number, d->says);
	if (!any_says(&problems, d->says))
		fail_msg("damage %zu says \"%s\" first, nowhere \"%s\"", number, err.text, d->says);
	if (err.code != d->code)
		fail_msg("damage %zu: code %s: %s", number, err_name(err.code), err.text);
	if (d->problems && problems.count != d->problems)
		fail_msg("damage %zu: %zu problems, expected %zu; the last is \"%s\"", number, problems.count,
			 d->problems, problems.items[problems.count - 1]);
	problems_deinit(&problems);
	assert_int_equal(checkpoint_open(&ck, source, NULL, NULL), -1); /* also without a list */
	source->close(source);
	assert_int_equal(dir_remove("copy", NULL), 0);
}

static void test_damages(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++)
		check_damage(&damages[i], i);
}

/* --- what is accepted --------------------------------------------------------- */

static void open_good(struct checkpoint *ck, const char *dir)
{
	struct err err = ERR_INIT;
	struct source *source = source_dir_open(dir, &err);

	if (!source || checkpoint_open(ck, source, NULL, &err) != 0)
		fail_msg("%s", err.text);
}

static void close_good(struct checkpoint *ck)
{
	struct source *source = ck->source;

	checkpoint_close(ck);
	source->close(source);
}

static void test_sample(void **state)
{
	struct checkpoint ck;
	const struct checkpoint_file *file;
	const struct st_tensor *t;

	(void)state;
	open_good(&ck, sample);
	assert_int_equal(ck.file_count, 2);
	assert_string_equal(ck.files[0].name, FIRST);
	assert_int_equal(ck.files[0].bytes, 1969672);
	assert_int_equal(ck.config.layers, 4);
	assert_true(ck.config.tied_embeddings);
	assert_non_null(strstr(ck.config_text, "LlamaForCausalLM"));
	t = checkpoint_find(&ck, DOWN, &file);
	assert_int_equal(t->shape[0], 192);
	assert_string_equal(file->name, FIRST);
	assert_non_null(checkpoint_find(&ck, "model.norm.weight", NULL));
	assert_null(checkpoint_find(&ck, "lm_head.weight", NULL));
	close_good(&ck);
}

static void test_read(void **state)
{
	struct checkpoint ck;
	struct err err = ERR_INIT;
	float *whole = malloc(192 * 512 * 4), part[2 * 512], norm[192];
	uint16_t raw[512];

	(void)state;
	open_good(&ck, sample);
	assert_int_equal(checkpoint_read_f32(&ck, DOWN, 0, 192, whole, NULL), 0);
	assert_int_equal(checkpoint_read_f32(&ck, DOWN, 100, 2, part, NULL), 0);
	assert_memory_equal(part, whole + 100 * 512, sizeof(part));
	assert_int_equal(checkpoint_read_raw(&ck, DOWN, 101, 1, raw, NULL), 0);
	for (int j = 0; j < 512; j++)
		assert_true(bf16_to_f32(raw[j]) == part[512 + j]);
	assert_int_equal(checkpoint_read_f32(&ck, NORM, 0, 192, norm, NULL), 0);
	assert_int_equal(checkpoint_read_f32(&ck, NORM, 191, 1, part, NULL), 0);
	assert_true(part[0] == norm[191] && norm[191] != 0);
	assert_int_equal(checkpoint_read_f32(&ck, NORM, 192, 0, part, NULL), 0);
	assert_int_equal(checkpoint_read_f32(&ck, DOWN, 191, 2, part, &err), -1);
	assert_non_null(strstr(err.text, "has 192 rows; rows 191 to 193 were asked for"));
	assert_int_equal(checkpoint_read_raw(&ck, DOWN, UINT64_MAX, 1, part, &err), -1);
	assert_int_equal(checkpoint_read_f32(&ck, "nothing", 0, 1, part, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	free(whole);
	close_good(&ck);
}

/* Reading in pieces: the embedding is repeated to more elements than one piece holds. */
static void test_read_large(void **state)
{
	enum { ROWS = 5000 };
	struct checkpoint ck;
	struct shard s;
	uint16_t *values = malloc(ROWS * 192 * 2);
	float *out = malloc(ROWS * 192 * 4);

	(void)state;
	make_copy("large");
	load_shard(&s, "large", FIRST);
	for (size_t i = 0; i < ROWS * 192; i++)
		values[i] = f32_to_bf16((float)(i % 251) - 100);
	item(&s, "model.embed_tokens.weight")->tensor.shape[0] = ROWS;
	item(&s, "model.embed_tokens.weight")->data = values;
	store_shard(&s, "large", FIRST);
	edit_text("large", "config.json", "\"vocab_size\": 1024", "\"vocab_size\": 5000");
	open_good(&ck, "large");
	assert_int_equal(checkpoint_read_f32(&ck, "model.embed_tokens.weight", 0, ROWS, out, NULL), 0);
	for (size_t i = 0; i < ROWS * 192; i++)
		if (out[i] != bf16_to_f32(values[i]))
			fail_msg("element %zu", i);
	file_fail_after(FILE_READ, 2);
	assert_int_equal(checkpoint_read_f32(&ck, "model.embed_tokens.weight", 0, ROWS, out, NULL), -1);
	mem_fail_after(1);
	assert_int_equal(checkpoint_read_f32(&ck, "model.embed_tokens.weight", 0, ROWS, out, NULL), -1);
	mem_fail_after(0);
	close_good(&ck);
	free(values);
	free(out);
	dir_remove("large", NULL);
}

/* The same model as one file of mixed dtypes, with buffers that are ignored, and no index. */
static void test_single_file(void **state)
{
	struct shard one, two;
	struct checkpoint ck;
	struct err err = ERR_INIT;
	float wide[192], *f32 = malloc(192 * 4), back[192];
	uint16_t *f16 = malloc(192 * 2);

	(void)state;
	make_copy("single");
	load_shard(&one, "single", FIRST);
	load_shard(&two, "single", SECOND);
	for (size_t i = 0; i < two.count; i++)
		one.items[one.count++] = two.items[i];
	bf16_to_f32_array(item(&one, NORM)->data, wide, 192);
	memcpy(f32, wide, sizeof(wide));
	f32_to_f16_array(wide, f16, 192);
	add_item(&one, BUFFER, item(&one, NORM));
	item(&one, BUFFER)->tensor.dtype = ST_I16;
	add_item(&one, "lm_head.weight", item(&one, "model.embed_tokens.weight"));
	item(&one, NORM)->tensor.dtype = ST_F32;
	item(&one, NORM)->data = f32;
	item(&one, "model.norm.weight")->tensor.dtype = ST_F16;
	item(&one, "model.norm.weight")->data = f16;
	store_shard(&one, "single", "model.safetensors");
	st_header_deinit(&two.header);
	mem_free(two.bytes);
	assert_int_equal(unlink("single/" INDEX), 0);
	open_good(&ck, "single");
	assert_int_equal(ck.file_count, 1);
	assert_int_equal(checkpoint_read_f32(&ck, NORM, 0, 192, back, NULL), 0);
	assert_memory_equal(back, wide, sizeof(wide));
	assert_int_equal(checkpoint_read_f32(&ck, "model.norm.weight", 0, 192, back, NULL), 0);
	for (int i = 0; i < 192; i++)
		assert_true(fabsf(back[i] - wide[i]) <= 1e-3f * fabsf(wide[i]));
	assert_int_equal(checkpoint_read_raw(&ck, "lm_head.weight", 3, 1, back, NULL), 0);
	assert_int_equal(checkpoint_read_f32(&ck, BUFFER, 0, 1, back, &err), -1);
	assert_non_null(strstr(err.text, "is not a float vector or matrix"));
	close_good(&ck);
	free(f32);
	free(f16);
	dir_remove("single", NULL);
}

/* Values that are no numbers, at a place that the sentence must name. */
static void test_not_finite(void **state)
{
	struct checkpoint ck;
	struct shard s;
	struct err err = ERR_INIT;
	float *out = malloc(192 * 512 * 4);
	uint16_t bad;

	(void)state;
	make_copy("nan");
	load_shard(&s, "nan", FIRST);
	bad = 0x7FC0;
	memcpy((char *)(uintptr_t)item(&s, DOWN)->data + 2 * (7 * 512 + 33), &bad, 2);
	bad = 0xFF80;
	memcpy((char *)(uintptr_t)item(&s, NORM)->data + 2 * 50, &bad, 2);
	store_shard(&s, "nan", FIRST);
	open_good(&ck, "nan");
	assert_int_equal(checkpoint_read_f32(&ck, DOWN, 0, 192, out, &err), -1);
	assert_string_equal(err.text, FIRST ": element [7, 33] of tensor \"" DOWN "\" is NaN; weights must "
			    "be finite");
	assert_int_equal(err.code, ERR_CORRUPT);
	assert_int_equal(checkpoint_read_f32(&ck, DOWN, 7, 1, out, &err), -1);
	assert_non_null(strstr(err.text, "element [7, 33]"));
	assert_int_equal(checkpoint_read_f32(&ck, DOWN, 8, 100, out, &err), 0);
	assert_int_equal(checkpoint_read_raw(&ck, DOWN, 7, 1, out, &err), 0);
	assert_int_equal(checkpoint_read_f32(&ck, NORM, 10, 100, out, &err), -1);
	assert_string_equal(err.text, FIRST ": element 50 of tensor \"" NORM "\" is infinite; weights must "
			    "be finite");
	close_good(&ck);
	free(out);
	dir_remove("nan", NULL);
}

static void test_linked_files(void **state)
{
	struct checkpoint ck;
	char target[1200];

	(void)state;
	make_copy("linked");
	unlink("linked/" FIRST);
	snprintf(target, sizeof(target), "%s/%s", sample, FIRST);
	assert_int_equal(symlink(target, "linked/" FIRST), 0);
	open_good(&ck, "linked");
	close_good(&ck);
	dir_remove("linked", NULL);
}

/* --- sources ------------------------------------------------------------------ */

static void test_source(void **state)
{
	static const char *const bad[] = { "", ".", "..", "../x", "/etc/passwd", "a/b", ".hidden", "a b",
	"a\nb" };
	struct err err = ERR_INIT;
	struct source *s;
	uint64_t bytes;
	size_t len;
	char *text;

	(void)state;
	dir_make("src", NULL);
	write_text("src", "a", "hello");
	write_text("src", "b", "");
	s = source_dir_open("src//", &err);
	assert_string_equal(s->label, "src");
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(s->size(s, bad[i], &bytes, &err), -1);
		assert_int_equal(err.code, ERR_INVALID);
		assert_int_equal(s->read(s, bad[i], 0, &bytes, 1, &err), -1);
	}
	text = source_read_all(s, "a", 5, &len, &err);
	assert_string_equal(text, "hello");
	assert_int_equal(len, 5);
	mem_free(text);
	assert_null(source_read_all(s, "a", 4, &len, &err));
	assert_string_equal(err.text, "src/a has 5 bytes; at most 4 are accepted");
	text = source_read_all(s, "b", 0, &len, &err);
	assert_string_equal(text, "");
	mem_free(text);
	assert_null(source_read_all(s, "c", 4, &len, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_int_equal(s->read(s, "a", 3, &bytes, 3, &err), -1);
	assert_int_equal(err.code, ERR_CORRUPT);
	file_fail_after(FILE_READ, 1);
	assert_null(source_read_all(s, "a", 5, &len, &err));
	assert_int_equal(err.code, ERR_IO);
	s->close(s);
	assert_null(source_dir_open("nowhere", &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_null(source_dir_open("src/a", &err));
	dir_remove("src", NULL);
}

/* --- failures ----------------------------------------------------------------- */

static int open_and_close(struct problems *problems, struct err *err)
{
	struct source *source = source_dir_open("copy", err);
	struct checkpoint ck;
	int rc;

	if (!source)
		return -1;
	rc = checkpoint_open(&ck, source, problems, err);
	if (rc == 0)
		checkpoint_close(&ck);
	source->close(source);
	return rc;
}

static void test_out_of_memory(void **state)
{
	(void)state;
	for (int damaged = 0; damaged < 2; damaged++) {
		uint64_t n;

		make_copy("copy");
		if (damaged)
			add_unlisted_tensor("copy");
		for (n = 1; n < 20000; n++) {
			struct problems problems = { 0 };
			struct err err = ERR_INIT;
			int rc;

			mem_fail_after(n);
			rc = open_and_close(&problems, &err);
			mem_fail_after(0);
			problems_deinit(&problems);
			if (rc == 0 || err.code != ERR_NOMEM) {
				assert_int_equal(rc, damaged ? -1 : 0);
				assert_int_equal(err.code, damaged ? ERR_CORRUPT : ERR_NONE);
				break;
			}
		}
		assert_in_range(n, 300, 19999);
		dir_remove("copy", NULL);
	}
}

static void test_read_errors(void **state)
{
	uint64_t n;

	(void)state;
	make_copy("copy");
	for (n = 1; n < 100; n++) {
		struct problems problems = { 0 };
		struct err err = ERR_INIT;
		int rc;

		file_fail_after(FILE_READ, n);
		rc = open_and_close(&problems, &err);
		file_fail_after(FILE_READ, 0);
		problems_deinit(&problems);
		if (rc == 0)
			break;
		assert_int_equal(err.code, ERR_IO);
	}
	assert_int_equal(n, 7); /* config, index, length and text of two headers */
	dir_remove("copy", NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sample),
		cmocka_unit_test(test_read),
		cmocka_unit_test(test_read_large),
		cmocka_unit_test(test_single_file),
		cmocka_unit_test(test_not_finite),
		cmocka_unit_test(test_linked_files),
		cmocka_unit_test(test_damages),
		cmocka_unit_test(test_source),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_read_errors),
	};
	const char *root = getenv("QUARRY_ROOT");

	snprintf(sample, sizeof(sample), "%s/examples/fable-tiny", root ? root : ".");
	return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}
