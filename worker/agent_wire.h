/* agent_wire.h - the JSON bodies that the agent sends and the lease it receives (docs/protocol.md).
 *
 * Printers return text to free with mem_free(), NULL when out of memory. Pure, thread-safe.
 */
#ifndef QUARRY_WORKER_AGENT_WIRE_H
#define QUARRY_WORKER_AGENT_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/json.h"
#include "worker/backend/backend.h"

enum { LEASE_INPUTS_MAX = 4096, WIRE_ID_MAX = 100, LEASE_SECONDS_MAX = 86400 };

struct lease_input {
	const char *name;       /* in the lease's JSON */
	const char *sha256;
	uint64_t bytes;
	const char *path;       /* the blob's file as the coordinator sees it: absolute, named by the digest; NULL: not told */
};

struct lease {
	struct json *json;      /* owned; the strings below point into it */
	const char *task, *kind;
	int64_t epoch;
	int64_t lease_ms;
	const struct json *spec;
	const struct json *model;       /* object, or NULL */
	struct lease_input *inputs;     /* owned array */
	size_t input_count;
};

/* Checks everything that becomes a path or a size. ERR_INVALID names the field. */
int lease_parse(struct lease *lease, const char *text, size_t len, struct err *err);
void lease_deinit(struct lease *lease);

struct wire_worker {
	const char *name, *backend, *identity, *version;
	const struct backend_device *device;    /* NULL: none */
	int threads;
	uint64_t memory_bytes;
	bool sees_paths;
};
char *wire_register(const struct wire_worker *worker);
/* The "worker" of a registration's reply, checked; NULL with err. Free with mem_free(). */
char *wire_parse_worker(const char *text, size_t len, struct err *err);
/* `holds`: the task ids the worker holds; more than WIRE_HOLDS_MAX are left out, and with them the field. */
enum { WIRE_HOLDS_MAX = 64 };
char *wire_lease_request(const char *worker, const char *const *have, size_t count, const char *const *holds,
			 size_t holds_count);
char *wire_heartbeat(const char *worker, int64_t epoch, double progress, const char *note);
/* `complete` as in the spool: outputs, result, stats. */
char *wire_complete(const char *worker, int64_t epoch, const struct json *complete);
char *wire_fail(const char *worker, int64_t epoch, const struct err *why, const char *log);
char *wire_checkpoint(const char *worker, int64_t epoch, const char *sha256, uint64_t bytes);
/* why: the error that made the worker give the task back although it is not the task's; NULL: none. */
char *wire_release(const char *worker, int64_t epoch, const char *reason, const struct err *why, const char *log);
/* place: would rather put the file itself where the coordinator says. */
char *wire_upload_begin(const char *sha256, uint64_t bytes, bool place);

/* The reply to an upload's beginning. */
struct wire_upload {
	bool exists;
	char id[WIRE_ID_MAX + 1];
	uint64_t part_bytes;
	size_t parts;           /* in all, from part_bytes and the size */
	unsigned char *done;    /* one byte a part; owned */
	char *place;            /* where the file may be put instead: absolute, named <sha256>.placed; owned; NULL: nowhere */
};
int wire_parse_upload(struct wire_upload *upload, const char *sha256, uint64_t bytes, const char *text, size_t len,
		      struct err *err);
void wire_upload_deinit(struct wire_upload *upload);

#endif
