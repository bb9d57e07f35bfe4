/* percent.h - percent-decoding of one path segment or query value. Pure. */
#ifndef QUARRY_SERVER_PERCENT_H
#define QUARRY_SERVER_PERCENT_H

#include <stddef.h>

/* Decodes len bytes into out (cap bytes with the NUL). -1 when an escape is not %XX, when the result does not
 * fit, is not UTF-8, or holds a control character (NUL included). */
int percent_decode(const char *text, size_t len, char *out, size_t cap);

#endif
