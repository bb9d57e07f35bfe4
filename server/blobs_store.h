/* blobs_store.h - what blobs.c and blobs_upload.c share: paths and the list of uploads in use. */
#ifndef QUARRY_SERVER_BLOBS_STORE_H
#define QUARRY_SERVER_BLOBS_STORE_H

#include <limits.h>
#include <pthread.h>
#include <stdbool.h>

#include "server/blobs.h"

/* One upload that some thread is working on right now; lives in the list only as long as that. */
struct upload_use {
	char sha256[DIGEST_HEX];
	unsigned users;         /* threads inside, shared or exclusive */
	bool exclusive;
	bool verifying;         /* exclusive for long: others are told to come back, not made to wait */
	struct upload_use *next;
};

struct blobs {
	char *blobs_dir, *uploads_dir;
	pthread_mutex_t lock;   /* guards uses */
	pthread_cond_t freed;
	struct upload_use *uses;
};

/* DATA/blobs/ab/<sha256>; -1 (ERR_INVALID) when sha256 is not a digest or the path is too long. */
int blob_path(const struct blobs *b, const char *sha256, char out[PATH_MAX], struct err *err);
/* Makes DATA/blobs/ab for this digest, durably. */
int blob_make_folder(struct blobs *b, const char *sha256, struct err *err);

/* Enters an upload, shared (writing parts) or exclusive. NULL: ERR_BUSY while it is being verified. */
struct upload_use *upload_enter(struct blobs *b, const char *sha256, bool exclusive, bool verifying,
				struct err *err);
void upload_leave(struct blobs *b, struct upload_use *use);
/* Removes uploads untouched since before `oldest_ms` (wall clock) that nobody is in. */
int upload_sweep(struct blobs *b, int64_t oldest_ms, struct err *err);

#endif
