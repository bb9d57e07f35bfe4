/* The block kept from one task for the next: only ever the same layer of the same model, and one at most. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "worker/layer_keep.h"

static struct block loaded(float value)
{
	struct block b = { .data = mem_alloc(1, sizeof(float)), .floats = 1 };

	assert_non_null(b.data);
	b.data[0] = value;
	return b;
}

static void put(struct layer_keep *k, size_t layer, float value)
{
	struct block b = loaded(value);
	struct layer_room r = { 0 };

	assert_true(layer_keep_put(k, layer, &b, &r));
	assert_null(b.data); /* moved */
}

/* The first value of the block that is kept for `layer`, 0 when there is none. *memory: what was moved out either way. */
static float taken_from(struct layer_keep *k, size_t layer, const float **memory)
{
	struct block b = { 0 };
	struct layer_room r = { 0 };
	float value = 0;

	if (layer_keep_take(k, layer, &b, &r))
		value = b.data[0];
	*memory = b.data;
	block_free(&b);
	return value;
}

static float taken(struct layer_keep *k, size_t layer)
{
	const float *memory;

	return taken_from(k, layer, &memory);
}

static void test_the_same_layer_comes_back_once(void **state)
{
	struct layer_keep k = { 0 };

	(void)state;
	layer_keep_model(&k, "m_1");
	assert_true(taken(&k, 3) == 0);
	put(&k, 3, 7);
	layer_keep_model(&k, "m_1");
	assert_true(taken(&k, 3) == 7);
	assert_true(taken(&k, 3) == 0);
	layer_keep_drop(&k);
}

static void test_another_layer_or_model_does_not(void **state)
{
	struct layer_keep k = { 0 };
	const float *memory, *kept;

	(void)state;
	layer_keep_model(&k, "m_1");
	put(&k, 3, 7);
	kept = k.block.data;
	assert_true(taken_from(&k, 4, &memory) == 0);
	assert_ptr_equal(memory, kept); /* for layer 4 to be loaded into */
	assert_null(k.block.data);
	assert_false(k.holds);
	assert_true(taken_from(&k, 4, &memory) == 0);
	assert_null(memory);
	put(&k, 3, 8);
	put(&k, 5, 9);             /* takes the place of the one before */
	assert_true(taken(&k, 5) == 9);
	put(&k, 3, 7);
	layer_keep_model(&k, "m_2");
	assert_null(k.block.data);
	assert_true(taken(&k, 3) == 0);
	layer_keep_drop(&k);
}

static void test_nothing_is_kept_for_models_without_a_name(void **state)
{
	struct layer_keep k = { 0 };
	struct layer_room r = { 0 };
	struct block b = loaded(7);
	char longest[sizeof(k.model) + 1];

	(void)state;
	memset(longest, 'm', sizeof(longest));
	longest[sizeof(longest) - 1] = '\0';
	assert_false(layer_keep_put(NULL, 0, &b, &r));
	layer_keep_model(&k, "");
	assert_false(layer_keep_put(&k, 0, &b, &r));
	layer_keep_model(&k, longest);
	assert_false(layer_keep_put(&k, 0, &b, &r));
	assert_true(b.data && b.data[0] == 7); /* still the caller's */
	block_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_same_layer_comes_back_once),
		cmocka_unit_test(test_another_layer_or_model_does_not),
		cmocka_unit_test(test_nothing_is_kept_for_models_without_a_name),
	};

	return cmocka_run_group_tests_name("layer keep", tests, NULL, NULL);
}
