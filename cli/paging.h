/* paging.h - a list of the API, page after page, as one array. */
#ifndef QUARRY_CLI_PAGING_H
#define QUARRY_CLI_PAGING_H

#include <stdint.h>

#include "cli/client.h"

/* GET path?limit=…&cursor=…[&name=value] until `limit` items or the end; owned by the caller. */
struct json *fetch_pages(struct client *c, const char *path, const char *name, const char *value, int64_t limit,
			 struct err *err);

#endif
