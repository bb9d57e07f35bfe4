/* embedded.h - files that the server carries inside itself (see the Makefile's embedded_files). */
#ifndef QUARRY_SERVER_EMBEDDED_H
#define QUARRY_SERVER_EMBEDDED_H

#include <stddef.h>

struct embedded_file {
	const char *path;               /* as in the source tree: "server/dashboard/index.html" */
	const unsigned char *bytes;     /* `size` bytes, then a NUL */
	size_t size;
};

extern const struct embedded_file embedded_files[]; /* ends with path == NULL */

#endif
