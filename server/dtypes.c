/* A JSON object is searched from its start each time; a model has thousands of tensors. */
#include "server/dtypes.h"

#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct dtype_entry *)a)->name, ((const struct dtype_entry *)b)->name);
}

int dtypes_init(struct dtypes *d, const struct json *object, struct err *err)
{
	*d = (struct dtypes){ .entries = mem_alloc(json_size(object), sizeof(*d->entries)) };
	if (!d->entries)
		return err_set_nomem(err, "the source's tensors");
	for (const struct json *t = json_first(object); t; t = json_next(t))
		d->entries[d->count++] = (struct dtype_entry){ json_key(t), json_string(t, "") };
	qsort(d->entries, d->count, sizeof(*d->entries), by_name);
	return 0;
}

void dtypes_deinit(struct dtypes *d)
{
	mem_free(d->entries);
	*d = (struct dtypes){ 0 };
}

int dtypes_find(void *ctx, const char *tensor, enum st_dtype *out)
{
	const struct dtypes *d = ctx;
	const struct dtype_entry key = { tensor, NULL };
	const struct dtype_entry *found = bsearch(&key, d->entries, d->count, sizeof(key), by_name);

	return found ? st_dtype_from_name(found->dtype, out) : -1;
}
