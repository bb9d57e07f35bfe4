/* inspect.h - what is found out about one checkpoint: by `quarry inspect`. */
#ifndef QUARRY_CLI_INSPECT_H
#define QUARRY_CLI_INSPECT_H

#include "common/digest.h"
#include "formats/stored_folder.h"

struct inspected_file {
	char name[256];
	char sha256[DIGEST_HEX];
	uint64_t bytes;
	int reported;           /* 1: report.json says the same digest; 0: another; -1: it says none */
};

struct inspected {
	const char *path;               /* as named; borrowed */
	struct stored_folder folder;
	bool open;
	struct inspected_file *files; size_t file_count;
	uint64_t weight_bytes;          /* of the weight files */
	struct problems faults;
};

/* Opens, scans, digests. -1 only when the machine fails or a signal stops it; what is wrong with the checkpoint is in `faults`. */
int inspect_read(struct inspected *i, const char *path, struct err *err);
void inspect_deinit(struct inspected *i);

/* On stdout; -1 when out of memory. */
int inspect_print(struct inspected *i, struct err *err);
struct json *inspect_json(struct inspected *i);

#endif
