/* options.h - quarry-server's command line. */
#ifndef QUARRY_SERVER_OPTIONS_H
#define QUARRY_SERVER_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/log.h"

enum { MODEL_ROOTS_MAX = 64 };

struct server_options {
	const char *data, *listen, *tokens_file, *ready_file;
	const char *model_roots[MODEL_ROOTS_MAX + 1];   /* NULL-terminated */
	int64_t lease_s, header_s, connections, requests_per_s;
	enum log_level log_level;
	bool exit_with_parent, help, version;
};

extern const char options_usage[];

/* 0, or -1 with a sentence. The strings stay argv's. */
int options_parse(struct server_options *o, int argc, char **argv, struct err *err);

#endif
