/* transfer.h - blobs between the cache and the coordinator: resumable, verified, patient.
 *
 * Where both are on one file system a blob changes hands by a hard link, both ways; where that does not work (another host,
 * file system or user, or links.in/out false) its bytes go over HTTP.
 * Both directions retry network errors and retryable answers for ever with back-off and jitter (the owner frees the
 * transfer when it does not want it any more) and report only what cannot be mended by asking again.
 * Everything runs in the loop's thread except hashing.
 */
#ifndef QUARRY_WORKER_TRANSFER_H
#define QUARRY_WORKER_TRANSFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/clock.h"
#include "common/err.h"
#include "worker/cache.h"
#include "worker/client.h"
#include "worker/loop.h"

/* Hard links between the coordinator's folders and ours. Transfers switch them off and note what they told. */
struct transfer_links {
	bool in, out;                   /* are tried */
	bool in_told, out_told;         /* why the first one could not be made stands in the log */
};

/* What transfers need of the agent; outlives them. */
struct transfer_env {
	struct loop *loop;
	struct client *client;
	struct cache *cache;
	const struct clock *clock;
	/* Told after every reply or failure to reach the coordinator (status 0). */
	void (*contact)(void *ctx, const struct client_reply *reply);
	void *contact_ctx;
	struct transfer_links links;
};

uint32_t transfer_random(const struct transfer_env *env);

/* --- in: GET /v1/blobs/<sha256> -------------------------------------------------------------------- */

struct fetch;
/* Brings a blob into the cache: nothing to do when it is there and verified, hashing when it is
 * unproven, otherwise a hard link to `path` (lease_input.path, may be NULL; copied), otherwise a download that resumes
 * <sha256>.part by Range. A cached file that came out wrong ends linking for good: what the coordinator and this worker share
 * was changed on disk, so it is fetched and verified from then on. The caller has it pinned. done() is called once, later;
 * err->code is ERR_NONE, or says why not: ERR_NOT_FOUND (the coordinator has no such blob),
 * ERR_NOSPC, ERR_IO (came out wrong three times, local I/O). NULL when out of memory. */
struct fetch *fetch_start(struct transfer_env *env, const char *sha256, uint64_t bytes, const char *path,
			  void (*done)(void *ctx, const struct err *err), void *ctx);
/* Stops it if it is under way (a cut-off part stays for later). NULL is fine. */
void fetch_free(struct fetch *fetch);

/* --- out: /v1/uploads ----------------------------------------------------------------------------------- */

struct send;
/* Uploads the file at `path`, whose digest is sha256: by a hard link where the coordinator takes it, else in parts. The
 * file may become the coordinator's own: nobody writes into it any more, only its name is removed. A link that is not
 * completed is taken back with send_free(). done() as above; ERR_IO when the local file cannot be read or the coordinator
 * finds another digest three times. */
struct send *send_start(struct transfer_env *env, const char *path, const char *sha256,
			uint64_t bytes, void (*done)(void *ctx, const struct err *err), void *ctx);
void send_free(struct send *send);

#endif
