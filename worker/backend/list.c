/* Finding a backend by name; which there are is list_plain.c's or list_cuda.c's to say, whichever is linked. */
#include <stdio.h>
#include <string.h>

#include "worker/backend/backend.h"

const struct backend_ops *backend_find(const char *name, struct err *err)
{
	char names[128] = "";
	size_t used = 0;

	for (size_t i = 0; backend_list[i]; i++) {
		if (strcmp(backend_list[i]->name, name) == 0)
			return backend_list[i];
		if (used < sizeof(names))
			used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s",
						 i ? ", " : "", backend_list[i]->name);
	}
	err_set(err, ERR_INVALID, "no backend named \"%.64s\"; this program has: %s%s", name, names,
		backend_list_note);
	return NULL;
}
