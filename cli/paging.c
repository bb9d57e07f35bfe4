#include "cli/paging.h"

#include <stdio.h>

#include "common/alloc.h"

enum { PAGE_MAX = 500, PATH_BYTES = 1024 };

static int page_path(char out[PATH_BYTES], const char *path, const char *name, const char *value,
		     const char *cursor, int64_t limit, struct err *err)
{
	char *v = url_escape(value ? value : ""), *k = url_escape(cursor);
	int rc = v && k ? 0 : err_set_nomem(err, "a request");

	if (rc == 0 && snprintf(out, PATH_BYTES, "%s?limit=%lld%s%s%s%s%s%s", path, (long long)limit,
				value ? "&" : "", value ? name : "", value ? "=" : "", v, *k ? "&cursor=" : "",
				k) >= PATH_BYTES)
		rc = err_set(err, ERR_INVALID, "the value of --%s is too long", value ? name : "cursor");
	mem_free(v);
	mem_free(k);
	return rc;
}

static int append_items(struct json *all, const struct json *page, int64_t limit)
{
	for (const struct json *i = json_first(json_get(page, "items")); i; i = json_next(i))
		if ((int64_t)json_size(all) < limit && json_push(all, json_copy(i)) != 0)
			return -1;
	return 0;
}

static int fetch_all(struct client *c, struct json *all, const char *path, const char *name, const char *value,
		     int64_t limit, struct err *err)
{
	char where[PATH_BYTES], cursor[256] = "";
	size_t before;

	do {
		int64_t left = limit - (int64_t)json_size(all);
		struct json *page;
		int rc;

		if (page_path(where, path, name, value, cursor, left < PAGE_MAX ? left : PAGE_MAX, err) != 0)
			return -1;
		page = client_get(c, where, err);
		if (!page)
			return -1;
		before = json_size(all);
		rc = append_items(all, page, limit);
		snprintf(cursor, sizeof(cursor), "%s", json_get_string(page, "next", ""));
		json_free(page);
		if (rc != 0)
			return err_set_nomem(err, "the list");
	} while (*cursor && (int64_t)json_size(all) < limit && json_size(all) > before);
	return 0;
}

struct json *fetch_pages(struct client *c, const char *path, const char *name, const char *value, int64_t limit,
			 struct err *err)
{
	struct json *all = json_new_array();

	if (!all) {
		err_set_nomem(err, "the list");
		return NULL;
	}
	if (fetch_all(c, all, path, name, value, limit, err) == 0)
		return all;
	json_free(all);
	return NULL;
}
