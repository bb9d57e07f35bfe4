/* A model against a reference through one head: KL divergence and agreement, held to a dense computation in double;
 * small models whose output embeddings are cut into tiles of several heights. */
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
#include "formats/embedding.h"
#include "tests/lib/forward_case.h"
#include "tests/lib/tested_backend.h"
#include "worker/model/head.h"

/* --- models ------------------------------------------------------------------------------------ */

/* Sizes of a random model, and what differs from the plain one of these sizes. */
struct head_model {
	size_t hidden, vocab;
	bool tied, half;                /* half: stored as bfloat16 */
	const char *eps;
	const char *changed;            /* a tensor whose last value is another, or NULL */
};

struct made_tensors { struct st_item items[32]; size_t count; const struct head_model *model; };

struct open_model { struct source *source; struct checkpoint ck; };

/* Random values that bfloat16 holds exactly: its bits are the upper half of the float's. */
static float *random_values(size_t n, float scale, uint64_t seed)
{
	float *values = case_random(n, scale, seed);

	for (size_t i = 0; i < n; i++) {
		uint32_t bits;

		memcpy(&bits, values + i, sizeof(bits));
		bits &= 0xffff0000u;
		memcpy(values + i, &bits, sizeof(bits));
	}
	return values;
}

static void to_upper_half(float *values, size_t n)
{
	uint16_t *out = (uint16_t *)values;

	for (size_t i = 0; i < n; i++) {
		uint32_t bits;

		memcpy(&bits, values + i, sizeof(bits));
		bits >>= 16;
		memmove(out + i, &(uint16_t){ (uint16_t)bits }, sizeof(*out));
	}
}

static int make_tensor(void *ctx, const struct model_tensor *t)
{
	struct made_tensors *m = ctx;
	const size_t n = t->dim[0] * (t->dim[1] ? t->dim[1] : 1);
	const float scale = t->dim[1] ? 3 * sqrtf(3.0f / (float)t->dim[1]) : 2.0f;
	float *values = random_values(n, scale, n);

	if (m->model->changed && strcmp(t->name, m->model->changed) == 0)
		values[n - 1] = values[n - 1] == 0.5f ? 0.25f : 0.5f;
	if (m->model->half)
		to_upper_half(values, n);
	assert_true(m->count < sizeof(m->items) / sizeof(m->items[0]));
	m->items[m->count++] = (struct st_item){
		.tensor = { .name = mem_strdup(t->name), .dtype = m->model->half ? ST_BF16 : ST_F32,
			    .ndim = t->dim[1] ? 2 : 1, .shape = { t->dim[0], t->dim[1] } },
		.data = values,
	};
	return 0;
}

/* A model of one tiny block in folder "model", opened. */
static void model_init(struct open_model *o, const struct head_model *model)
{
	static struct made_tensors m;
	struct model_config config;
	struct err err = ERR_INIT;
	char text[1024];
	int len = snprintf(text, sizeof(text),
			   "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":%zu,"
			   "\"intermediate_size\":2,\"num_attention_heads\":1,\"num_key_value_heads\":1,\"head_dim\":2,"
			   "\"num_hidden_layers\":1,\"vocab_size\":%zu,\"max_position_embeddings\":64,"
			   "\"rms_norm_eps\":%s,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","
			   "\"tie_word_embeddings\":%s,\"torch_dtype\":\"float32\"}", model->hidden, model->vocab,
			   model->eps ? model->eps : "1e-05", model->tied ? "true" : "false");

	m = (struct made_tensors){ .model = model };
	assert_int_equal(dir_make("model", &err), 0);
	assert_int_equal(file_write_atomic("model/config.json", text, (size_t)len, &err), 0);
	if (model_config_parse(&config, text, (size_t)len, NULL, &err) != 0)
		fail_msg("%s", err.text);
	assert_int_equal(model_each_tensor(&config, make_tensor, &m), 0);
	assert_int_equal(st_write_file("model/model.safetensors", m.items, m.count, NULL, NULL, 0, &err), 0);
	for (size_t i = 0; i < m.count; i++) {
		mem_free(m.items[i].tensor.name);
		free((void *)(uintptr_t)m.items[i].data);
	}
	o->source = source_dir_open("model", &err);
	if (!o->source || checkpoint_open(&o->ck, o->source, NULL, &err) != 0)
		fail_msg("%s", err.text);
}

static void model_deinit(struct open_model *o)
{
	checkpoint_close(&o->ck);
	o->source->close(o->source);
}

/* --- rows and what is known of them ------------------------------------------------------------- */

struct rows {
	size_t count, hidden, vocab;
	float *x, *reference;           /* (count, hidden), not normalized */
	int32_t *targets;
};

static int head_bits = 16;      /* of the model's output embedding; the reference's is the source's */

struct scores { double *nll, *kl; bool *same_top; };

static bool last_of_window(size_t row)
{
	return row % 7 == 6;
}

static void rows_init(struct rows *r, const struct checkpoint *ck, size_t count, float distance)
{
	const size_t n = count * ck->config.hidden;
	float *noise = case_random(n, distance, 5);

	*r = (struct rows){ .count = count, .hidden = ck->config.hidden, .vocab = ck->config.vocab };
	r->x = case_random(n, 4, 3);
	r->reference = case_copy(r->x, n * sizeof(float));
	for (size_t i = 0; i < n; i++)
		r->reference[i] += noise[i];
	free(noise);
	r->targets = case_random_ids(count, (int32_t)ck->config.vocab, 9);
	for (size_t row = 0; row < count; row++)
		if (last_of_window(row))
			r->targets[row] = -1;
}

static void rows_deinit(struct rows *r)
{
	free(r->x);
	free(r->reference);
	free(r->targets);
}

static struct scores scores_new(size_t rows)
{
	struct scores s = { calloc(rows, sizeof(double)), calloc(rows, sizeof(double)), calloc(rows, sizeof(bool)) };

	for (size_t r = 0; r < rows; r++) {
		s.nll[r] = s.kl[r] = NAN;
		s.same_top[r] = last_of_window(r);
	}
	return s;
}

static void scores_free(struct scores *s)
{
	free(s->nll);
	free(s->kl);
	free(s->same_top);
}

/* Copies go in: the rows are normalized in place. */
static int compare(struct backend *be, struct open_model *o, const struct rows *r, struct scores *s,
		   struct err *err)
{
	const size_t bytes = r->count * r->hidden * sizeof(float);
	float *x = case_copy(r->x, bytes), *reference = case_copy(r->reference, bytes);
	int rc = head_compare(be, &o->ck, head_bits, x, reference, r->targets, r->count, s->nll, s->kl, s->same_top, err);

	free(x);
	free(reference);
	return rc;
}

/* log p of every id (vocab); returns the likeliest id. */
static size_t dense_log_p(const float *x, const float *norm, const float *head, size_t hidden, size_t vocab,
			  double *log_p)
{
	double square = 0, sum = 0, scale;
	size_t top = 0;

	for (size_t k = 0; k < hidden; k++)
		square += (double)x[k] * x[k];
	scale = 1 / sqrt(square / (double)hidden + 1e-5);
	for (size_t id = 0; id < vocab; id++) {
		log_p[id] = 0;
		for (size_t k = 0; k < hidden; k++)
			log_p[id] += scale * x[k] * norm[k] * head[id * hidden + k];
		if (log_p[id] > log_p[top])
			top = id;
	}
	for (size_t id = 0; id < vocab; id++)
		sum += exp(log_p[id] - log_p[top]);
	sum = log_p[top] + log(sum);
	for (size_t id = 0; id < vocab; id++)
		log_p[id] -= sum;
	return top;
}

static void dense_scores(struct open_model *o, const struct rows *r, struct scores *s)
{
	float *norm = case_poisoned(r->hidden), *head = case_poisoned(r->vocab * r->hidden), *stored;
	double *log_p = calloc(r->vocab, sizeof(double)), *log_ref = calloc(r->vocab, sizeof(double));
	const char *name = o->ck.config.tied_embeddings ? MODEL_EMBED_NAME : MODEL_HEAD_NAME;
	struct err err = ERR_INIT;

	assert_int_equal(checkpoint_read_f32(&o->ck, MODEL_FINAL_NORM_NAME, 0, r->hidden, norm, &err), 0);
	assert_int_equal(checkpoint_read_f32(&o->ck, name, 0, r->vocab, head, &err), 0);
	stored = case_copy(head, r->vocab * r->hidden * sizeof(*head));
	assert_int_equal(embedding_round(head_bits, name, 0, stored, r->vocab, r->hidden, &err), 0);
	for (size_t row = 0; row < r->count; row++) {
		const size_t at = row * r->hidden;
		const size_t top = dense_log_p(r->x + at, norm, stored, r->hidden, r->vocab, log_p);
		const size_t ref = dense_log_p(r->reference + at, norm, head, r->hidden, r->vocab, log_ref);

		s->nll[row] = s->kl[row] = s->same_top[row] = 0;
		if (r->targets[row] < 0)
			continue;
		s->nll[row] = -log_p[r->targets[row]];
		s->same_top[row] = top == ref;
		for (size_t id = 0; id < r->vocab; id++)
			s->kl[row] += exp(log_ref[id]) * (log_ref[id] - log_p[id]);
	}
	free(norm);
	free(head);
	free(stored);
	free(log_p);
	free(log_ref);
}

static double worst(const double *got, const double *want, size_t n)
{
	double d = 0;

	for (size_t i = 0; i < n; i++)
		d = isnan(got[i]) ? INFINITY : fmax(d, fabs(got[i] - want[i]) / (1 + fabs(want[i])));
	return d;
}

/* --- tests ------------------------------------------------------------------------------------- */

static void check_against_dense(struct open_model *o, const struct rows *r, const char *backend)
{
	struct backend *be = case_open(backend, 2);
	struct scores want = scores_new(r->count), got = scores_new(r->count);
	struct err err = ERR_INIT;
	double nll, kl, sum = 0;
	size_t agree = 0;

	dense_scores(o, r, &want);
	if (compare(be, o, r, &got, &err) != 0)
		fail_msg("%s: %s", backend, err.text);
	nll = worst(got.nll, want.nll, r->count);
	kl = worst(got.kl, want.kl, r->count);
	for (size_t row = 0; row < r->count; row++) {
		assert_int_equal(got.same_top[row], want.same_top[row]);
		agree += got.same_top[row];
		sum += got.kl[row];
	}
	print_message("# %s, %zu rows, %zu x %zu: nll off by %.2e, kl by %.2e of %.4f, %zu agree\n", backend,
		      r->count, r->vocab, r->hidden, nll, kl, sum / (double)r->count, agree);
	assert_true(nll < 1e-5 && kl < 1e-5);
	assert_true(sum > 0 && agree > 0);
	scores_free(&want);
	scores_free(&got);
	case_close(be);
}

/* Tiles of 8 MiB: 1100 rows at once, 1024 and 76, 512 + 512 + 76, 32 + 32 + 6; and a vocabulary that ends with a
 * tile. Then the same with a model whose head is stored in fewer bits. */
static void test_against_dense(void **state)
{
	static const struct { struct head_model model; size_t rows; float distance; int bits; } cases[] = {
		{ { .hidden = 64, .vocab = 1100, .tied = true }, 300, 1, 16 },
		{ { .hidden = 2048, .vocab = 1100 }, 15, 1, 16 },
		{ { .hidden = 4096, .vocab = 1100, .half = true }, 9, 0.01f, 16 },
		{ { .hidden = 4096, .vocab = 1024, .tied = true }, 1, 6, 16 },
		{ { .hidden = 65536, .vocab = 70 }, 16, 3, 16 },
		{ { .hidden = 64, .vocab = 1100, .tied = true }, 100, 0, 4 },
		{ { .hidden = 2048, .vocab = 1100 }, 15, 0.1f, 8 },
		{ { .hidden = 256, .vocab = 300 }, 100, 0.1f, 6 },
	};

	(void)state;
	for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
		struct open_model o;
		struct rows r;

		model_init(&o, &cases[c].model);
		rows_init(&r, &o.ck, cases[c].rows, cases[c].distance);
		head_bits = cases[c].bits;
		for (size_t b = 0; backend_list[b]; b++)
			check_against_dense(&o, &r, backend_list[b]->name);
		head_bits = 16;
		rows_deinit(&r);
		model_deinit(&o);
	}
}

static void test_against_itself(void **state)
{
	struct open_model o;
	struct rows r;

	(void)state;
	model_init(&o, &(struct head_model){ .hidden = 4096, .vocab = 700 });
	rows_init(&r, &o.ck, 20, 0);
	for (size_t b = 0; backend_list[b]; b++) {
		struct backend *be = case_open(backend_list[b]->name, 2);
		struct scores s = scores_new(r.count);
		struct err err = ERR_INIT;

		assert_int_equal(compare(be, &o, &r, &s, &err), 0);
		for (size_t row = 0; row < r.count; row++) {
			assert_true(s.kl[row] >= 0 && s.kl[row] <= 1e-6);
			assert_int_equal(s.same_top[row], !last_of_window(row));
			assert_true(last_of_window(row) ? s.nll[row] == 0 : s.nll[row] > 0);
		}
		scores_free(&s);
		case_close(be);
	}
	rows_deinit(&r);
	model_deinit(&o);
}

/* The loss is head_nll()'s, to the bit; and the same bytes come of any number of threads. */
static void test_same_bytes(void **state)
{
	static const int threads[] = { 1, 2, 3, 7 };
	struct scores first = { 0 };
	struct open_model o;
	struct rows r;

	(void)state;
	model_init(&o, &(struct head_model){ .hidden = 2048, .vocab = 1100 });
	rows_init(&r, &o.ck, 270, 1);
	for (size_t t = 0; t < 4; t++) {
		struct backend *be = case_open(tested_backend(), threads[t]);
		struct scores s = scores_new(r.count);
		double *nll = calloc(r.count, sizeof(double));
		struct err err = ERR_INIT;

		assert_int_equal(compare(be, &o, &r, &s, &err), 0);
		assert_int_equal(head_nll(be, &o.ck, 16, r.x, r.targets, r.count, nll, NULL, &err), 0);
		assert_memory_equal(s.nll, nll, r.count * sizeof(double));
		free(nll);
		case_close(be);
		if (t == 0) {
			first = s;
			continue;
		}
		assert_memory_equal(s.nll, first.nll, r.count * sizeof(double));
		assert_memory_equal(s.kl, first.kl, r.count * sizeof(double));
		assert_memory_equal(s.same_top, first.same_top, r.count * sizeof(bool));
		scores_free(&s);
	}
	scores_free(&first);
	rows_deinit(&r);
	model_deinit(&o);
}

/* --- failures ----------------------------------------------------------------------------------- */

static struct backend *sweep_backend; /* opened outside the sweep, whose reach is head_compare() alone */
static struct open_model sweep_model;
static struct rows sweep_rows;

static int attempt_compare(struct err *err)
{
	struct scores s = scores_new(sweep_rows.count);
	int rc = compare(sweep_backend, &sweep_model, &sweep_rows, &s, err);

	scores_free(&s);
	return rc;
}

static int attempt_digest(struct err *err)
{
	char hex[DIGEST_HEX];

	return head_digest(&sweep_model.ck, hex, err);
}

/* Fails each allocation and each read once: that error each time, and success at last. */
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

static void test_failures(void **state)
{
	struct err err = ERR_INIT;

	(void)state;
	model_init(&sweep_model, &(struct head_model){ .hidden = 4096, .vocab = 600, .tied = true });
	for (size_t b = 0; backend_list[b]; b++) {
		sweep_backend = case_open(backend_list[b]->name, 2);
		rows_init(&sweep_rows, &sweep_model.ck, 2, 1);
		sweep(attempt_compare, 6, 6);
		sweep(attempt_digest, 3, 3);
		head_bits = 8;
		sweep(attempt_compare, 7, 6);
		head_bits = 16;
		sweep_rows.reference[5] = INFINITY;
		assert_int_equal(attempt_compare(&err), -1);
		assert_int_equal(err.code, ERR_NUMERIC);
		sweep_rows.targets[1] = 600;
		assert_int_equal(attempt_compare(&err), -1);
		assert_string_equal(err.text, "target 1 has id 600; the model's ids are 0 to 599");
		rows_deinit(&sweep_rows);
		case_close(sweep_backend);
	}
	model_deinit(&sweep_model);
}

/* --- which models share a head ------------------------------------------------------------------ */

static void digest_of_model(const struct head_model *model, char hex[DIGEST_HEX])
{
	struct err err = ERR_INIT;
	struct open_model o;

	model_init(&o, model);
	assert_int_equal(head_digest(&o.ck, hex, &err), 0);
	model_deinit(&o);
}

static void test_digest(void **state)
{
	static const struct { struct head_model model; bool same; } cases[] = {
		{ { .hidden = 128, .vocab = 90, .half = true }, true },
		{ { .hidden = 128, .vocab = 90, .changed = MODEL_EMBED_NAME }, true },
		{ { .hidden = 128, .vocab = 90, .tied = true }, true }, /* the same values, by their seed */
		{ { .hidden = 128, .vocab = 90, .tied = true, .changed = MODEL_EMBED_NAME }, false },
		{ { .hidden = 128, .vocab = 90, .changed = MODEL_HEAD_NAME }, false },
		{ { .hidden = 128, .vocab = 90, .changed = MODEL_FINAL_NORM_NAME }, false },
		{ { .hidden = 128, .vocab = 90, .eps = "1e-06" }, false },
		{ { .hidden = 128, .vocab = 89 }, false },
	};
	char plain[DIGEST_HEX], other[DIGEST_HEX];

	(void)state;
	digest_of_model(&(struct head_model){ .hidden = 128, .vocab = 90 }, plain);
	for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
		digest_of_model(&cases[c].model, other);
		if ((strcmp(plain, other) == 0) != cases[c].same)
			fail_msg("case %zu: %s and %s", c, plain, other);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_dense), cmocka_unit_test(test_against_itself),
		cmocka_unit_test(test_same_bytes), cmocka_unit_test(test_failures),
		cmocka_unit_test(test_digest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
