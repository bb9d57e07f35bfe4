/* How long a plan takes: small graphs by hand, then whole ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "server/plan_time.h"
#include "tests/lib/plan_case.h"

enum { DRAWN_MAX = 16 };

/* A graph without specs: work, rank and up to two producers (-1: none) of each task. */
struct drawn { int64_t work, rank, from[2]; };

static double seconds_of(const struct drawn *drawn, size_t count, int64_t workers)
{
	struct plan_task tasks[DRAWN_MAX];
	struct plan_input inputs[DRAWN_MAX][2];
	struct plan plan = { .tasks = tasks, .task_count = count };
	struct plan_fleet fleet = { .crew = { .workers = workers, .threads = workers } };
	double seconds;

	memset(tasks, 0, sizeof(tasks));
	memset(inputs, 0, sizeof(inputs));
	for (int k = 1; k < KIND_COUNT; k++)
		fleet.rate[k] = 100;
	for (size_t i = 0; i < count; i++) {
		tasks[i] = (struct plan_task){ .kind = KIND_CAPTURE, .work = drawn[i].work, .rank = drawn[i].rank,
					       .inputs = inputs[i] };
		for (int j = 0; j < 2; j++)
			if (drawn[i].from[j] >= 0)
				inputs[i][tasks[i].input_count++].from = drawn[i].from[j];
	}
	seconds = plan_seconds(&plan, &fleet);
	return seconds;
}

static void takes(const struct drawn *drawn, size_t count, int64_t workers, double work_seconds, int in_line)
{
	double got = seconds_of(drawn, count, workers), want = work_seconds + in_line * plan_task_seconds;

	if (got < want - 1e-9 || got > want + 1e-9)
		fail_msg("%d workers: %g s, not %g s", (int)workers, got, want);
}

/* --- small graphs ------------------------------------------------------------- */

static void tasks_side_by_side_are_shared_out(void **state)
{
	static const struct drawn four[] = {
		{ 1000, 1, { -1, -1 } }, { 1000, 1, { -1, -1 } }, { 1000, 1, { -1, -1 } }, { 1000, 1, { -1, -1 } },
	};

	(void)state;
	takes(four, 4, 1, 40, 4);
	takes(four, 4, 2, 20, 2);
	takes(four, 4, 3, 20, 2); /* two rounds all the same */
	takes(four, 4, 4, 10, 1);
	takes(four, 4, 99, 10, 1);
	takes(four, 0, 1, 0, 0);
}

static void chains_take_their_time(void **state)
{
	static const struct drawn chain[] = {
		{ 1000, 1, { -1, -1 } }, { 500, 2, { 0, -1 } }, { 2000, 3, { 1, 1 } },
	};
	static const struct drawn serial_middle[] = { /* two, then one that reads both, then two */
		{ 1000, 1, { -1, -1 } }, { 1000, 1, { -1, -1 } }, { 3000, 2, { 0, 1 } }, { 1000, 3, { 2, -1 } },
		{ 1000, 3, { 2, -1 } },
	};

	(void)state;
	takes(chain, 3, 1, 35, 3);
	takes(chain, 3, 8, 35, 3);
	takes(serial_middle, 5, 1, 70, 5);
	takes(serial_middle, 5, 2, 50, 3);
	takes(serial_middle, 5, 8, 50, 3);
}

static void the_best_rank_goes_first(void **state)
{
	/* Task 1 has a follower: begun first, both end after 20; begun last, after 30. */
	static const struct drawn good[] = { { 1000, 2, { -1, -1 } }, { 1000, 1, { -1, -1 } }, { 1000, 2, { -1, -1 } },
					     { 1000, 1, { 1, -1 } } };
	static const struct drawn bad[] = { { 1000, 1, { -1, -1 } }, { 1000, 2, { -1, -1 } }, { 1000, 1, { -1, -1 } },
					    { 1000, 1, { 1, -1 } } };

	(void)state;
	takes(good, 4, 2, 20, 2);
	takes(bad, 4, 2, 30, 3);
}

/* --- rates -------------------------------------------------------------------- */

static void nothing_measured_means_the_default(void **state)
{
	const struct plan_crew crew = { .workers = 2, .threads = 8 };
	struct plan_history none = { 0 };
	struct plan_fleet f;

	(void)state;
	plan_fleet_init(&f, &crew, &none);
	assert_false(f.measured);
	assert_int_equal(f.crew.workers, 2);
	for (int k = 1; k < KIND_COUNT; k++) {
		assert_true(plan_default_rate[k] > 0);
		assert_true(f.rate[k] == 4 * plan_default_rate[k]); /* four threads a worker */
	}
}

static void what_was_measured_counts(void **state)
{
	const struct plan_crew crew = { .workers = 1, .threads = 64 };
	struct plan_history h = { 0 };
	struct plan_fleet f;

	(void)state;
	h.work[KIND_CAPTURE] = 6 * plan_default_rate[KIND_CAPTURE]; /* 6 thread-seconds in 2 */
	h.seconds[KIND_CAPTURE] = 2;
	h.work[KIND_QUANTIZE] = 2 * plan_default_rate[KIND_QUANTIZE]; /* 2 in 2 */
	h.seconds[KIND_QUANTIZE] = 2;
	h.work[KIND_VERIFY] = 5; /* no time: not measured */
	plan_fleet_init(&f, &crew, &h);
	assert_true(f.measured);
	assert_true(f.rate[KIND_CAPTURE] == 3 * plan_default_rate[KIND_CAPTURE]);
	assert_true(f.rate[KIND_QUANTIZE] == plan_default_rate[KIND_QUANTIZE]);
	assert_true(f.rate[KIND_DISTILL] == 2 * plan_default_rate[KIND_DISTILL]); /* 8 in 4 */
	assert_true(f.rate[KIND_VERIFY] == 64 * plan_default_rate[KIND_VERIFY]); /* no product: nothing like it was measured */
	h.work[KIND_EMBED] = 32 * plan_default_rate[KIND_EMBED]; /* half of what is expected of 64 threads */
	h.seconds[KIND_EMBED] = 1;
	plan_fleet_init(&f, &crew, &h);
	assert_true(f.rate[KIND_VERIFY] == 32 * plan_default_rate[KIND_VERIFY]);
	assert_true(f.rate[KIND_DISTILL] == 2 * plan_default_rate[KIND_DISTILL]);
}

/* In products a device stands for its own threads and many more; what else there is to do, its threads do. */
static void a_device_has_a_default_of_its_own(void **state)
{
	static const bool products[KIND_COUNT] = { [KIND_CAPTURE] = true, [KIND_QUANTIZE] = true, [KIND_DISTILL] = true,
						   [KIND_EVALUATE] = true };
	const struct plan_crew one = { .workers = 1, .threads = 16, .devices = 1, .device_threads = 16 };
	const struct plan_crew mixed = { .workers = 4, .threads = 24, .devices = 2, .device_threads = 16 };
	struct plan_history none = { 0 };
	struct plan_fleet f, m;

	(void)state;
	assert_true(plan_device_threads > 100);
	plan_fleet_init(&f, &one, &none);
	plan_fleet_init(&m, &mixed, &none);
	assert_false(f.measured);
	for (int k = 1; k < KIND_COUNT; k++) {
		const double alone = products[k] ? plan_device_threads : 16;
		const double share = products[k] ? (2 * plan_device_threads + 8) / 4 : 6;

		assert_true(plan_is_product(k) == products[k]);
		if (f.rate[k] != alone * plan_default_rate[k] || m.rate[k] != share * plan_default_rate[k])
			fail_msg("%s: %g and %g, not %g and %g", task_kind_name(k), f.rate[k], m.rate[k],
				 alone * plan_default_rate[k], share * plan_default_rate[k]);
	}
}

/* A device that was measured at twice its default is twice as fast at the other products. */
static void a_measured_device_counts(void **state)
{
	const struct plan_crew one = { .workers = 1, .threads = 16, .devices = 1, .device_threads = 16 };
	struct plan_history h = { 0 };
	struct plan_fleet f;

	(void)state;
	h.work[KIND_CAPTURE] = 20 * plan_device_threads * plan_default_rate[KIND_CAPTURE];
	h.seconds[KIND_CAPTURE] = 10;
	plan_fleet_init(&f, &one, &h);
	assert_true(f.measured);
	assert_true(f.rate[KIND_CAPTURE] == 2 * plan_device_threads * plan_default_rate[KIND_CAPTURE]);
	assert_true(f.rate[KIND_QUANTIZE] == 2 * plan_device_threads * plan_default_rate[KIND_QUANTIZE]);
	assert_true(f.rate[KIND_ASSEMBLE] == 16 * plan_default_rate[KIND_ASSEMBLE]);
}

/* --- whole plans -------------------------------------------------------------- */

static void forecast(struct plan_case *c, const char *recipe, int64_t workers, struct plan_forecast *f)
{
	const struct plan_crew crew = { .workers = workers, .threads = 2 * workers };
	struct plan_history none = { 0 };

	plan_case_init(c, recipe);
	assert_int_equal(plan_case_make(c), 0);
	plan_fleet_init(&f->fleet, &crew, &none);
	assert_int_equal(plan_forecast(f, &c->plan, &c->request, true, &c->err), 0);
}

static void each_effort_has_its_time(void **state)
{
	struct plan_forecast one, eight;
	struct plan_case c;
	double distill;

	(void)state;
	forecast(&c, "{}", 1, &one);
	assert_true(one.efforts[EFFORT_FAST] > 0);
	assert_true(one.efforts[EFFORT_FAST] < one.efforts[EFFORT_BALANCED]);
	assert_true(one.efforts[EFFORT_BALANCED] < one.efforts[EFFORT_BEST]);
	assert_true(one.seconds == one.efforts[EFFORT_BALANCED]); /* the default */
	plan_case_deinit(&c);
	forecast(&c, "{}", 8, &eight);
	distill = (double)plan_case_task(&c, KIND_DISTILL, -1, -1)->work / eight.fleet.rate[KIND_DISTILL];
	assert_true(eight.seconds < one.seconds);
	assert_true(eight.seconds > distill); /* on one worker, whatever the others do */
	assert_true(one.seconds - distill > 2 * (eight.seconds - distill));
	plan_case_deinit(&c);
	forecast(&c, "{'effort':'fast'}", 1, &one);
	assert_true(one.seconds == one.efforts[EFFORT_FAST]);
	plan_case_deinit(&c);
}

static void the_sequential_order_is_a_chain(void **state)
{
	struct plan_forecast original, quantized;
	struct plan_case c;

	(void)state;
	forecast(&c, "{'effort':'fast','eval':'none'}", 16, &original);
	plan_case_deinit(&c);
	forecast(&c, "{'effort':'fast','eval':'none','propagate':'quantized'}", 16, &quantized);
	plan_case_deinit(&c);
	assert_true(quantized.seconds > 2 * original.seconds);
}

static void what_cannot_be_planned_has_no_time(void **state)
{
	struct plan_forecast f;
	struct plan_case c;
	char *text;
	struct json *plan;

	(void)state;
	forecast(&c, "{'kind':'evaluate'}", 1, &f);
	assert_true(f.seconds > 0);
	for (int e = 0; e < EFFORTS; e++)
		assert_true(f.efforts[e] < 0);
	plan = plan_to_json(&c.plan, &c.request, &f);
	text = json_print(json_get(json_get(plan, "estimate"), "efforts"), false);
	assert_string_equal(text, "{}");
	mem_free(text);
	json_free(plan);
	plan_case_deinit(&c);
}

static void the_dry_run_tells_all(void **state)
{
	struct plan_forecast f;
	struct plan_case c;
	struct json *plan;
	const struct json *estimate;

	(void)state;
	forecast(&c, "{}", 2, &f);
	plan = plan_to_json(&c.plan, &c.request, &f);
	estimate = json_get(plan, "estimate");
	assert_true(json_get_number(plan, "work", 0) > 0);
	assert_int_equal(json_get_int(estimate, "workers", 0), 2);
	assert_int_equal(json_get_int(estimate, "threads", 0), 4);
	assert_int_equal(json_get_int(estimate, "devices", -1), 0);
	assert_false(json_get_bool(estimate, "measured", true));
	assert_true(json_get_number(estimate, "seconds", 0) == f.seconds);
	assert_true(json_get_number(json_get(estimate, "efforts"), "best", 0) == f.efforts[EFFORT_BEST]);
	json_free(plan);
	plan_case_deinit(&c);
}

static void running_out_of_memory_is_an_error(void **state)
{
	struct plan_forecast f;
	struct plan_case c;
	uint64_t n;

	(void)state;
	forecast(&c, "{'samples':20,'seq_len':64}", 2, &f);
	for (n = 1; n < 100000; n += n < 100 ? 1 : 37) {
		int rc;

		c.err = (struct err)ERR_INIT;
		mem_fail_after(n);
		rc = plan_forecast(&f, &c.plan, &c.request, true, &c.err);
		mem_fail_after(0);
		if (rc == 0)
			break;
		assert_int_equal(c.err.code, ERR_NOMEM);
	}
	assert_in_range(n, 101, 99999);
	plan_case_deinit(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tasks_side_by_side_are_shared_out),
		cmocka_unit_test(chains_take_their_time),
		cmocka_unit_test(the_best_rank_goes_first),
		cmocka_unit_test(nothing_measured_means_the_default),
		cmocka_unit_test(what_was_measured_counts),
		cmocka_unit_test(a_device_has_a_default_of_its_own),
		cmocka_unit_test(a_measured_device_counts),
		cmocka_unit_test(each_effort_has_its_time),
		cmocka_unit_test(the_sequential_order_is_a_chain),
		cmocka_unit_test(what_cannot_be_planned_has_no_time),
		cmocka_unit_test(the_dry_run_tells_all),
		cmocka_unit_test(running_out_of_memory_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
