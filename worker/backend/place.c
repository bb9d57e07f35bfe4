#include "worker/backend/place.h"

int placed_init(struct placed *p, struct backend *be, const void *array, size_t bytes, const char *what,
		struct err *err)
{
	*p = (struct placed){ .be = be, .from = array, .bytes = bytes };
	if (!be->ops->own_memory)
		return 0;
	p->copy = be->ops->memory_take(be, bytes, what, err);
	if (p->copy && be->ops->memory_copy(be, p->copy, array, bytes, err) == 0)
		return 0;
	placed_deinit(p);
	return -1;
}

void placed_deinit(struct placed *p)
{
	if (p->copy)
		p->be->ops->memory_give(p->be, p->copy);
	*p = (struct placed){ 0 };
}

const void *placed_at(const struct placed *p, const void *element)
{
	const uintptr_t at = (uintptr_t)element, begin = (uintptr_t)p->from;

	if (!p->copy || at < begin || at - begin >= p->bytes)
		return element;
	return p->copy + (at - begin);
}

struct rope_table placed_rope(const struct placed *p, const struct rope_table *rope)
{
	return (struct rope_table){ .cos = placed_at(p, rope->cos), .sin = placed_at(p, rope->sin) };
}

void *place_zeros(struct backend *be, size_t bytes, const char *what, struct err *err)
{
	void *memory = be->ops->memory_take(be, bytes, what, err);

	if (memory && place_clear(be, memory, bytes, err) != 0) {
		be->ops->memory_give(be, memory);
		return NULL;
	}
	return memory;
}

/* A little from the program, then what is clear already, twice as much each time. */
int place_clear(struct backend *be, void *memory, size_t bytes, struct err *err)
{
	static const char zeros[4096];
	char *at = memory;

	for (size_t done = 0, now; done < bytes; done += now) {
		now = done == 0 ? sizeof(zeros) : done;
		if (now > bytes - done)
			now = bytes - done;
		if (be->ops->memory_copy(be, at + done, done == 0 ? zeros : at, now, err) != 0)
			return -1;
	}
	return 0;
}
