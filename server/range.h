/* range.h - the Range header (RFC 9110 section 14), one range of bytes. Pure. */
#ifndef QUARRY_SERVER_RANGE_H
#define QUARRY_SERVER_RANGE_H

#include <stdint.h>

enum range_kind {
	RANGE_ALL,      /* no header, not understood, or several ranges: the whole file with 200 */
	RANGE_PART,     /* 206 */
	RANGE_NONE,     /* nothing of it exists: 416 */
};

/* first..last inclusive when RANGE_PART, otherwise left alone. header may be NULL. */
enum range_kind range_parse(const char *header, uint64_t size, uint64_t *first, uint64_t *last);

#endif
