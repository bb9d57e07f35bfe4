/* A block's weights on their way from a reader to the backend: the same bytes for any number of threads, one error
 * whatever the threads do, and memory that is used again. */
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/checkpoint.h"
#include "common/file.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/sealed_backend.h"
#include "worker/forward.h"

/* --- a reader of made-up tensors ----------------------------------------------------------------------------- */

enum { FAULTS = 2 };

/* Which rows of which tensors cannot be read; which threads asked. */
struct made {
	struct { const char *name; uint64_t row; } fault[FAULTS];
	atomic_int reads;
	atomic_bool others;             /* somebody else than `caller` read */
	pthread_t caller;
	uint64_t row, at;               /* a reader of one thread: where the next read begins */
	char last[MODEL_NAME_MAX + 16];
};

/* Name and row decide where a row of values begins; small integers are exact. */
static uint32_t row_seed(const char *name, uint64_t row)
{
	uint32_t h = 7;

	for (const char *c = name; *c; c++)
		h = h * 31 + (unsigned char)*c;
	return h + (uint32_t)row * 7919;
}

static float made_value(uint32_t seed, uint64_t col)
{
	return (float)((seed + (uint32_t)col * 13) & 0xffff);
}

static int read_made(void *ctx, const char *name, uint64_t row, uint64_t rows, uint64_t cols, float *out,
		     struct err *err)
{
	struct made *m = ctx;
	uint32_t seed;

	atomic_fetch_add(&m->reads, 1);
	if (!pthread_equal(pthread_self(), m->caller))
		atomic_store(&m->others, true);
	for (uint64_t r = row; r < row + rows; r++) {
		for (int i = 0; i < FAULTS; i++)
			if (m->fault[i].name && strstr(name, m->fault[i].name) && r == m->fault[i].row)
				return err_set(err, ERR_CORRUPT, "%s, row %llu", name, (unsigned long long)r);
		seed = row_seed(name, r);
		for (uint64_t c = 0; c < cols; c++)
			out[(r - row) * cols + c] = made_value(seed, c);
	}
	return 0;
}

/* 16 million weights: more than a buffer, in many pieces, and tensors of 3 values. */
static const struct model_config large = { .family = "qwen3", .layers = 4, .hidden = 1024, .heads = 8, .kv_heads = 3,
					   .head_dim = 128, .intermediate = 4096, .qkv_bias = true, .mlp_bias = true,
					   .qk_norm = true };
/* Fewer rows than threads; tensors of one row, or one value. */
static const struct model_config narrow = { .family = "qwen3", .layers = 4, .hidden = 5, .heads = 1, .kv_heads = 1,
					    .head_dim = 2, .intermediate = 1, .qkv_bias = true, .o_bias = true,
					    .mlp_bias = true, .qk_norm = true };

static struct layer_load made_load(struct made *m, struct backend *be, const struct model_config *config, int threads)
{
	m->caller = pthread_self();
	return (struct layer_load){ .be = be, .config = config, .layer = 2, .threads = threads,
				    .reader = { .read = read_made, .ctx = m, .threads = true } };
}

/* --- the bytes ----------------------------------------------------------------------------------------------- */

static void check_values(const struct model_config *config, const float *data)
{
	struct block_pieces whole;
	struct err err = ERR_INIT;

	assert_int_equal(block_pieces_init(&whole, config, 2, SIZE_MAX, &err), 0);
	assert_int_equal(whole.count, whole.tensors);
	for (size_t i = 0; i < whole.tensors; i++) {
		const struct block_tensor *t = &whole.tensor[i];

		for (size_t r = 0; r < t->rows; r++) {
			const float *row = data + t->at + r * t->cols;
			const uint32_t seed = row_seed(t->name, r);

			for (size_t c = 0; c < t->cols; c++)
				if (row[c] != made_value(seed, c))
					fail_msg("%s[%zu, %zu]: %g", t->name, r, c, (double)row[c]);
		}
	}
}

static void load_and_check(struct backend *be, const struct model_config *config, int threads)
{
	const bool own = be->ops->own_memory;
	struct made m = { .reads = 0 };
	const struct layer_load l = made_load(&m, be, config, threads);
	struct layer_room room = { 0 };
	struct block block = { 0 };
	struct err err = ERR_INIT;
	size_t floats;

	assert_int_equal(block_floats(config, &floats, &err), 0);
	assert_int_equal(layer_load(&l, &block, &room, &err), 0);
	assert_int_equal(block.shape.intermediate, config->intermediate);
	assert_true(own == (room.weights != NULL) && own == (block.data == NULL));
	assert_ptr_equal(layer_room_weights(config, &block, &room).q, own ? room.weights : block.data);
	assert_int_equal(layer_load_ordinary(config, &block, &room, &err), 0);
	assert_int_equal(block.shape.intermediate, config->intermediate);
	assert_int_equal(block.floats, floats);
	assert_ptr_equal(block.w.q, block.data);
	check_values(config, block.data);
	layer_room_free(&room);
	block_free(&block);
}

static void test_any_number_of_threads(void **state)
{
	static const int threads[] = { 0, 1, 2, 3, 7, 40 };

	(void)state;
	for (int sealed = 0; sealed < 2; sealed++) {
		struct backend *be = sealed ? sealed_open(case_open("cpu", 1)) : case_open("cpu", 1);

		for (size_t i = 0; i < sizeof(threads) / sizeof(threads[0]); i++)
			load_and_check(be, &narrow, threads[i]);
		load_and_check(be, &large, 1);
		load_and_check(be, &large, 3);
		case_close(be);
	}
}

/* A reader for one thread is called by the caller's alone, in order, for large parts. */
static int read_in_order(void *ctx, const char *name, uint64_t row, uint64_t rows, uint64_t cols, float *out,
			 struct err *err)
{
	struct made *m = ctx;

	if (strcmp(m->last, name) != 0) {
		snprintf(m->last, sizeof(m->last), "%s", name);
		m->row = 0;
	}
	assert_int_equal(row, m->row);
	m->row += rows;
	return read_made(ctx, name, row, rows, cols, out, err);
}

static void test_reader_for_one_thread(void **state)
{
	struct backend *be = case_open("cpu", 1);
	struct made m = { .reads = 0 };
	struct layer_load l = made_load(&m, be, &large, 8);
	struct layer_room room = { 0 };
	struct block block = { 0 };
	struct err err = ERR_INIT;

	(void)state;
	l.reader.read = read_in_order;
	l.reader.threads = false;
	assert_int_equal(layer_load(&l, &block, &room, &err), 0);
	assert_false(atomic_load(&m.others));
	assert_int_equal(atomic_load(&m.reads), 17); /* as many as tensors: no o_bias */
	check_values(&large, block.data);
	block_free(&block);
	case_close(be);
}

/* --- errors --------------------------------------------------------------------------------------------------- */

static void fail_to_load(const struct layer_load *l, const char *text)
{
	struct layer_room room = { 0 };
	struct block block = { 0 };
	struct err err = ERR_INIT;

	assert_int_equal(layer_load(l, &block, &room, &err), -1);
	assert_string_equal(err.text, text);
	assert_true(!block.data && !room.weights);
	assert_int_equal(layer_load(l, &block, &room, NULL), -1);
}

/* Of two faults the one that comes first in the block is told, whoever meets it first. */
static void test_the_first_error_wins(void **state)
{
	(void)state;
	for (int sealed = 0; sealed < 2; sealed++) {
		struct backend *be = sealed ? sealed_open(case_open("cpu", 1)) : case_open("cpu", 1);

		for (int threads = 1; threads <= 5; threads += 2) {
			struct made m = { .fault = { { "up_proj.weight", 4095 }, { "gate_proj.weight", 1234 } } };
			struct layer_load l = made_load(&m, be, &large, threads);

			fail_to_load(&l, "model.layers.2.mlp.gate_proj.weight, row 1234");
			m.fault[0].name = "k_norm";
			m.fault[0].row = 0;
			m.fault[1].name = "q_norm";
			m.fault[1].row = 127;
			fail_to_load(&l, "model.layers.2.self_attn.q_norm.weight, row 127");
			m.fault[1].name = "q_proj.weight";
			m.fault[1].row = 0;
			fail_to_load(&l, "model.layers.2.self_attn.q_proj.weight, row 0");
		}
		case_close(be);
	}
}

static void test_what_cannot_be_loaded(void **state)
{
	struct backend *be = case_open("cpu", 1);
	struct made m = { .reads = 0 };
	struct model_config config = large;
	struct layer_load l = made_load(&m, be, &config, 2);

	(void)state;
	l.layer = 4;
	fail_to_load(&l, "layer 4 of a model of 4 layers");
	l.layer = 0;
	config.hidden = SIZE_MAX / 8;
	fail_to_load(&l, "one block of the model does not fit into memory");
	assert_int_equal(atomic_load(&m.reads), 0);
	case_close(be);
}

/* No thread gets a stack as large as the address space. */
static void test_threads_that_do_not_start(void **state)
{
	struct backend *be = case_open("cpu", 1);
	struct made m = { .reads = 0 };
	struct layer_load l = made_load(&m, be, &narrow, 3);
	struct layer_room room = { 0 };
	struct block block = { 0 };
	struct err err = ERR_INIT;
	pthread_attr_t usual, huge;

	(void)state;
	assert_int_equal(pthread_getattr_default_np(&usual), 0);
	assert_int_equal(pthread_attr_init(&huge), 0);
	assert_int_equal(pthread_attr_setstacksize(&huge, (size_t)1 << 47), 0);
	assert_int_equal(pthread_setattr_default_np(&huge), 0);
	assert_int_equal(layer_load(&l, &block, &room, &err), -1);
	assert_int_equal(pthread_setattr_default_np(&usual), 0);
	assert_int_equal(err.code, ERR_UNAVAILABLE);
	assert_non_null(strstr(err.text, "cannot start compute thread 2 of 3: "));
	assert_null(block.data);
	assert_int_equal(layer_load(&l, &block, &room, &err), 0);
	block_free(&block);
	case_close(be);
	pthread_attr_destroy(&usual);
	pthread_attr_destroy(&huge);
}

/* --- memory is used again --------------------------------------------------------------------------------------- */

static void test_memory_is_used_again(void **state)
{
	(void)state;
	for (int sealed = 0; sealed < 2; sealed++) {
		struct backend *be = sealed ? sealed_open(case_open("cpu", 1)) : case_open("cpu", 1);
		struct made m = { .reads = 0 };
		struct layer_load l = made_load(&m, be, &narrow, 2);
		struct layer_room room = { 0 };
		struct block block = { 0 };
		struct err err = ERR_INIT;
		const void *first;

		l.layer = 1;
		assert_int_equal(layer_load(&l, &block, &room, &err), 0);
		first = sealed ? (void *)room.weights : (void *)block.data;
		if (sealed) /* a copy that is of the next layer no more */
			assert_int_equal(layer_load_ordinary(&narrow, &block, &room, &err), 0);
		l.layer = 2;
		assert_int_equal(layer_load(&l, &block, &room, &err), 0);
		assert_ptr_equal(sealed ? (void *)room.weights : (void *)block.data, first);
		assert_true(!sealed || !block.data);
		assert_int_equal(layer_load_ordinary(&narrow, &block, &room, &err), 0);
		check_values(&narrow, block.data);
		l.config = &large; /* of another size */
		assert_int_equal(layer_load(&l, &block, &room, &err), 0);
		assert_int_equal(layer_load_ordinary(&large, &block, &room, &err), 0);
		check_values(&large, block.data);
		block_free(&block);
		layer_room_free(&room);
		case_close(be);
	}
}

/* Each allocation fails once: nothing is held afterwards, and a copy that fails leaves what is loaded. */
static void test_out_of_memory(void **state)
{
	(void)state;
	for (int sealed = 0; sealed < 2; sealed++) {
		struct backend *be = sealed ? sealed_open(case_open("cpu", 1)) : case_open("cpu", 1);
		struct made m = { .reads = 0 };
		const struct layer_load l = made_load(&m, be, &narrow, 2);
		struct layer_room room = { 0 };
		struct block block = { 0 };
		struct err err = ERR_INIT;
		int failures = 0;

		for (uint64_t nth = 1;; nth++, failures++) {
			mem_fail_after(nth);
			if (layer_load(&l, &block, &room, &err) == 0)
				break;
			assert_int_equal(err.code, ERR_NOMEM);
			assert_true(!block.data && !room.weights);
		}
		mem_fail_after(0);
		assert_int_equal(failures, sealed ? 5 : 3); /* pool and its threads; array, or memory and two buffers */
		if (sealed) {
			mem_fail_after(1);
			assert_int_equal(layer_load_ordinary(&narrow, &block, &room, &err), -1);
			assert_string_equal(err.text, "out of memory for the weights of one block");
			mem_fail_after(0);
			assert_true(room.weights && !block.data);
			assert_int_equal(layer_load_ordinary(&narrow, &block, &room, &err), 0);
		}
		check_values(&narrow, block.data);
		block_free(&block);
		layer_room_free(&room);
		case_close(be);
	}
}

/* --- a backend that fails ----------------------------------------------------------------------------------------- */

static int until_failure;       /* calls of the operation that is to fail, with that one */
static const struct backend_ops *real_ops;

static int fails(struct err *err)
{
	return --until_failure == 0 ? err_set(err, ERR_UNAVAILABLE, "the device is gone") : 0;
}

static int begin_or_fail(struct backend *be, void *to, const void *from, size_t bytes, struct err *err)
{
	return fails(err) != 0 ? -1 : real_ops->memory_begin(be, to, from, bytes, err);
}

static int wait_or_fail(struct backend *be, struct err *err)
{
	int rc = real_ops->memory_wait(be, err);

	return fails(err) != 0 ? -1 : rc;
}

static int copy_or_fail(struct backend *be, void *to, const void *from, size_t bytes, struct err *err)
{
	return fails(err) != 0 ? -1 : real_ops->memory_copy(be, to, from, bytes, err);
}

static void load_on(struct backend *be, int nth, int *rc)
{
	struct made m = { .reads = 0 };
	const struct layer_load l = made_load(&m, be, &large, 2);
	struct layer_room room = { 0 };
	struct block block = { 0 };
	struct err err = ERR_INIT;

	until_failure = nth;
	*rc = layer_load(&l, &block, &room, &err);
	if (*rc != 0) {
		assert_string_equal(err.text, "the device is gone");
		assert_null(room.weights);
	}
	layer_room_free(&room);
}

/* Every copy fails once, when it begins or when it is waited for; all memory is given back, with nothing under way. */
static void test_copies_that_fail(void **state)
{
	struct backend *be = sealed_open(case_open("cpu", 1));
	struct made m = { .reads = 0 };
	const struct layer_load l = made_load(&m, be, &narrow, 2);
	struct backend_ops ops;
	struct layer_room room = { 0 };
	struct block block = { 0 };
	struct err err = ERR_INIT;

	(void)state;
	real_ops = be->ops;
	for (int waits = 0; waits < 2; waits++) {
		int nth = 1, rc = -1;

		ops = *real_ops;
		if (waits)
			ops.memory_wait = wait_or_fail;
		else
			ops.memory_begin = begin_or_fail;
		be->ops = &ops;
		for (; rc != 0; nth++)
			load_on(be, nth, &rc);
		be->ops = real_ops;
		assert_true(nth > (waits ? 4 : 3)); /* two buffers' worth at least */
	}
	assert_int_equal(layer_load(&l, &block, &room, &err), 0);
	ops = *real_ops;
	ops.memory_copy = copy_or_fail;
	be->ops = &ops;
	until_failure = 1;
	assert_int_equal(layer_load_ordinary(&narrow, &block, &room, &err), -1);
	be->ops = real_ops;
	assert_string_equal(err.text, "the device is gone");
	assert_true(room.weights && !block.data);
	layer_room_free(&room);
	case_close(be);
}

/* --- from files --------------------------------------------------------------------------------------------------- */

static struct checkpoint ck;
static struct source *source;

static void path_of_model(char path[PATH_MAX], const char *file)
{
	const char *root = getenv("QUARRY_ROOT");

	snprintf(path, PATH_MAX, "%s/examples/fable-tiny%s%s", root ? root : ".", *file ? "/" : "", file);
}

static void open_model(const char *path)
{
	struct err err = ERR_INIT;

	source = source_dir_open(path, &err);
	if (!source || checkpoint_open(&ck, source, NULL, &err) != 0)
		fail_msg("%s", err.text);
}

static void close_model(void)
{
	checkpoint_close(&ck);
	source->close(source);
}

static struct layer_load model_load(struct backend *be, int threads)
{
	return (struct layer_load){ .be = be, .config = &ck.config, .layer = 1, .threads = threads,
				    .reader = tensor_reader_of_checkpoint(&ck) };
}

/* What many threads read of a checkpoint of several files is what one reads tensor by tensor. */
static void test_checkpoint(void **state)
{
	struct backend *be = case_open("cpu", 1);
	struct layer_room room = { 0 };
	struct block block = { 0 };
	struct block_pieces whole;
	struct err err = ERR_INIT;
	struct layer_load l;
	char path[PATH_MAX];

	(void)state;
	path_of_model(path, "");
	open_model(path);
	l = model_load(be, 4);
	for (l.layer = 0; l.layer < ck.config.layers; l.layer++) {
		assert_int_equal(layer_load(&l, &block, &room, &err), 0);
		assert_int_equal(block_pieces_init(&whole, &ck.config, l.layer, SIZE_MAX, &err), 0);
		for (size_t i = 0; i < whole.tensors; i++) {
			const struct block_tensor *t = &whole.tensor[i];
			const size_t n = t->rows * t->cols;
			float *alone = case_poisoned(n);

			assert_int_equal(checkpoint_read_f32(&ck, t->name, 0, t->rows, alone, &err), 0);
			assert_memory_equal(alone, block.data + t->at, n * sizeof(*alone));
			free(alone);
		}
	}
	block_free(&block);
	close_model();
	case_close(be);
}

/* Each read fails once. */
static void test_read_errors(void **state)
{
	struct backend *be = case_open("cpu", 1);
	struct layer_room room = { 0 };
	struct block block = { 0 };
	char path[PATH_MAX];
	int failures = 0;

	(void)state;
	path_of_model(path, "");
	open_model(path);
	for (uint64_t nth = 1;; nth++, failures++) {
		const struct layer_load l = model_load(be, 3);
		struct err err = ERR_INIT;
		int rc;

		file_fail_after(FILE_READ, nth);
		rc = layer_load(&l, &block, &room, &err);
		file_fail_after(FILE_READ, 0);
		if (rc == 0)
			break;
		assert_int_equal(err.code, ERR_IO);
		assert_null(block.data);
	}
	assert_true(failures >= 9); /* once a tensor at least */
	block_free(&block);
	close_model();
	case_close(be);
}

/* --- a copy of the model that is damaged after it was opened ------------------------------------------------ */

static void copy_file(const char *from, const char *to)
{
	struct err err = ERR_INIT;
	size_t len;
	char *bytes = file_read_all(from, 64 << 20, &len, &err);

	if (!bytes || file_write_signal(to, bytes, len, &err) != 0)
		fail_msg("%s", err.text);
	mem_free(bytes);
}

static void copy_model(void)
{
	char from[PATH_MAX], to[PATH_MAX];
	struct err err = ERR_INIT;

	path_of_model(from, "");
	open_model(from);
	assert_int_equal(dir_make("copy", &err), 0);
	for (size_t i = 0; i < ck.file_count; i++) {
		path_of_model(from, ck.files[i].name);
		snprintf(to, sizeof(to), "copy/%s", ck.files[i].name);
		copy_file(from, to);
	}
	close_model();
	path_of_model(from, "config.json");
	copy_file(from, "copy/config.json");
	path_of_model(from, "model.safetensors.index.json");
	copy_file(from, "copy/model.safetensors.index.json");
}

static const struct st_tensor *tensor_in_copy(const char *suffix, char path[PATH_MAX], uint64_t *begin)
{
	const struct checkpoint_file *file;
	char name[MODEL_NAME_MAX];
	const struct st_tensor *t;

	snprintf(name, sizeof(name), "model.layers.1.%s", suffix);
	t = checkpoint_find(&ck, name, &file);
	assert_non_null(t);
	snprintf(path, PATH_MAX, "copy/%s", file->name);
	*begin = file->header.data_start + t->begin;
	return t;
}

static void spoil(const char *suffix, uint64_t row, uint64_t col)
{
	static const uint16_t infinite = 0x7f80;
	char path[PATH_MAX];
	uint64_t begin;
	const struct st_tensor *t = tensor_in_copy(suffix, path, &begin);
	struct err err = ERR_INIT;
	int fd = file_open(path, O_WRONLY, 0, &err);

	assert_int_equal(t->dtype, ST_BF16);
	assert_true(fd >= 0);
	assert_int_equal(file_pwrite(fd, &infinite, 2, begin + 2 * (row * (t->ndim == 2 ? t->shape[1] : 1) + col), path,
				     &err), 0);
	close(fd);
}

static void test_damaged_checkpoint(void **state)
{
	struct backend *be = case_open("cpu", 1);
	struct layer_load l;
	char want[PATH_MAX + 256], path[PATH_MAX];
	uint64_t begin;

	(void)state;
	copy_model();
	open_model("copy");
	l = model_load(be, 4);
	spoil("mlp.down_proj.weight", 7, 33);
	spoil("mlp.down_proj.weight", 7, 34);
	spoil("input_layernorm.weight", 5, 0);
	tensor_in_copy("mlp.down_proj.weight", path, &begin);
	snprintf(want, sizeof(want), "%s: element [7, 33] of tensor \"model.layers.1.mlp.down_proj.weight\" is "
		 "infinite; weights must be finite", path + strlen("copy/"));
	fail_to_load(&l, want);
	/* Tensors behind the end of a file that has become shorter. */
	tensor_in_copy("self_attn.q_proj.weight", path, &begin);
	assert_int_equal(truncate(path, (off_t)begin + 10), 0);
	snprintf(want, sizeof(want), "%s ends at byte %llu, ", path, (unsigned long long)begin + 10);
	for (int threads = 1; threads <= 4; threads += 3) {
		struct layer_room room = { 0 };
		struct block block = { 0 };
		struct err err = ERR_INIT;

		l.threads = threads;
		assert_int_equal(layer_load(&l, &block, &room, &err), -1);
		assert_int_equal(err.code, ERR_CORRUPT);
		assert_memory_equal(err.text, want, strlen(want));
	}
	close_model();
	case_close(be);
	dir_remove("copy", NULL);
}

/* --- from a quantized layer --------------------------------------------------------------------------------------- */

/* q_proj with the codes 0, 1, .. 15, 0, .. */
static void add_packed(struct layer_writer *w, size_t rows, size_t cols, const float *scales)
{
	uint8_t *codes = calloc(rows, cols);
	float *zeros = calloc(rows, sizeof(*zeros));
	struct err err = ERR_INIT;
	char settings[64];

	for (size_t i = 0; i < rows * cols; i++)
		codes[i] = (uint8_t)(i % 16);
	snprintf(settings, sizeof(settings), "{\"bits\":4,\"cols\":%zu}", cols);
	if (layer_writer_add_module(w, "model.layers.2.self_attn.q_proj", 4, rows, cols, cols, codes, scales, zeros,
				    settings, &err) != 0)
		fail_msg("%s", err.text);
	free(codes);
	free(zeros);
}

/* q_proj packed to 4 bits, `cols` wide; every other tensor 1. */
static void write_layer(const char *path, const struct model_config *config, size_t cols)
{
	struct layer_writer *w = layer_writer_new();
	struct block_pieces whole;
	struct err err = ERR_INIT;
	float *ones;

	assert_int_equal(block_pieces_init(&whole, config, 2, SIZE_MAX, &err), 0);
	ones = case_poisoned(whole.floats);
	for (size_t i = 0; i < whole.floats; i++)
		ones[i] = 1;
	for (size_t i = 0; i < whole.tensors; i++) {
		const struct block_tensor *t = &whole.tensor[i];
		const unsigned ndim = strstr(t->name, "proj.weight") ? 2 : 1;
		struct st_tensor stored = { .name = (char *)(uintptr_t)t->name, .dtype = ST_F32, .ndim = ndim,
					    .shape = { t->rows, t->cols }, .end = t->rows * t->cols * sizeof(float) };

		if (i > 0 && layer_writer_add(w, &stored, ones, &err) != 0)
			fail_msg("%s", err.text);
	}
	add_packed(w, whole.tensor[0].rows, cols, ones);
	if (layer_writer_write(w, path, &err) != 0)
		fail_msg("%s", err.text);
	layer_writer_free(w);
	free(ones);
}

static void test_quantized_layer(void **state)
{
	const struct model_config config = { .family = "qwen3", .layers = 4, .hidden = 512, .heads = 4, .kv_heads = 1,
					     .head_dim = 256, .intermediate = 3, .qk_norm = true };
	struct backend *be = case_open("cpu", 1);
	struct layer_room room = { 0 };
	struct block block = { 0 };
	struct err err = ERR_INIT;
	struct layer_blob blob;
	struct layer_load l = { .be = be, .config = &config, .layer = 2, .threads = 3 };

	(void)state;
	write_layer("layer", &config, 512);
	assert_int_equal(layer_blob_open(&blob, "layer", &err), 0);
	l.reader = tensor_reader_of_layer(&blob);
	assert_int_equal(layer_load(&l, &block, &room, &err), 0);
	for (size_t i = 0; i < block.floats; i++)
		if (block.data[i] != (i < 1024 * 512 ? (float)(i % 16) : 1))
			fail_msg("value %zu is %g", i, (double)block.data[i]);
	block_free(&block);
	layer_blob_close(&blob);

	/* More columns than the model has would not fit. */
	write_layer("layer", &config, 528);
	assert_int_equal(layer_blob_open(&blob, "layer", &err), 0);
	l.reader = tensor_reader_of_layer(&blob);
	fail_to_load(&l, "layer: tensor model.layers.2.self_attn.q_proj.weight has 528 columns, the model has 512");
	layer_blob_close(&blob);
	unlink("layer");
	case_close(be);
}

/* --- a forward pass's block from task to task --------------------------------------------------------------- */

static void check_forward(struct layer_forward *f, const float *want)
{
	const size_t bytes = (size_t)ck.config.hidden * ck.config.hidden * sizeof(float);
	float *got = case_fetch(f->backend, f->weights.q, (size_t)ck.config.hidden * ck.config.hidden);

	assert_memory_equal(got, want, bytes);
	free(got);
}

/* Captures need no ordinary copy; what quantizes after them gets one of the same bytes; the next layer takes the
 * place. */
static void test_forward_keeps_and_reuses(void **state)
{
	char path[PATH_MAX];

	(void)state;
	path_of_model(path, "");
	for (int sealed = 0; sealed < 2; sealed++) {
		struct backend *be = sealed ? sealed_open(case_open("cpu", 1)) : case_open("cpu", 1);
		struct task_env env = { .backend = be, .threads = 3 };
		struct layer_keep keep = { .layer = 0 };
		struct layer_forward f;
		struct err err = ERR_INIT;
		const float *place;
		float *want[2];

		open_model(path);
		for (int i = 0; i < 2; i++) {
			char name[64];

			snprintf(name, sizeof(name), "model.layers.%d.self_attn.q_proj.weight", i);
			want[i] = case_poisoned((size_t)ck.config.hidden * ck.config.hidden);
			assert_int_equal(checkpoint_read_f32(&ck, name, 0, ck.config.hidden, want[i], &err), 0);
		}
		env.model = source;
		env.keep = &keep;
		layer_keep_model(&keep, "m");
		assert_int_equal(layer_forward_init(&f, &env, 8, &err), 0);
		assert_int_equal(layer_forward_place(&f, 0, NULL, &err), 0);
		assert_true(sealed == !f.block.data);
		check_forward(&f, want[0]);
		place = f.weights.q;
		layer_forward_deinit(&f);
		assert_true(keep.holds);

		assert_int_equal(layer_forward_init(&f, &env, 8, &err), 0);
		file_fail_after(FILE_READ, 1); /* nothing is read: it is there */
		assert_int_equal(layer_forward_load(&f, 0, NULL, &err), 0);
		file_fail_after(FILE_READ, 0);
		assert_ptr_equal(f.weights.q, place);
		assert_memory_equal(f.block.w.q, want[0], (size_t)ck.config.hidden * ck.config.hidden * sizeof(float));
		layer_forward_deinit(&f);

		assert_int_equal(layer_forward_init(&f, &env, 8, &err), 0);
		assert_int_equal(layer_forward_place(&f, 1, NULL, &err), 0);
		assert_ptr_equal(f.weights.q, place);
		check_forward(&f, want[1]);
		assert_int_equal(layer_forward_place(&f, 0, NULL, &err), 0);
		assert_ptr_equal(f.weights.q, place);
		check_forward(&f, want[0]);
		assert_int_equal(layer_forward_place(&f, 0, "nowhere", &err), -1);
		assert_int_equal(err.code, ERR_NOT_FOUND);
		assert_true(!keep.holds && !f.block.data && !f.room.weights);
		layer_forward_deinit(&f);
		assert_false(keep.holds);
		layer_keep_drop(&keep);
		close_model();
		case_close(be);
		free(want[0]);
		free(want[1]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_any_number_of_threads),
		cmocka_unit_test(test_reader_for_one_thread),
		cmocka_unit_test(test_the_first_error_wins),
		cmocka_unit_test(test_what_cannot_be_loaded),
		cmocka_unit_test(test_threads_that_do_not_start),
		cmocka_unit_test(test_memory_is_used_again),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_copies_that_fail),
		cmocka_unit_test(test_checkpoint),
		cmocka_unit_test(test_read_errors),
		cmocka_unit_test(test_damaged_checkpoint),
		cmocka_unit_test(test_quantized_layer),
		cmocka_unit_test(test_forward_keeps_and_reuses),
	};

	return cmocka_run_group_tests_name("loading a layer", tests, NULL, NULL);
}
