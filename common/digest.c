#include "common/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include "common/alloc.h"

struct digest {
	EVP_MD_CTX *ctx;
};

static void to_hex(const unsigned char *bytes, size_t len, char *hex)
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < len; i++) {
		hex[2 * i] = digits[bytes[i] >> 4];
		hex[2 * i + 1] = digits[bytes[i] & 15];
	}
	hex[2 * len] = '\0';
}

struct digest *digest_new(void)
{
	struct digest *d = mem_alloc(1, sizeof(*d));

	if (!d)
		return NULL;
	d->ctx = EVP_MD_CTX_new();
	if (!d->ctx || EVP_DigestInit_ex(d->ctx, EVP_sha256(), NULL) != 1) {
		digest_free(d);
		return NULL;
	}
	return d;
}

void digest_add(struct digest *d, const void *bytes, size_t len)
{
	EVP_DigestUpdate(d->ctx, bytes, len);
}

void digest_finish(struct digest *d, char hex[DIGEST_HEX])
{
	unsigned char raw[DIGEST_BYTES];

	EVP_DigestFinal_ex(d->ctx, raw, NULL);
	to_hex(raw, sizeof(raw), hex);
	EVP_DigestInit_ex(d->ctx, EVP_sha256(), NULL);
}

void digest_free(struct digest *d)
{
	if (!d)
		return;
	EVP_MD_CTX_free(d->ctx);
	mem_free(d);
}

int digest_of(const void *bytes, size_t len, char hex[DIGEST_HEX])
{
	struct digest *d = digest_new();

	if (!d)
		return -1;
	digest_add(d, bytes, len);
	digest_finish(d, hex);
	digest_free(d);
	return 0;
}

static int digest_fd(int fd, struct digest *d, uint64_t *bytes)
{
	unsigned char chunk[1 << 16];

	*bytes = 0;
	for (;;) {
		ssize_t got = read(fd, chunk, sizeof(chunk));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -1;
		if (got == 0)
			return 0;
		digest_add(d, chunk, (size_t)got);
		*bytes += (uint64_t)got;
	}
}

int digest_file(const char *path, char hex[DIGEST_HEX], uint64_t *bytes, struct err *err)
{
	struct digest *d = NULL;
	uint64_t size = 0;
	int rc = -1;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return err_set_errno(err, errno, "cannot open %s", path);
	d = digest_new();
	if (!d) {
		err_set_nomem(err, "a digest");
		goto out;
	}
	if (digest_fd(fd, d, &size) != 0) {
		err_set_errno(err, errno, "cannot read %s", path);
		goto out;
	}
	digest_finish(d, hex);
	if (bytes)
		*bytes = size;
	rc = 0;
out:
	digest_free(d);
	close(fd);
	return rc;
}

bool digest_is_hex(const char *text)
{
	return strlen(text) == 64 && strspn(text, "0123456789abcdef") == 64;
}

int hmac_sha256(const void *key, size_t key_len, const void *bytes, size_t len,
		char hex[DIGEST_HEX])
{
	unsigned char raw[DIGEST_BYTES];

	if (!HMAC(EVP_sha256(), key, (int)key_len, bytes, len, raw, NULL))
		return -1;
	to_hex(raw, sizeof(raw), hex);
	return 0;
}

bool secret_equal(const char *a, const char *b)
{
	size_t len = strlen(a);

	return len == strlen(b) && CRYPTO_memcmp(a, b, len) == 0;
}

int random_hex(char *out, size_t bytes)
{
	unsigned char raw[64];

	if (bytes > sizeof(raw) || RAND_bytes(raw, (int)bytes) != 1)
		return -1;
	to_hex(raw, bytes, out);
	return 0;
}
