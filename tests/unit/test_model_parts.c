/* The pieces of worker/model/ that feed a forward pass: rotary tables, blocks, embedding, head. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/checkpoint.h"
#include "common/file.h"
#include "tests/lib/forward_case.h"
#include "worker/model/block.h"
#include "worker/model/embed.h"
#include "worker/model/head.h"
#include "worker/model/rope.h"

static struct checkpoint ck;
static struct source *source;

static int open_model(void **state)
{
	const char *root = getenv("QUARRY_ROOT");
	char path[1024];
	struct err err = ERR_INIT;

	(void)state;
	snprintf(path, sizeof(path), "%s/examples/fable-tiny", root ? root : ".");
	source = source_dir_open(path, &err);
	if (!source || checkpoint_open(&ck, source, NULL, &err) != 0) {
		print_error("%s\n", err.text);
		return -1;
	}
	return 0;
}

static int close_model(void **state)
{
	(void)state;
	checkpoint_close(&ck);
	source->close(source);
	return 0;
}

/* Fails each allocation and each read of attempt() once; it must end in an error each time and succeed at
 * last. */
static void sweep(int (*attempt)(struct err *err), int least_allocations, int least_reads)
{
	for (int kind = 0; kind < 2; kind++) {
		int failures = 0, rc = -1;

		for (uint64_t nth = 1; rc != 0; nth++) {
			struct err err = ERR_INIT;

			if (kind == 0)
				mem_fail_after(nth);
			else
				file_fail_after(FILE_READ, nth);
			rc = attempt(&err);
			mem_fail_after(0);
			file_fail_after(FILE_READ, 0);
			if (rc == 0)
				break;
			assert_int_equal(err.code, kind == 0 ? ERR_NOMEM : ERR_IO);
			assert_true(strlen(err.text) > 0);
			failures++;
		}
		if (failures < (kind == 0 ? least_allocations : least_reads))
			fail_msg("only %d failures of kind %d", failures, kind);
	}
}

/* --- rotary tables ----------------------------------------------------------------------------- */

static void near(double got, double want, double relative)
{
	if (!(fabs(got - want) <= relative * fabs(want)))
		fail_msg("%.12g, not %.12g", got, want);
}

/* Values of the transformers package (float32) for head_dim 128. */
static void test_rope_frequencies(void **state)
{
	const struct rope_config plain = { .type = ROPE_DEFAULT, .theta = 10000 };
	const struct rope_config linear = { .type = ROPE_LINEAR, .theta = 10000, .factor = 4 };
	const struct rope_config llama3 = { .type = ROPE_LLAMA3, .theta = 500000, .factor = 8,
					    .low_freq_factor = 1, .high_freq_factor = 4,
					    .original_max_position = 8192 };
	static const struct { size_t i; double linear, llama3; } want[] = {
		{ 0, 0.25, 1.0 },
		{ 1, 0.21649108827114105, 0.8146172165870667 },
		{ 20, 0.014058532193303108, 0.016560440883040428 },
		{ 28, 0.004445698577910662, 0.0032114461064338684 },
		{ 29, 0.0038498162757605314, 0.0021665706299245358 },
		{ 30, 0.0033338037319481373, 0.0013718936825171113 },
		{ 31, 0.002886954927816987, 0.0008567514596506953 },
		{ 32, 0.0024999999441206455, 0.0005248460220173001 },
		{ 34, 0.0018747355788946152, 0.0001785077911335975 },
		{ 40, 0.0007905694656074047, 3.428102354519069e-05 },
		{ 63, 2.8869548259535804e-05, 3.068925877869333e-07 },
	};

	(void)state;
	for (size_t k = 0; k < sizeof(want) / sizeof(want[0]); k++) {
		near(rope_frequency(&linear, 128, want[k].i), want[k].linear, 1e-6);
		near(rope_frequency(&plain, 128, want[k].i), 4 * want[k].linear, 1e-6);
		near(rope_frequency(&llama3, 128, want[k].i), want[k].llama3, 1e-6);
	}
}

static void test_rope_tables(void **state)
{
	struct model_config config = { .head_dim = 6, .rope = { .type = ROPE_DEFAULT, .theta = 100 } };
	struct rope rope;
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(rope_init(&rope, &config, 5, &err), 0);
	for (size_t t = 0; t < 5; t++)
		for (size_t i = 0; i < 3; i++) {
			const double angle = (double)t * pow(100, -(double)i / 3);

			assert_true(fabs((double)rope.table.cos[t * 3 + i] - cos(angle)) < 1e-7);
			assert_true(fabs((double)rope.table.sin[t * 3 + i] - sin(angle)) < 1e-7);
		}
	rope_deinit(&rope);
	assert_int_equal(rope_init(&rope, &config, 0, &err), -1);
	config.head_dim = 5;
	assert_int_equal(rope_init(&rope, &config, 5, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	config.head_dim = 6;
	assert_int_equal(rope_init(&rope, &config, (size_t)-1 / 2, &err), -1);
	assert_int_equal(err.code, ERR_NOMEM);
	mem_fail_after(1);
	assert_int_equal(rope_init(&rope, &config, 5, &err), -1);
	assert_int_equal(err.code, ERR_NOMEM);
	mem_fail_after(0);
}

/* --- blocks ------------------------------------------------------------------------------------ */

static const struct model_config every_tensor = { .family = "qwen3", .layers = 9, .hidden = 4, .heads = 2, .kv_heads = 1,
						  .head_dim = 2, .intermediate = 3, .qkv_bias = true,
						  .o_bias = true, .mlp_bias = true, .qk_norm = true };

/* Every tensor a family may have, by name, each in its own slot. */
static void test_block_names(void **state)
{
	struct model_config config = every_tensor;
	struct block_pieces p;
	struct block_weights w;
	struct err err = ERR_INIT;
	float data[118];
	size_t floats;

	(void)state;
	assert_int_equal(block_pieces_init(&p, &config, 7, 1000, &err), 0);
	assert_int_equal(p.tensors, 18);
	assert_int_equal(p.count, 18);
	assert_string_equal(p.tensor[0].name, "model.layers.7.self_attn.q_proj.weight");
	assert_string_equal(p.tensor[1].name, "model.layers.7.self_attn.q_proj.bias");
	assert_string_equal(p.tensor[13].name, "model.layers.7.mlp.down_proj.bias");
	assert_string_equal(p.tensor[17].name, "model.layers.7.self_attn.k_norm.weight");
	for (size_t i = 0; i < p.tensors; i++)
		data[p.tensor[i].at] = (float)(i + 1);
	w = block_weights_at(&config, data);
	assert_true(w.q[0] == 1 && w.q_bias[0] == 2 && w.v[0] == 5);
	assert_true(w.o_bias[0] == 8);
	assert_true(w.gate[0] == 9 && w.up_bias[0] == 12 && w.down[0] == 13);
	assert_true(w.attn_norm[0] == 15 && w.mlp_norm[0] == 16 && w.k_norm[0] == 18);
	assert_int_equal(p.floats, 84 + 22 + 12); /* weights, biases, norms */
	assert_int_equal(block_floats(&config, &floats, &err), 0);
	assert_int_equal(floats, p.floats);
	assert_int_equal(block_pieces_init(&p, &config, 9, 1000, &err), -1);
	assert_string_equal(err.text, "layer 9 of a model of 9 layers");
	config.qkv_bias = false;
	w = block_weights_at(&config, data);
	assert_true(w.k == data + 16 && !w.k_bias);
	config.hidden = (size_t)-1 / 8;
	assert_int_equal(block_pieces_init(&p, &config, 0, 1000, &err), -1);
	assert_int_equal(err.code, ERR_TOO_LARGE);
}

/* Pieces of any size follow each other without a gap, and a row is never cut. */
static void test_block_pieces(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	for (size_t most = 1; most < 20; most++) {
		struct block_pieces p;
		size_t at = 0;

		assert_int_equal(block_pieces_init(&p, &every_tensor, 0, most, &err), 0);
		for (size_t i = 0; i < p.count; i++) {
			const struct block_piece piece = block_piece_of(&p, i);

			assert_int_equal(piece.at, at);
			assert_int_equal(piece.at, piece.tensor->at + piece.row * piece.tensor->cols);
			assert_int_equal(piece.floats, piece.rows * piece.tensor->cols);
			assert_true(piece.rows >= 1 && piece.row + piece.rows <= piece.tensor->rows);
			assert_true(piece.floats <= most || piece.rows == 1);
			at += piece.floats;
		}
		assert_int_equal(at, p.floats);
	}
}

/* --- embedding --------------------------------------------------------------------------------- */

static int embed_some(struct err *err)
{
	const int32_t ids[5] = { 1023, 0, 7, 0, 512 };
	float *out = case_poisoned(5 * ck.config.hidden);
	int rc = embed_tokens(&ck, 16, ids, 5, out, err);

	if (rc == 0)
		assert_memory_equal(out + ck.config.hidden, out + 3 * ck.config.hidden,
				    ck.config.hidden * sizeof(*out));
	free(out);
	return rc;
}

static void test_embedding(void **state)
{
	const size_t hidden = ck.config.hidden, count = 700;
	int32_t *ids = case_random_ids(count, (int32_t)ck.config.vocab, 3);
	float *out = case_poisoned(count * hidden), *row = case_poisoned(hidden);
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(embed_tokens(&ck, 16, ids, 0, out, &err), 0);
	assert_int_equal(embed_tokens(&ck, 16, ids, count, out, &err), 0);
	for (size_t i = 0; i < count; i += 50) {
		assert_int_equal(checkpoint_read_f32(&ck, MODEL_EMBED_NAME, (uint64_t)ids[i], 1, row, &err),
				 0);
		assert_memory_equal(row, out + i * hidden, hidden * sizeof(*row));
	}
	ids[3] = (int32_t)ck.config.vocab;
	assert_int_equal(embed_tokens(&ck, 16, ids, count, out, &err), -1);
	assert_string_equal(err.text, "token 3 has id 1024; the model's ids are 0 to 1023");
	ids[3] = -1;
	assert_int_equal(embed_tokens(&ck, 16, ids, count, out, &err), -1);
	assert_int_equal(err.code, ERR_INVALID);
	free(ids);
	free(out);
	free(row);
	sweep(embed_some, 2, 1);
}

/* --- head -------------------------------------------------------------------------------------- */

static int head_of(const char *backend, struct err *err)
{
	struct backend *be = case_open(backend, 2);
	float *x = case_random(3 * ck.config.hidden, 1, 4);
	const int32_t targets[3] = { 5, -1, 1023 };
	double nll[3] = { NAN, NAN, NAN };
	int32_t top[3];
	int rc = head_nll(be, &ck, 16, x, targets, 3, nll, top, err);

	if (rc == 0)
		assert_true(nll[0] > 0 && nll[1] == 0 && nll[2] > 0 && top[0] >= 0);
	free(x);
	case_close(be);
	return rc;
}

/* Opened outside the sweep's reach, the backend's own allocations would count. */
static struct backend *sweep_backend;

static int head_some(struct err *err)
{
	const int32_t target = 9;
	float *x = case_random(ck.config.hidden, 1, 4);
	double nll;
	int rc = head_nll(sweep_backend, &ck, 16, x, &target, 1, &nll, NULL, err);

	free(x);
	return rc;
}

static void test_head(void **state)
{
	struct err err = ERR_INIT;
	float x[1] = { 0 };
	int32_t target = 1024;
	double nll;

	(void)state;
	for (size_t b = 0; backend_list[b]; b++) {
		assert_int_equal(head_of(backend_list[b]->name, &err), 0);
		sweep_backend = case_open(backend_list[b]->name, 2);
		sweep(head_some, 4, 2);
		assert_int_equal(head_nll(sweep_backend, &ck, 16, x, &target, 1, &nll, NULL, &err), -1);
		assert_string_equal(err.text, "target 0 has id 1024; the model's ids are 0 to 1023");
		case_close(sweep_backend);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rope_frequencies), cmocka_unit_test(test_rope_tables),
		cmocka_unit_test(test_block_names), cmocka_unit_test(test_block_pieces),
		cmocka_unit_test(test_embedding), cmocka_unit_test(test_head),
	};

	return cmocka_run_group_tests(tests, open_model, close_model);
}
