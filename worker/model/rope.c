/* See rope.h. */
#include "worker/model/rope.h"

#include <math.h>

#include "common/alloc.h"

static double llama3_frequency(const struct rope_config *c, double frequency)
{
	/* over the original context */
	const double turns = c->original_max_position * frequency / (2 * M_PI);
	double blend;

	if (turns > c->high_freq_factor)
		return frequency;
	if (turns < c->low_freq_factor)
		return frequency / c->factor;
	blend = (turns - c->low_freq_factor) / (c->high_freq_factor - c->low_freq_factor);
	return (1 - blend) * frequency / c->factor + blend * frequency;
}

double rope_frequency(const struct rope_config *c, size_t head_dim, size_t i)
{
	const double frequency = pow(c->theta, -2.0 * (double)i / (double)head_dim);

	switch (c->type) {
	case ROPE_DEFAULT:
		break;
	case ROPE_LINEAR:
		return frequency / c->factor;
	case ROPE_LLAMA3:
		return llama3_frequency(c, frequency);
	}
	return frequency;
}

int rope_init(struct rope *rope, const struct model_config *config, size_t seq_len, struct err *err)
{
	const size_t head_dim = config->head_dim, half = head_dim / 2;
	size_t n;

	*rope = (struct rope){ 0 };
	if (head_dim < 2 || head_dim % 2 != 0 || seq_len < 1)
		return err_set(err, ERR_INVALID, "rotary tables of %zu positions for head_dim %zu; head_dim "
			       "must be even and both at least 1", seq_len, head_dim);
	if (!size_mul(seq_len, head_dim, &n))
		return err_set_nomem(err, "rotary tables");
	rope->data = mem_alloc_aligned(n, sizeof(float));
	if (!rope->data)
		return err_set_nomem(err, "rotary tables");
	rope->floats = n;
	rope->table = (struct rope_table){ rope->data, rope->data + seq_len * half };
	for (size_t i = 0; i < half; i++) {
		const double frequency = rope_frequency(&config->rope, head_dim, i);

		for (size_t t = 0; t < seq_len; t++) {
			rope->data[t * half + i] = (float)cos((double)t * frequency);
			rope->data[(seq_len + t) * half + i] = (float)sin((double)t * frequency);
		}
	}
	return 0;
}

void rope_deinit(struct rope *rope)
{
	mem_free(rope->data);
	*rope = (struct rope){ 0 };
}

size_t rope_bytes(const struct rope *rope)
{
	return rope->floats * sizeof(*rope->data);
}
