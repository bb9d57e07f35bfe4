/* blobs_store.h - what blobs.c, blobs_upload.c and blobs_place.c share: paths and the list of uploads in use. */
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
	char *seen_blobs, *seen_uploads; /* the same as absolute paths; NULL: they have none that can be told */
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
/* --- the files of an upload; the caller is in it --------------------------------------- */

struct upload_files {
	char data[PATH_MAX], marks[PATH_MAX];   /* its parts */
	char placed[PATH_MAX];                  /* where others put a file */
	char taken[PATH_MAX];                   /* that file while it is looked at */
};

int upload_paths(const struct blobs *b, const char *sha256, struct upload_files *f, struct err *err);
void upload_drop(const struct upload_files *f);
/* Size of an upload in progress; ERR_NOT_FOUND. */
int upload_size(const struct upload_files *f, const char *sha256, uint64_t *bytes, struct err *err);
/* 1: the file's digest is sha256; 0: it is not (ERR_CORRUPT says so); -1: it cannot be told. */
int upload_verify(const char *path, const char *sha256, struct err *err);
/* Flushes it, with the present as its time: blobs_sweep() spares fresh files. */
int upload_flush(int fd, const char *path, struct err *err);
/* Gives the file the blob's name; on failure takes the name away again. */
int upload_name(struct blobs *b, const char *path, const char *sha256, struct err *err);

/* Makes the blob of what an upload holds, verified and flushed; *bytes: its size. */
typedef int (*upload_store_fn)(struct blobs *b, const struct upload_files *f, const char *sha256, uint64_t *bytes,
			       struct err *err);
/* Alone with the upload: stores it unless the blob is there already, and removes what is left of it. */
int upload_complete(struct blobs *b, const char *sha256, upload_store_fn store, uint64_t *bytes, struct err *err);

/* Removes uploads untouched since before `oldest_ms` (wall clock) that nobody is in. */
int upload_sweep(struct blobs *b, int64_t oldest_ms, struct err *err);

#endif
