/* digest.h - SHA-256, HMAC-SHA-256 and random bytes; the only module that knows libcrypto.
 *
 * A blob is named by the lower-case hex SHA-256 of its bytes. Thread-safe per context.
 */
#ifndef QUARRY_COMMON_DIGEST_H
#define QUARRY_COMMON_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum { DIGEST_BYTES = 32, DIGEST_HEX = 65 /* with the NUL */ };

struct digest; /* a running SHA-256 */

struct digest *digest_new(void); /* NULL when out of memory */
void digest_add(struct digest *d, const void *bytes, size_t len);
/* Writes 64 hex characters and NUL, and makes the context ready for the next message. */
void digest_finish(struct digest *d, char hex[DIGEST_HEX]);
void digest_free(struct digest *d);

/* One-shot; -1 when out of memory. */
int digest_of(const void *bytes, size_t len, char hex[DIGEST_HEX]);
/* Whole file, streamed. `bytes` (may be NULL) receives its size. */
int digest_file(const char *path, char hex[DIGEST_HEX], uint64_t *bytes, struct err *err);
/* Exactly 64 characters 0-9a-f. */
bool digest_is_hex(const char *text);

int hmac_sha256(const void *key, size_t key_len, const void *bytes, size_t len,
		char hex[DIGEST_HEX]);
/* Compares in time that does not depend on where the strings differ. */
bool secret_equal(const char *a, const char *b);
/* Cryptographic random bytes as hex: 2*bytes characters and NUL into out. -1 on failure. */
int random_hex(char *out, size_t bytes);

#endif
