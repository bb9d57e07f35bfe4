#include "common/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static const char *log_component = "quarry";
static enum log_level log_least = LOG_INFO;

void log_setup(const char *component, enum log_level least)
{
	log_component = component;
	log_least = least;
}

static const char *level_name(enum log_level level)
{
	switch (level) {
	case LOG_DEBUG: return "debug";
	case LOG_INFO:  return "info";
	case LOG_WARN:  return "warn";
	case LOG_ERROR: return "error";
	}
	return "?";
}

static int format_head(char *out, size_t cap, enum log_level level)
{
	struct timespec now;
	struct tm tm;
	char day[32];

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	strftime(day, sizeof(day), "%Y-%m-%dT%H:%M:%S", &tm);
	return snprintf(out, cap, "%s.%03ldZ %s %s ", day, now.tv_nsec / 1000000,
			level_name(level), log_component);
}

void log_line(enum log_level level, const char *fmt, ...)
{
	char text[2048], line[4096];
	size_t used;
	va_list args;
	ssize_t ignored;

	if (level < log_least)
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	used = (size_t)format_head(line, 256, level);
	for (const char *p = text; *p && used + 6 < sizeof(line); p++) {
		unsigned char c = (unsigned char)*p;

		if (c < 0x20 || c == 0x7f)
			used += (size_t)snprintf(line + used, 5, "\\x%02x", c);
		else
			line[used++] = (char)c;
	}
	line[used++] = '\n';
	ignored = write(STDERR_FILENO, line, used);
	(void)ignored; /* nowhere left to report to */
}
