/* What is done outside the database after COMMIT; see engine_internal.h. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "server/engine_internal.h"

/* A list that is full grows to the next power of two. */
static void *grown(void *items, size_t count, size_t *cap, size_t size)
{
	size_t want = *cap ? 2 * *cap : 16;
	void *more = count < *cap ? items : mem_realloc(items, want, size);

	if (more && count >= *cap)
		*cap = want;
	return more;
}

int effects_wake(struct effects *fx, char kind, const char *id, struct err *err)
{
	struct wake *more;

	for (size_t i = fx->wake_count; i-- > 0;) /* once is enough; lists are short */
		if (fx->wakes[i].kind == kind && strcmp(fx->wakes[i].id, id) == 0)
			return 0;
	more = grown(fx->wakes, fx->wake_count, &fx->wake_cap, sizeof(*fx->wakes));
	if (!more)
		return err_set_nomem(err, "the list of wakes");
	fx->wakes = more;
	fx->wakes[fx->wake_count].kind = kind;
	snprintf(fx->wakes[fx->wake_count++].id, ID_MAX, "%s", id);
	return 0;
}

int effects_delete_blob(struct effects *fx, const char *sha256, struct err *err)
{
	char (*more)[DIGEST_HEX] = grown(fx->deletes, fx->delete_count, &fx->delete_cap, sizeof(*fx->deletes));

	if (!more)
		return err_set_nomem(err, "the list of blobs to delete");
	fx->deletes = more;
	snprintf(fx->deletes[fx->delete_count++], DIGEST_HEX, "%s", sha256);
	return 0;
}

struct effects_mark effects_mark(const struct effects *fx)
{
	return (struct effects_mark){ fx->wake_count, fx->delete_count };
}

void effects_undo(struct effects *fx, struct effects_mark mark)
{
	fx->wake_count = mark.wakes;
	fx->delete_count = mark.deletes;
}

void effects_deinit(struct effects *fx)
{
	mem_free(fx->wakes);
	mem_free(fx->deletes);
	memset(fx, 0, sizeof(*fx));
}
