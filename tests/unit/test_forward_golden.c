/* Whole models against hidden states, logits and losses computed by an independent implementation.
 *
 * tests/data/golden/NAME/forward.safetensors: input_ids (2,T) int32, hidden.0 = embedding output,
 * hidden.i = output of block i, the last one after the final norm, logits of the last positions, nll.
 * fable-tiny ships with the project; two more models are checked where ../shared has them.
 */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/checkpoint.h"
#include "common/file.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"
#include "worker/layer_load.h"
#include "worker/model/embed.h"
#include "worker/model/head.h"
#include "worker/model/rope.h"

enum { TARGETS = 40 };

struct golden {
	char model[1024], file[1024];
	struct checkpoint ck;
	struct st_header header;
	int fd;
	size_t n_seq, seq_len, rows;
	int32_t *ids;
};

static void paths_of(struct golden *g, const char *name, bool shipped)
{
	const char *root = getenv("QUARRY_ROOT");

	root = root ? root : ".";
	snprintf(g->model, sizeof(g->model), "%s/%s/%s", root,
		 shipped ? "examples" : "../shared/fixtures/models", name);
	snprintf(g->file, sizeof(g->file), "%s/%s/%s/forward.safetensors", root,
		 shipped ? "tests/data/golden" : "../shared/fixtures/golden", name);
}

/* A tensor's bytes; free with free(). */
static void *golden_tensor(const struct golden *g, const char *name, uint64_t *shape)
{
	const struct st_tensor *t = st_find(&g->header, name);
	struct err err = ERR_INIT;
	void *bytes;

	if (!t)
		fail_msg("%s lacks %s", g->file, name);
	bytes = malloc((size_t)(t->end - t->begin));
	assert_non_null(bytes);
	if (file_pread(g->fd, bytes, (size_t)(t->end - t->begin), g->header.data_start + t->begin, g->file,
		       &err) != 0)
		fail_msg("%s", err.text);
	for (unsigned d = 0; shape && d < t->ndim; d++)
		shape[d] = t->shape[d];
	return bytes;
}

static void golden_open(struct golden *g)
{
	struct err err = ERR_INIT;
	struct source *source = source_dir_open(g->model, &err);
	uint64_t shape[2];

	if (!source || checkpoint_open(&g->ck, source, NULL, &err) != 0 ||
	    st_header_read_path(&g->header, g->file, &err) != 0)
		fail_msg("%s", err.text);
	g->fd = open(g->file, O_RDONLY | O_CLOEXEC);
	assert_true(g->fd >= 0);
	g->ids = golden_tensor(g, "input_ids", shape);
	g->n_seq = (size_t)shape[0];
	g->seq_len = (size_t)shape[1];
	g->rows = g->n_seq * g->seq_len;
}

static void golden_close(struct golden *g)
{
	struct source *source = g->ck.source;

	free(g->ids);
	close(g->fd);
	st_header_deinit(&g->header);
	checkpoint_close(&g->ck);
	source->close(source);
}

static void compare_hidden(const struct golden *g, size_t index, const float *got)
{
	const size_t n = g->rows * g->ck.config.hidden;
	char name[32];
	float *want;

	snprintf(name, sizeof(name), "hidden.%zu", index);
	want = golden_tensor(g, name, NULL);
	case_assert_close(name, got, want, n, 1e-3);
	free(want);
}

/* All blocks in place; every hidden state but the last is compared. */
static void run_blocks(const struct golden *g, struct backend *be, float *x)
{
	const struct model_config *config = &g->ck.config;
	struct layer_load l = { .be = be, .config = config, .threads = 2,
				.reader = tensor_reader_of_checkpoint((struct checkpoint *)&g->ck) };
	struct layer_room room = { 0 };
	struct block block = { 0 };
	struct block_weights w;
	struct err err = ERR_INIT;
	struct rope rope;

	if (rope_init(&rope, config, g->seq_len, &err) != 0)
		fail_msg("%s", err.text);
	for (size_t layer = 0; layer < config->layers; layer++) {
		l.layer = layer;
		if (layer_load(&l, &block, &room, &err) != 0)
			fail_msg("layer %zu: %s", layer, err.text);
		w = layer_room_weights(config, &block, &room);
		if (be->ops->block_forward(be, &block.shape, &w, &rope.table, x, g->n_seq, g->seq_len,
					   x, NULL, NULL, &err) != 0)
			fail_msg("layer %zu: %s", layer, err.text);
		if (layer + 1 < config->layers)
			compare_hidden(g, layer + 1, x);
	}
	layer_room_free(&room);
	block_free(&block);
	rope_deinit(&rope);
}

/* The loss of each position's next token, and the mean. */
static void compare_nll(struct golden *g, struct backend *be, const float *x)
{
	float *want = golden_tensor(g, "nll", NULL);
	int32_t *targets = calloc(g->rows, sizeof(*targets));
	double *nll = calloc(g->rows, sizeof(*nll)), got_sum = 0, want_sum = 0;
	struct err err = ERR_INIT;

	for (size_t r = 0; r < g->rows; r++)
		targets[r] = (r + 1) % g->seq_len ? g->ids[r + 1] : -1;
	if (head_nll(be, &g->ck, 16, x, targets, g->rows, nll, NULL, &err) != 0)
		fail_msg("%s", err.text);
	for (size_t r = 0; r < g->rows; r++) {
		const size_t at = r / g->seq_len * (g->seq_len - 1) + r % g->seq_len;

		if (targets[r] < 0) {
			assert_true(nll[r] == 0);
			continue;
		}
		if (!(fabs(nll[r] - (double)want[at]) <= 2e-3))
			fail_msg("row %zu: nll %.7g, not %.7g", r, nll[r], (double)want[at]);
		got_sum += nll[r];
		want_sum += (double)want[at];
	}
	assert_true(fabs(got_sum / want_sum - 1) < 1e-5);
	free(want);
	free(targets);
	free(nll);
}

/* One of the last positions: the losses of TARGETS ids and the likeliest id follow from its logits. */
static void compare_logits(struct golden *g, struct backend *be, const float *hidden, const float *logits)
{
	const size_t vocab = g->ck.config.vocab, cols = g->ck.config.hidden;
	float *x = calloc(TARGETS * cols, sizeof(*x));
	int32_t targets[TARGETS], top[TARGETS];
	double nll[TARGETS], sum = 0;
	size_t best = 0;
	struct err err = ERR_INIT;

	for (size_t i = 0; i < vocab; i++) {
		sum += exp((double)logits[i]);
		best = logits[i] > logits[best] ? i : best;
	}
	for (size_t i = 0; i < TARGETS; i++) {
		targets[i] = (int32_t)(i * (vocab - 1) / (TARGETS - 1));
		memcpy(x + i * cols, hidden, cols * sizeof(*x));
	}
	if (head_nll(be, &g->ck, 16, x, targets, TARGETS, nll, top, &err) != 0)
		fail_msg("%s", err.text);
	for (size_t i = 0; i < TARGETS; i++) {
		const double want = log(sum) - (double)logits[targets[i]];

		if (!(fabs(nll[i] - want) <= 2e-3))
			fail_msg("id %d: nll %.7g, not %.7g", targets[i], nll[i], want);
		assert_int_equal(top[i], best);
	}
	free(x);
}

static void compare_all_logits(struct golden *g, struct backend *be, const float *x)
{
	uint64_t shape[3];
	float *logits = golden_tensor(g, "logits", shape);
	const size_t last = (size_t)shape[1], vocab = (size_t)shape[2];

	assert_int_equal(vocab, g->ck.config.vocab);
	for (size_t s = 0; s < g->n_seq; s++)
		for (size_t i = 0; i < last; i++) {
			const size_t row = (s + 1) * g->seq_len - last + i;

			compare_logits(g, be, x + row * g->ck.config.hidden, logits + (s * last + i) * vocab);
		}
	free(logits);
}

static void check_model(const char *name, bool shipped, const char *backend)
{
	struct golden g;
	struct backend *be = case_open(backend, 2);
	struct err err = ERR_INIT;
	float *x, *normed;

	paths_of(&g, name, shipped);
	if (!shipped && !file_exists(g.file)) {
		case_close(be);
		print_message("%s is not there\n", g.file);
		skip();
	}
	golden_open(&g);
	x = case_poisoned(g.rows * g.ck.config.hidden);
	normed = case_poisoned(g.rows * g.ck.config.hidden);
	if (embed_tokens(&g.ck, 16, g.ids, g.rows, x, &err) != 0)
		fail_msg("%s", err.text);
	compare_hidden(&g, 0, x);
	run_blocks(&g, be, x);
	if (head_final_norm(be, &g.ck, x, g.rows, normed, &err) != 0)
		fail_msg("%s", err.text);
	compare_hidden(&g, g.ck.config.layers, normed);
	compare_nll(&g, be, x);
	compare_all_logits(&g, be, x);
	free(x);
	free(normed);
	golden_close(&g);
	case_close(be);
}

static void test_tiny_ref(void **state)
{
	(void)state;
	check_model("fable-tiny", true, "ref");
}

static void test_tiny_tested(void **state)
{
	(void)state;
	check_model("fable-tiny", true, tested_backend());
}

static void test_llama_tested(void **state)
{
	(void)state;
	check_model("fable-llama", false, tested_backend());
}

static void test_llama_ref(void **state)
{
	(void)state;
	check_model("fable-llama", false, "ref");
}

static void test_qwen3_tested(void **state)
{
	(void)state;
	check_model("fable-qwen3", false, tested_backend());
}

static void test_qwen3_ref(void **state)
{
	(void)state;
	check_model("fable-qwen3", false, "ref");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tiny_ref),  cmocka_unit_test(test_tiny_tested),
		cmocka_unit_test(test_llama_tested), cmocka_unit_test(test_llama_ref),
		cmocka_unit_test(test_qwen3_tested), cmocka_unit_test(test_qwen3_ref),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
