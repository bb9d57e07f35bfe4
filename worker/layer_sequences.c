#include "worker/layer_sequences.h"

#include "common/alloc.h"

static const char what[] = "the sequences of a training";

uint64_t layer_sequences_bytes(const struct layer_sequences *q, size_t count)
{
	return (uint64_t)count * q->floats * sizeof(float);
}

/* Takes room for x and y unless the backend has not that much and `beside`. */
static int hold_all(struct layer_sequences *q, uint64_t beside, struct err *err)
{
	const struct backend_ops *ops = q->be->ops;
	struct err full = ERR_INIT;
	size_t floats, bytes;
	void *left;

	if (!size_mul(q->count, q->floats, &floats) || !size_mul(floats, 2 * sizeof(float), &bytes) || beside > SIZE_MAX)
		return 0;
	q->x = ops->memory_take(q->be, bytes, what, &full);
	left = q->x ? ops->memory_take(q->be, (size_t)beside, what, &full) : NULL;
	ops->memory_give(q->be, left);
	if (left) {
		q->y = q->x + floats;
		return 0;
	}
	ops->memory_give(q->be, q->x);
	q->x = NULL;
	return full.code == ERR_NOMEM ? 0 : err_set(err, full.code, "%s", full.text);
}

int layer_sequences_init(struct layer_sequences *q, struct backend *be, struct hidden_shards *shards,
			 struct scratch_file *file, size_t count, uint64_t beside, struct err *err)
{
	*q = (struct layer_sequences){ .be = be, .shards = shards, .file = file, .count = count };
	if (!size_mul(shards->seq_len, shards->width, &q->floats))
		return err_set(err, ERR_TOO_LARGE, "a sequence of %zu tokens does not fit into memory", shards->seq_len);
	if (!be->ops->own_memory)
		return 0;
	if (hold_all(q, beside, err) != 0)
		return -1;
	if (!q->x) {
		q->passing = mem_alloc_aligned(q->floats, sizeof(*q->passing));
		if (!q->passing)
			return err_set_nomem(err, what);
	}
	return 0;
}

void layer_sequences_deinit(struct layer_sequences *q)
{
	if (q->x)
		q->be->ops->memory_give(q->be, q->x);
	mem_free(q->passing);
	*q = (struct layer_sequences){ 0 };
}

static int copy(const struct layer_sequences *q, float *to, const float *from, size_t count, struct err *err)
{
	return q->be->ops->memory_copy(q->be, to, from, count * q->floats * sizeof(*to), err);
}

/* Outputs [first, first + count), in memory of the backend, to the file. */
static int put_aside(struct layer_sequences *q, size_t first, size_t count, const float *y, struct err *err)
{
	if (q->passing) {
		if (copy(q, q->passing, y, count, err) != 0)
			return -1;
		y = q->passing;
	}
	return scratch_file_write(q->file, layer_sequences_bytes(q, first), y, count * q->floats * sizeof(*y), err);
}

int layer_sequences_put(void *ctx, size_t first, size_t count, const float *x, const float *y, struct err *err)
{
	struct layer_sequences *q = ctx;
	const size_t step = q->passing ? 1 : count;

	if (q->x)
		return copy(q, q->x + first * q->floats, x, count, err) == 0 ?
		       copy(q, q->y + first * q->floats, y, count, err) : -1;
	for (size_t i = 0; i < count; i += step)
		if (put_aside(q, first + i, step, y + i * q->floats, err) != 0)
			return -1;
	return 0;
}

/* Where a sequence is read to, and from there into the room. */
static float *landing(const struct layer_sequences *q, float *room)
{
	return q->passing ? q->passing : room;
}

static const float *pass_on(const struct layer_sequences *q, float *room, struct err *err)
{
	return !q->passing || copy(q, room, q->passing, 1, err) == 0 ? room : NULL;
}

const float *layer_sequences_input(const struct layer_sequences *q, size_t i, float *room, struct err *err)
{
	if (q->x)
		return q->x + i * q->floats;
	return hidden_shards_read(q->shards, i, 1, landing(q, room), err) == 0 ? pass_on(q, room, err) : NULL;
}

const float *layer_sequences_output(const struct layer_sequences *q, size_t i, float *room, struct err *err)
{
	if (q->y)
		return q->y + i * q->floats;
	return scratch_file_read(q->file, layer_sequences_bytes(q, i), landing(q, room), q->floats * sizeof(*room),
				 err) == 0 ? pass_on(q, room, err) : NULL;
}
