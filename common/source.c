/* source.c - what every source can do, whatever it reads from. */
#include "common/source.h"

#include "common/alloc.h"

char *source_read_all(struct source *s, const char *file, size_t limit, size_t *len,
		      struct err *err)
{
	uint64_t bytes;
	char *text;

	if (s->size(s, file, &bytes, err) != 0)
		return NULL;
	if (bytes > limit) {
		err_set(err, ERR_TOO_LARGE, "%s/%s has %llu bytes; at most %zu are accepted", s->label, file,
			(unsigned long long)bytes, limit);
		return NULL;
	}
	text = mem_alloc((size_t)bytes + 1, 1);
	if (!text) {
		err_set_nomem(err, file);
		return NULL;
	}
	if (s->read(s, file, 0, text, (size_t)bytes, err) != 0) {
		mem_free(text);
		return NULL;
	}
	*len = (size_t)bytes;
	return text;
}

char *source_read_optional(struct source *s, const char *file, size_t limit, size_t *len, struct err *err)
{
	struct err reason = ERR_INIT;
	char *text = source_read_all(s, file, limit, len, &reason);

	if (!text && reason.code != ERR_NOT_FOUND)
		*err = reason;
	return text;
}
