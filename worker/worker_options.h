/* worker_options.h - quarry-worker's command line, checked. No I/O. */
#ifndef QUARRY_WORKER_WORKER_OPTIONS_H
#define QUARRY_WORKER_WORKER_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/log.h"

struct worker_options {
	const char *server, *token_file, *work, *backend, *name; /* argv's; NULL = not given */
	int threads;            /* 0 = one per core */
	uint64_t cache_bytes;
	uint64_t memory_bytes;  /* 0 = what the machine has */
	int device;             /* -1 = not given */
	uint64_t gpu_memory;    /* 0 = not given */
	int checkpoint_seconds;
	bool read_paths, wait_for_server, exit_with_parent;
	enum log_level log_level;
	bool help, version;
};

extern const char worker_usage[];

/* -1: err says which option and what would be right. */
int worker_options_parse(struct worker_options *o, int argc, char **argv, struct err *err);
/* "4096", "20GB", "512MiB": decimal and binary units. */
int worker_parse_bytes(const char *text, uint64_t *bytes);

#endif
