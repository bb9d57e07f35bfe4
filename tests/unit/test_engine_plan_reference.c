/* Planning an evaluate job with a reference model: what is refused, the graph, the estimates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/plan_case.h"

static struct plan_case c;
static struct model_config other;

/* fable-tiny against a reference that is like it; change `other` before making the plan. */
static void start(void)
{
	plan_case_init(&c, "{'kind':'evaluate','seq_len':64,'eval_windows':40}");
	other = c.config;
	c.request.model_name = "mine";
	c.request.tokenizer_sha256 = "cc";
	c.request.reference = (struct plan_reference){ .name = "theirs", .config = &other, .tokenizer_sha256 = "cc" };
}

/* The plan is refused with one sentence, which names both models, and this. */
static void expect_refusal(const char *part)
{
	assert_int_equal(plan_case_make(&c), -1);
	assert_int_equal(c.err.code, ERR_REFUSED);
	assert_int_equal(c.problems.count, 1);
	assert_non_null(strstr(c.problems.items[0], "theirs"));
	assert_non_null(strstr(c.problems.items[0], part));
	plan_case_deinit(&c);
}

static void each_difference_is_refused(void **state)
{
	(void)state;
	start();
	other.vocab++;
	expect_refusal("mine has a vocabulary of 1024 tokens, the reference theirs one of 1025");
	start();
	other.hidden *= 2;
	expect_refusal("mine has hidden states of width 192, the reference theirs of 384");
	start();
	c.request.reference.tokenizer_sha256 = "dd";
	expect_refusal("mine and the reference theirs have different tokenizer.json files");
	start();
	c.request.reference.tokenizer_sha256 = NULL;
	expect_refusal("different tokenizer.json files");
	start();
	other.max_position = 63;
	expect_refusal("seq_len 64 exceeds max_position_embeddings 63 of the reference theirs");
	start();
	c.request.tokenizer_sha256 = c.request.reference.tokenizer_sha256 = NULL; /* neither has one: equal */
	assert_int_equal(plan_case_make(&c), 0);
	plan_case_deinit(&c);
}

static void all_differences_are_listed(void **state)
{
	(void)state;
	start();
	other.vocab = 1;
	other.hidden = 1;
	other.max_position = 1;
	c.request.reference.tokenizer_sha256 = "dd";
	assert_int_equal(plan_case_make(&c), -1);
	assert_int_equal(c.problems.count, 4);
	plan_case_deinit(&c);
}

static void the_graph(void **state)
{
	(void)state;
	start();
	assert_int_equal(plan_case_make(&c), 0);
	assert_int_equal(plan_case_count(&c, KIND_TOKENIZE), 1);
	assert_int_equal(plan_case_count(&c, KIND_EVALUATE), 6);
	assert_int_equal(c.plan.task_count, 7);
	for (int chunk = 0; chunk < 3; chunk++) {
		const struct plan_task *reference = plan_case_nth(&c, KIND_EVALUATE, -1, chunk, 0);
		const struct plan_task *own = plan_case_nth(&c, KIND_EVALUATE, -1, chunk, 1);

		assert_non_null(strstr(reference->spec, "\"model\":\"reference\""));
		assert_non_null(strstr(reference->spec, "\"keep_hidden\":true"));
		assert_null(plan_case_input(reference, "reference"));
		assert_non_null(strstr(own->spec, "\"model\":\"original\""));
		assert_null(strstr(own->spec, "keep_hidden"));
		assert_ptr_equal(plan_case_maker(&c, own, "reference", "hidden"), reference);
		plan_case_maker(&c, own, "tokens", "tokens");
	}
	plan_case_deinit(&c);
}

static void a_large_reference_needs_its_memory(void **state)
{
	uint64_t memory, disk;

	(void)state;
	start();
	assert_int_equal(plan_case_make(&c), 0);
	memory = c.plan.memory_bytes;
	disk = c.plan.disk_bytes;
	assert_true(disk >= 40 * 64 * 192 * sizeof(float)); /* hidden states of every window */
	plan_case_deinit(&c);
	start();
	other.intermediate *= 64;
	assert_int_equal(plan_case_make(&c), 0);
	assert_true(c.plan.memory_bytes > memory);
	assert_int_equal(c.plan.disk_bytes, disk);
	plan_case_deinit(&c);
	plan_case_init(&c, "{'kind':'evaluate','seq_len':64,'eval_windows':40}"); /* without: no hidden states */
	assert_int_equal(plan_case_make(&c), 0);
	assert_int_equal(c.plan.disk_bytes, 0);
	plan_case_deinit(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_difference_is_refused),
		cmocka_unit_test(all_differences_are_listed),
		cmocka_unit_test(the_graph),
		cmocka_unit_test(a_large_reference_needs_its_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
