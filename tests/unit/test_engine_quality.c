/* What a job says of quality: KL divergence and top-1 agreement per text, the losses of distillation, and a reference
 * model beside the job's own. The numbers are those of the played worker (tests/lib/engine_case.c). */
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "tests/lib/engine_case.h"

static struct engine_case c;
static char job[64], worker[64];

static void start(const char *dir)
{
	c = (struct engine_case){ 0 };
	snprintf(c.data_dir, sizeof(c.data_dir), "%s", dir);
	play_open(&c);
	play_worker(&c, worker, "one");
}

static struct json *job_now(void)
{
	return play_call(&c, VERB_JOB_GET, job, 200, NULL);
}

static const struct json *first_text(const struct json *described)
{
	return json_at(json_get(described, "perplexity"), 0);
}

static void near(const struct json *object, const char *key, double want)
{
	double got = json_get_number(object, key, NAN);

	if (!(fabs(got - want) <= 1e-12 * fabs(want)))
		fail_msg("%s is %.17g, expected %.17g", key, got, want);
}

static void is_null(const struct json *object, const char *key)
{
	if (json_type(json_get(object, key)) != JSON_NULL)
		fail_msg("%s is not null", key);
}

/* Leases until one of this kind, and of this model when one is named, is in hand; does the others. */
static bool lease_kind(struct play_lease *l, const char *kind, const char *model)
{
	while (play_lease(&c, worker, l)) {
		if (strcmp(l->kind, kind) == 0 &&
		    (!model || strcmp(json_get_string(json_get(l->json, "spec"), "model", ""), model) == 0))
			return true;
		play_complete(&c, l, 200);
		play_lease_drop(l);
	}
	return false;
}

static int count_input(const struct play_lease *l, const char *name)
{
	int count = 0;

	for (const struct json *i = json_first(json_get(l->json, "inputs")); i; i = json_next(i))
		count += strcmp(json_get_string(i, "name", ""), name) == 0;
	return count;
}

/* --- the comparison ------------------------------------------------------------------ */

static void it_is_known_when_every_chunk_is(void **state)
{
	struct play_lease l;
	struct json *now;
	int quantized = 0;

	(void)state;
	start("chunks");
	play_submit(&c, job, "{'bits':2,'group_size':64,'samples':8,'seq_len':64,'eval_windows':40,'distill':'none'}");
	while (lease_kind(&l, "evaluate", "quantized")) {
		now = job_now();
		is_null(first_text(now), "kl");
		is_null(first_text(now), "top1");
		json_free(now);
		assert_int_equal(count_input(&l, "reference"), 1);
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
		quantized++;
	}
	assert_int_equal(quantized, 3);
	now = job_now();
	near(first_text(now), "kl", 6.3 / 63);
	near(first_text(now), "top1", 56.0 / 63);
	near(first_text(now), "windows", 3);
	assert_null(json_get(first_text(now), "reference"));
	is_null(now, "reference");
	is_null(now, "distillation");
	is_null(json_at(json_get(now, "layers"), 0), "distill");
	json_free(now);
	play_close(&c);
}

static void without_it_the_rest_is_there(void **state)
{
	struct play_lease l;
	struct json *now, *report;

	(void)state;
	start("without"); /* a worker that tells only of likelihood */
	play_submit(&c, job, play_small_recipe);
	assert_true(lease_kind(&l, "evaluate", "quantized"));
	json_free(play_call(&c, VERB_COMPLETE, l.task, 200,
			    "{'worker':'%s','epoch':1,'outputs':[],'result':{'nll':201,'predictions':63,'windows':1}}", worker));
	play_lease_drop(&l);
	play_drain(&c, worker);
	now = job_now();
	near(first_text(now), "quantized", exp(201.0 / 63));
	is_null(first_text(now), "kl");
	is_null(first_text(now), "top1");
	json_free(now);
	report = play_call(&c, VERB_JOB_REPORT, job, 200, NULL);
	is_null(first_text(report), "kl");
	json_free(report);
	play_close(&c);
}

static void what_cannot_be_is_refused(void **state)
{
	static const struct { const char *result; enum err_code code; } cases[] = {
		{ "'nll':1,'predictions':10,'windows':1,'kl':-1,'top1':5", ERR_NUMERIC },
		{ "'nll':1,'predictions':10,'windows':1,'kl':'x','top1':5", ERR_NUMERIC },
		{ "'nll':1,'predictions':10,'windows':1,'top1':5", ERR_NUMERIC },
		{ "'nll':1,'predictions':10,'windows':1,'kl':1", ERR_INVALID },
		{ "'nll':1,'predictions':10,'windows':1,'kl':1,'top1':11", ERR_INVALID },
		{ "'nll':1,'predictions':10,'windows':1,'kl':1,'top1':-1", ERR_INVALID },
		{ "'predictions':10,'windows':1,'kl':1,'top1':1", ERR_NUMERIC },
	};
	struct play_lease l;

	(void)state;
	start("impossible");
	play_submit(&c, job, play_small_recipe);
	assert_true(lease_kind(&l, "evaluate", "quantized"));
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		play_refused(&c, VERB_COMPLETE, l.task, cases[i].code, "{'worker':'%s','epoch':1,'outputs':[],'result':{%s}}",
			     worker, cases[i].result);
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
	play_close(&c);
}

/* --- distillation --------------------------------------------------------------------- */

static void its_losses_are_reported(void **state)
{
	struct json *now, *curves, *report;
	const struct json *layer, *end;
	char *card;
	size_t len;

	(void)state;
	start("losses");
	play_submit(&c, job, play_distilled_recipe);
	play_drain(&c, worker);
	now = job_now();
	layer = json_get(json_at(json_get(now, "layers"), 3), "distill");
	near(layer, "before", 0.25);
	near(layer, "after", 0.125);
	assert_true(json_get_bool(layer, "kept", false));
	assert_null(json_get(layer, "curve")); /* what is asked for again and again stays small */
	end = json_get(now, "distillation");
	near(json_get(end, "before"), "kl", 0.5);
	near(json_get(end, "after"), "hidden", 0.125);
	assert_null(json_get(end, "curve"));
	json_free(now);

	curves = play_call(&c, VERB_JOB_CURVES, job, 200, NULL);
	assert_int_equal(json_size(json_get(curves, "layers")), 4);
	layer = json_at(json_get(curves, "layers"), 3);
	assert_int_equal(json_get_int(layer, "layer", -1), 3);
	assert_int_equal(json_size(json_get(layer, "curve")), 2);
	assert_true(json_number(json_at(json_at(json_get(curves, "distillation"), 1), 2), 0) == 0.2);
	json_free(curves);

	report = play_call(&c, VERB_JOB_REPORT, job, 200, NULL);
	layer = json_get(json_at(json_get(report, "layers"), 0), "curve");
	assert_int_equal(json_size(layer), 2);
	assert_int_equal(json_size(json_get(json_get(report, "distillation"), "curve")), 2);
	assert_null(json_get(json_get(report, "distillation"), "resumed_at")); /* differs from run to run */
	assert_int_equal(json_get_int(json_get(report, "run"), "resumed_at", -1), 0);
	near(first_text(report), "kl", 0.1);
	near(first_text(report), "nll_original", 200);
	near(json_get(report, "summary"), "relative_loss_rounded",
	     2 * json_get_number(json_get(report, "summary"), "relative_loss", NAN));
	is_null(json_get(report, "summary"), "relative_loss_distilled");
	near(json_get(report, "summary"), "storage_cost", 0.25); /* 2.5 instead of 2 */
	json_free(report);

	card = play_file(&c, job, "dense/README.md", &len);
	assert_non_null(strstr(card, "| KL divergence | same top token |"));
	assert_non_null(strstr(card, " | 0.10000 | 0.8889 | 1 |"));
	assert_non_null(strstr(card, "0.50000 before end-to-end distillation, 0.37500 after"));
	assert_non_null(strstr(card, "after rounding, "));
	assert_non_null(strstr(card, "nearest codes by +25.000 %"));
	assert_non_null(strstr(card, "| distill | full |"));
	mem_free(card);
	play_close(&c);
}

static void curves_grow_with_the_job(void **state)
{
	struct play_lease l;
	struct json *curves;

	(void)state;
	start("curves");
	play_submit(&c, job, play_distilled_recipe);
	for (size_t done = 0; lease_kind(&l, "quantize", NULL); done++) {
		curves = play_call(&c, VERB_JOB_CURVES, job, 200, NULL);
		assert_int_equal(json_size(json_get(curves, "layers")), done);
		is_null(curves, "distillation");
		json_free(curves);
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	play_refused(&c, VERB_JOB_CURVES, "j_none", ERR_NOT_FOUND, NULL);
	play_close(&c);
}

/* The result of the task in hand with `distill` (or the whole, for a distill task) replaced. */
static void refuse_work(const struct play_lease *l, const char *instead)
{
	static char work[1 << 16];
	char *result;

	play_make_outputs(&c, l, work, sizeof(work));
	result = strstr(work, "\"result\":");
	assert_non_null(result);
	*result = '\0';
	play_refused(&c, VERB_COMPLETE, l->task, ERR_INVALID, "{'worker':'%s','epoch':1,%s'result':{%s}}", worker, work,
		     instead);
}

static void odd_losses_are_refused(void **state)
{
	static const char *const blocks[] = {
		"'distill':{}", "'distill':7", "'distill':{'before':1,'kept':true,'steps':1,'curve':[]}",
		"'distill':{'before':1,'after':1,'steps':1,'curve':[]}", "'distill':{'before':1,'after':1,'kept':true,'curve':[]}",
		"'distill':{'before':1,'after':1,'kept':true,'steps':1}",
		"'distill':{'before':1,'after':1,'kept':true,'steps':1,'curve':[1]}",
		"'distill':{'before':1,'after':1,'kept':true,'steps':1,'curve':[[1]]}",
		"'distill':{'before':1,'after':1,'kept':true,'steps':1,'curve':[[1,'x']]}",
	};
	static const char *const ends[] = {
		"", "'before':{'kl':1,'hidden':1},'after':{'kl':1},'kept':true,'steps':1,'curve':[]",
		"'before':{'kl':1,'hidden':1},'after':{'kl':1,'hidden':1},'steps':1,'curve':[]",
		"'before':{'kl':1,'hidden':1},'after':{'kl':1,'hidden':1},'kept':true,'steps':1,'curve':[[1,2]]",
	};
	struct play_lease l;

	(void)state;
	start("odd");
	play_submit(&c, job, play_distilled_recipe);
	assert_true(lease_kind(&l, "quantize", NULL));
	for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
		refuse_work(&l, blocks[i]);
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
	assert_true(lease_kind(&l, "distill", NULL));
	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
		refuse_work(&l, ends[i]);
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
	play_close(&c);
}

/* --- a reference model ------------------------------------------------------------------ */

/* Two models of one tokenizer and width; the second is what play_model() registers from now on. */
static void two_models(char reference[64], char model[64])
{
	play_make_model(&c, "of-three", 3);
	snprintf(reference, 64, "%s", play_model(&c));
	play_make_model(&c, "of-two", 2);
	snprintf(model, 64, "%s", play_model(&c));
}

static void each_task_gets_its_model(void **state)
{
	char reference[64], model[64], recipe[256];
	struct play_lease l;
	struct json *now, *report;
	int own = 0, other = 0;

	(void)state;
	start("reference");
	two_models(reference, model);
	snprintf(recipe, sizeof(recipe), "{'kind':'evaluate','reference':'%s','seq_len':64,'eval_windows':20}", reference);
	play_submit(&c, job, recipe);
	play_refused(&c, VERB_MODEL_DELETE, reference, ERR_CONFLICT, NULL);
	while (lease_kind(&l, "evaluate", NULL)) {
		bool is_reference = strcmp(json_get_string(json_get(l.json, "spec"), "model", ""), "reference") == 0;

		assert_string_equal(json_get_string(json_get(l.json, "model"), "id", ""), is_reference ? reference : model);
		assert_int_equal(json_get_bool(json_get(l.json, "spec"), "keep_hidden", false), is_reference);
		assert_int_equal(count_input(&l, "reference"), !is_reference);
		*(is_reference ? &other : &own) += 1;
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	assert_int_equal(own, 2);
	assert_int_equal(other, 2);
	assert_string_equal(play_job_state(&c, job), "DONE");
	now = job_now();
	assert_string_equal(json_get_string(json_get(now, "reference"), "name", ""), "of-three");
	near(first_text(now), "kl", 0.1);
	near(first_text(now), "top1", 56.0 / 63);
	near(first_text(now), "windows", 2);
	assert_non_null(json_get(first_text(now), "reference"));
	is_null(first_text(now), "quantized");
	json_free(now);
	report = play_call(&c, VERB_JOB_REPORT, job, 200, NULL);
	assert_string_equal(json_get_string(json_get(report, "recipe"), "reference", ""), "of-three");
	assert_int_equal(json_get_int(json_get(json_get(report, "reference"), "config"), "layers", 0), 3);
	assert_true(json_size(json_get(json_get(report, "reference"), "files")) >= 3);
	json_free(report);
	json_free(play_call(&c, VERB_MODEL_DELETE, reference, 204, NULL));
	now = job_now();
	is_null(now, "reference");
	json_free(now);
	play_close(&c);
}

static void hidden_states_of_one_chunk_at_a_time(void **state)
{
	char reference[64], model[64], recipe[256], waiting[128] = "";
	struct play_lease l;

	(void)state;
	start("one-at-a-time");
	two_models(reference, model);
	snprintf(recipe, sizeof(recipe), "{'kind':'evaluate','reference':'%s','seq_len':64,'eval_windows':40}", reference);
	play_submit(&c, job, recipe);
	while (lease_kind(&l, "evaluate", NULL)) {
		int64_t chunk = json_get_int(json_get(l.json, "spec"), "chunk", -1);
		char now[128];

		snprintf(now, sizeof(now), "%" PRId64, chunk);
		if (count_input(&l, "reference"))
			assert_string_equal(now, waiting); /* whose hidden states were made last */
		snprintf(waiting, sizeof(waiting), "%s", now);
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	assert_string_equal(play_job_state(&c, job), "DONE");
	play_close(&c);
}

static void models_that_cannot_be_compared_are_refused(void **state)
{
	char tiny[64], model[64];
	const char *why;

	(void)state;
	start("incomparable");
	snprintf(tiny, sizeof(tiny), "%s", play_model(&c)); /* examples/fable-tiny */
	play_make_model(&c, "of-two", 2);
	snprintf(model, sizeof(model), "%s", play_model(&c));
	why = play_refused(&c, VERB_JOB_SUBMIT, "", ERR_REFUSED,
			   "{'model':'%s','recipe':{'kind':'evaluate','reference':'%s','seq_len':64}}", model, tiny);
	assert_non_null(strstr(why, "of-two has a vocabulary of 16 tokens"));
	assert_non_null(strstr(why, "the reference fable-tiny one of"));
	why = play_refused(&c, VERB_JOB_SUBMIT, "", ERR_REFUSED,
			   "{'model':'%s','recipe':{'kind':'evaluate','reference':'m_none'}}", model);
	assert_non_null(strstr(why, "m_none"));
	play_refused(&c, VERB_JOB_SUBMIT, "", ERR_REFUSED, "{'model':'%s','recipe':{'reference':'%s'}}", model, tiny);
	play_close(&c);
}

/* --- memory ----------------------------------------------------------------------------- */

/* The request with each allocation failing in turn: out of memory, and nothing else, until it works. */
static void torture(enum verb verb, const char *id, const char *body_text, int status)
{
	struct engine_request r = { .verb = verb, .role = ROLE_ADMIN };
	struct engine_reply reply;
	struct err err = ERR_INIT;
	bool done = false;
	uint64_t n;

	snprintf(r.subject, sizeof(r.subject), "tester");
	snprintf(r.id, sizeof(r.id), "%s", id);
	r.body = body_text ? json_parse(body_text, strlen(body_text), &err) : NULL;
	for (n = 1; !done; n++) {
		mem_fail_after(n);
		engine_call(c.engine, &r, &reply);
		mem_fail_after(0);
		done = reply.err.code == ERR_NONE;
		if (!done && reply.err.code != ERR_NOMEM)
			fail_msg("verb %d, allocation %d: %s", verb, (int)n, reply.err.text);
		if (done)
			assert_int_equal(reply.status, status);
		engine_reply_deinit(&reply);
	}
	engine_request_deinit(&r);
	assert_true(n > 2);
}

static void every_allocation_may_fail(void **state)
{
	char reference[64], model[64], body[512];
	struct play_lease l;

	(void)state;
	start("memory");
	play_submit(&c, job, play_distilled_recipe);
	play_drain(&c, worker);
	torture(VERB_JOB_GET, job, NULL, 200);
	torture(VERB_JOB_CURVES, job, NULL, 200);
	two_models(reference, model);
	snprintf(body, sizeof(body), "{\"model\":\"%s\",\"recipe\":{\"kind\":\"evaluate\",\"reference\":\"%s\","
		 "\"seq_len\":64,\"eval_windows\":2}}", model, reference);
	torture(VERB_JOB_SUBMIT, "", body, 201);
	assert_true(play_lease(&c, worker, &l)); /* tokenize */
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
	snprintf(body, sizeof(body), "{\"worker\":\"%s\"}", worker);
	torture(VERB_LEASE, "", body, 200); /* the reference */
	play_close(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_is_known_when_every_chunk_is),
		cmocka_unit_test(without_it_the_rest_is_there),
		cmocka_unit_test(what_cannot_be_is_refused),
		cmocka_unit_test(its_losses_are_reported),
		cmocka_unit_test(curves_grow_with_the_job),
		cmocka_unit_test(odd_losses_are_refused),
		cmocka_unit_test(each_task_gets_its_model),
		cmocka_unit_test(hidden_states_of_one_chunk_at_a_time),
		cmocka_unit_test(models_that_cannot_be_compared_are_refused),
		cmocka_unit_test(every_allocation_may_fail),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
