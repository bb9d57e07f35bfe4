/* hidden_lane.h - a thread that goes through hidden states piece by piece: it reads them or writes them, while
 * the thread that started it computes.
 *
 * The pieces of a run lie in HIDDEN_BUFFERS buffers in turn, piece i in buffer i % HIDDEN_BUFFERS. A lane works
 * through them in order, a chunk at a time, as far as it is allowed to: whoever started it says which pieces' buffers
 * are its own, and asks how far it has come. Places in the run are counted in bytes from its start. A failure ends the
 * lane and is told to who waits for what will not come. The file that a lane works with is its own until the lane is
 * stopped. Lanes take no signals: those belong to the program's main loop.
 */
#ifndef QUARRY_WORKER_HIDDEN_LANE_H
#define QUARRY_WORKER_HIDDEN_LANE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum { HIDDEN_BUFFERS = 2 };

/* Which sequences each piece holds. */
struct hidden_pieces {
	size_t count;
	size_t *first;                  /* (count + 1) each piece's first sequence, then how many there are */
	size_t sequence_bytes;
	size_t largest;                 /* bytes of the largest piece */
};

/* Where piece i begins, or with i == count where the run ends. */
static inline uint64_t hidden_pieces_at(const struct hidden_pieces *p, size_t i)
{
	return (uint64_t)p->first[i] * p->sequence_bytes;
}

struct hidden_lane {
	/* filled in before the start */
	const struct hidden_pieces *pieces;
	char *const *buffer;            /* (HIDDEN_BUFFERS), each as large as the largest piece */
	size_t chunk;                   /* bytes at a time, > 0 */
	/* bytes [from, from + len) of piece i; `bytes` is where they lie in its buffer */
	int (*work)(void *ctx, size_t piece, size_t from, char *bytes, size_t len, struct err *err);
	void *ctx;
	/* private */
	pthread_t thread;
	bool running;
	pthread_mutex_t lock;           /* guards what follows */
	pthread_cond_t changed;
	uint64_t allowed, at;
	bool stop, failed;
	struct err err;
};

/* what: "read hidden states", for errors. The lane stays where it is until it is stopped. */
int hidden_lane_start(struct hidden_lane *l, const char *what, struct err *err);
/* It may work up to there, the end of a piece; never less than before. */
void hidden_lane_allow(struct hidden_lane *l, uint64_t upto);
/* Waits until it has come to `upto`, 0: does not wait. *at (may be NULL): how far it is. -1: it failed before. */
int hidden_lane_wait(struct hidden_lane *l, uint64_t upto, uint64_t *at, struct err *err);
/* Ends the thread, at the latest after its present chunk. Harmless on one that was not started. */
void hidden_lane_stop(struct hidden_lane *l);

#endif
