/* Initialization and rounding against the NeUQI authors' implementation, group by group.
 *
 * tests/data/golden/neuqi: H per input site of fable-tiny, and for 12 modules (layers 0 and 2) at 2, 3
 * and 4 bits, per channel and in groups of 64: scale, zero-point and objective of each group, the sums, and
 * the loss after LDLQ with those scales. The tested backend runs in full, then refines; ref, the slow one, fits
 * every fourth row.
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

#include "common/alloc.h"
#include "common/checkpoint.h"
#include "common/file.h"
#include "common/json.h"
#include "tests/lib/quant_case.h"
#include "tests/lib/tested_backend.h"
#include "worker/quant/quantize.h"

enum { REF_STRIDE = 4, ROUNDS = 2 };
static const double objective_bar = 1.0005, loss_bar = 1.005, refined_bar = 0.95;

/* A safetensors file of float32 tensors. */
struct tensors { char path[1024]; struct st_header header; int fd; };

static const char *const modules[] = {
	"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
	"mlp.down_proj",
};
/* The module whose input H is stored under that name. */
static const char *const sites[] = {
	"self_attn.q_proj", "self_attn.q_proj", "self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj",
	"mlp.down_proj",
};

struct golden {
	struct checkpoint ck;
	struct source *source;
	struct tensors hessians, reference;
	struct json *sums;
};

/* One module: its weights and input statistics. */
struct module {
	char name[64], site[64];
	size_t rows, cols;
	float *w;
	double *h;
	struct quant_site stats;
};

static void root_path(char out[1024], const char *rest)
{
	const char *root = getenv("QUARRY_ROOT");

	snprintf(out, 1024, "%s/%s", root ? root : ".", rest);
}

static void tensors_open(struct tensors *t, const char *path)
{
	struct err err = ERR_INIT;

	root_path(t->path, path);
	t->fd = open(t->path, O_RDONLY | O_CLOEXEC);
	if (t->fd < 0 || st_header_read_path(&t->header, t->path, &err) != 0)
		fail_msg("%s: %s", t->path, err.text);
}

static void tensors_close(struct tensors *t)
{
	st_header_deinit(&t->header);
	close(t->fd);
}

static float *tensor(const struct tensors *t, const char *name, size_t *count)
{
	const struct st_tensor *found = st_find(&t->header, name);
	struct err err = ERR_INIT;
	size_t bytes;
	float *out;

	if (!found || found->dtype != ST_F32)
		fail_msg("%s lacks %s", t->path, name);
	bytes = (size_t)(found->end - found->begin);
	*count = bytes / sizeof(*out);
	out = malloc(bytes);
	assert_non_null(out);
	if (file_pread(t->fd, out, bytes, t->header.data_start + found->begin, t->path, &err) != 0)
		fail_msg("%s", err.text);
	return out;
}

static void golden_open(struct golden *g)
{
	struct err err = ERR_INIT;
	char path[1024];
	size_t len;
	char *text;

	root_path(path, "examples/fable-tiny");
	g->source = source_dir_open(path, &err);
	if (!g->source || checkpoint_open(&g->ck, g->source, NULL, &err) != 0)
		fail_msg("%s", err.text);
	tensors_open(&g->hessians, "tests/data/golden/neuqi/hessians.safetensors");
	tensors_open(&g->reference, "tests/data/golden/neuqi/neuqi_reference.safetensors");
	root_path(path, "tests/data/golden/neuqi/neuqi_reference.json");
	text = file_read_all(path, 1 << 20, &len, &err);
	g->sums = text ? json_parse(text, len, &err) : NULL;
	if (!g->sums)
		fail_msg("%s", err.text);
	mem_free(text);
	assert_int_equal(json_size(g->sums), 72);
}

static void golden_close(struct golden *g)
{
	json_free(g->sums);
	tensors_close(&g->hessians);
	tensors_close(&g->reference);
	checkpoint_close(&g->ck);
	g->source->close(g->source);
}

static void module_open(struct module *m, struct golden *g, struct backend *be, int layer, size_t which)
{
	const struct st_tensor *t;
	struct err err = ERR_INIT;
	char name[128];
	size_t count;
	float *h;

	snprintf(m->name, sizeof(m->name), "layers.%d.%s", layer, modules[which]);
	snprintf(m->site, sizeof(m->site), "layers.%d.%s", layer, sites[which]);
	snprintf(name, sizeof(name), "model.%s.weight", m->name);
	t = checkpoint_find(&g->ck, name, NULL);
	assert_non_null(t);
	m->rows = (size_t)t->shape[0];
	m->cols = (size_t)t->shape[1];
	m->w = malloc(m->rows * m->cols * sizeof(*m->w));
	m->h = malloc(m->cols * m->cols * sizeof(*m->h));
	assert_true(m->w && m->h);
	if (checkpoint_read_f32(&g->ck, name, 0, m->rows, m->w, &err) != 0)
		fail_msg("%s", err.text);
	h = tensor(&g->hessians, m->site, &count);
	assert_int_equal(count, m->cols * m->cols);
	for (size_t i = 0; i < count; i++)
		m->h[i] = h[i];
	free(h);
	if (site_of(&m->stats, be, m->h, m->cols, 0.01, true, &err) != 0)
		fail_msg("%s: %s", m->name, err.text);
}

static void module_close(struct module *m)
{
	quant_site_deinit(&m->stats);
	free(m->w);
	free(m->h);
}

/* One entry of the reference. */
struct entry {
	char key[96];
	struct grid grid;
	size_t groups;
	float *scales, *zeros, *objective; /* (N,G) */
	double sum, loss;
};

static float *entry_tensor(const struct golden *g, const struct entry *e, const char *what, size_t want)
{
	char name[128];
	size_t count;
	float *out;

	snprintf(name, sizeof(name), "%s.%s", e->key, what);
	out = tensor(&g->reference, name, &count);
	assert_int_equal(count, want);
	return out;
}

static void entry_open(struct entry *e, const struct golden *g, const struct module *m, int bits,
		       int group)
{
	const struct json *sums;

	snprintf(e->key, sizeof(e->key), "%s.b%d.g%d", m->name, bits, group);
	e->grid = (struct grid){ .bits = bits, .group = group < 0 ? m->cols : (size_t)group };
	e->groups = m->cols / e->grid.group;
	e->scales = entry_tensor(g, e, "scale", m->rows * e->groups);
	e->zeros = entry_tensor(g, e, "zero", m->rows * e->groups);
	e->objective = entry_tensor(g, e, "objective", m->rows * e->groups);
	sums = json_get(g->sums, e->key);
	e->sum = json_get_number(sums, "init_objective", NAN);
	e->loss = json_get_number(sums, "ldlq_loss", NAN);
	assert_true(e->sum > 0 && e->loss > 0);
}

static void entry_close(struct entry *e)
{
	free(e->scales);
	free(e->zeros);
	free(e->objective);
}

struct score { double ours, theirs, worst; };

static void score(struct score *s, const char *what, const char *key, double ours, double theirs,
		  double bar)
{
	if (!(ours <= bar * theirs))
		fail_msg("%s: %s is %.9g, the reference has %.9g: ratio %.5f", key, what, ours, theirs,
			 ours / theirs);
	s->ours += ours;
	s->theirs += theirs;
	s->worst = fmax(s->worst, ours / theirs);
}

struct scores { struct score objective, rounding, module, refined; };

/* Rows 0, stride, 2 stride, ... fitted, by the objective that the returned float32 values really have. */
static void check_objective(struct scores *s, struct backend *be, const struct module *m,
			    const struct entry *e, size_t stride)
{
	const size_t n = e->grid.group;
	float *scales = malloc(e->groups * sizeof(*scales)), *zeros = malloc(e->groups * sizeof(*zeros));
	double ours = 0, theirs = 0;
	struct err err = ERR_INIT;

	for (size_t r = 0; r < m->rows; r += stride) {
		const float *row = m->w + r * m->cols;

		if (be->ops->fit_groups(be, FIT_NEUQI, &e->grid, row, 1, m->cols, m->stats.diag, scales, zeros,
					NULL, &err) != 0)
			fail_msg("%s: %s", e->key, err.text);
		for (size_t g = 0; g < e->groups; g++) {
			ours += objective_of(row + g * n, m->stats.diag + g * n, n, e->grid.bits, scales[g],
					     zeros[g]);
			theirs += e->objective[r * e->groups + g];
		}
	}
	if (stride == 1)
		assert_true(fabs(theirs - e->sum) < 1e-5 * e->sum);
	score(&s->objective, "the objective", e->key, ours, theirs, objective_bar);
	free(scales);
	free(zeros);
}

/* LDLQ with the reference's own scales and zero-points. */
static void check_rounding(struct scores *s, struct backend *be, const struct module *m,
			   const struct entry *e)
{
	uint8_t *codes = malloc(m->rows * m->cols);
	struct err err = ERR_INIT;
	double loss;

	if (be->ops->round_ldlq(be, &e->grid, m->w, m->rows, m->cols, m->stats.perm, m->stats.u, NULL,
				e->scales, e->zeros, codes, NULL, &err) != 0 ||
	    be->ops->proxy_loss(be, &e->grid, m->w, m->rows, m->cols, m->h, m->stats.damp, codes, e->scales,
				e->zeros, &loss, NULL, &err) != 0)
		fail_msg("%s: %s", e->key, err.text);
	score(&s->rounding, "the loss after LDLQ", e->key, loss, e->loss, loss_bar);
	free(codes);
}

/* What a job computes: our scales, our rounding, and what refinement makes of it. */
static void check_module(struct scores *s, struct backend *be, const struct module *m,
			 const struct entry *e)
{
	const struct quant_options options = { .grid = e->grid, .method = FIT_NEUQI, .ldlq = true,
					       .refine = ROUNDS };
	const struct quant_weights w = { m->w, m->w, m->rows };
	struct quant_result result;
	struct err err = ERR_INIT;

	if (quant_module(&result, be, &m->stats, &options, &w, &err) != 0)
		fail_msg("%s: %s", e->key, err.text);
	score(&s->module, "the loss of the quantized module", e->key, result.loss_rounded, e->loss, loss_bar);
	score(&s->refined, "the loss after refinement", e->key, result.loss, result.loss_rounded, refined_bar);
	assert_true(result.init_objective <= objective_bar * e->sum);
	quant_result_deinit(&result);
}

static void check_entries(struct scores *s, struct golden *g, struct backend *be, const struct module *m,
			  bool whole)
{
	for (int bits = 2; bits <= 4; bits++) {
		for (int group = -1; group <= 64; group += 65) {
			struct entry e;

			entry_open(&e, g, m, bits, group);
			check_objective(s, be, m, &e, whole ? 1 : REF_STRIDE);
			check_rounding(s, be, m, &e);
			if (whole)
				check_module(s, be, m, &e);
			entry_close(&e);
		}
	}
}

static void print_score(const char *backend, const char *what, const char *rival, const struct score *s)
{
	if (s->theirs > 0)
		printf("# %s: %s: total %.5f of %s, worst entry %.5f\n", backend, what, s->ours / s->theirs, rival,
		       s->worst);
}

static void check_backend(const char *name, bool whole)
{
	struct backend *be = open_backend(name, 2);
	struct scores s = { 0 };
	struct golden g;

	golden_open(&g);
	for (int layer = 0; layer <= 2; layer += 2) {
		for (size_t i = 0; i < sizeof(modules) / sizeof(*modules); i++) {
			struct module m;

			module_open(&m, &g, be, layer, i);
			check_entries(&s, &g, be, &m, whole);
			module_close(&m);
		}
	}
	print_score(name, "initialization objective", "the reference", &s.objective);
	print_score(name, "LDLQ loss with the reference's scales", "the reference", &s.rounding);
	print_score(name, "LDLQ loss of quantized modules", "the reference", &s.module);
	print_score(name, "loss after two rounds of refinement", "the loss before", &s.refined);
	golden_close(&g);
	be->ops->close(be);
}

static void test_tested(void **state)
{
	(void)state;
	check_backend(tested_backend(), true);
}

static void test_ref(void **state)
{
	(void)state;
	check_backend("ref", false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tested),
		cmocka_unit_test(test_ref),
	};

	return cmocka_run_group_tests_name("NeUQI golden values", tests, NULL, NULL);
}
