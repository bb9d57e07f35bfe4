#include "worker/backend/driver_release.h"

#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

enum { TEXT_BYTES = 512 };

const char driver_release_path[] = "/proc/driver/nvidia/version";

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* Numbers with single dots between them, two at least. */
static bool is_release(const char *word, size_t len)
{
	size_t dots = 0;

	for (size_t i = 0; i < len; i++) {
		if (is_digit(word[i]))
			continue;
		if (word[i] != '.' || i == 0 || i + 1 == len || !is_digit(word[i + 1]))
			return false;
		dots++;
	}
	return dots > 0;
}

void driver_release_parse(const char *text, char out[DRIVER_RELEASE_MAX])
{
	const char *end = text + strcspn(text, "\n");

	out[0] = '\0';
	while (text < end) {
		const size_t len = strcspn(text, " \t\n");

		if (len < DRIVER_RELEASE_MAX && is_release(text, len)) {
			memcpy(out, text, len);
			out[len] = '\0';
			return;
		}
		text += len + 1;
	}
}

void driver_release_read(const char *path, char out[DRIVER_RELEASE_MAX])
{
	char text[TEXT_BYTES];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;

	if (fd >= 0)
		close(fd);
	text[len > 0 ? len : 0] = '\0';
	driver_release_parse(text, out);
}
