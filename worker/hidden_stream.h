/* hidden_stream.h - hidden states from files through the backend, and to a file: reading, copying, computing and
 * writing at once.
 *
 *	while (rc == 0 && hidden_stream_more(&s)) {
 *		rc = hidden_stream_next(&s, &piece, err);
 *		if (rc == 0)
 *			rc = compute piece.y from piece.x;
 *	}
 *	if (rc == 0)
 *		rc = hidden_stream_finish(&s, err);
 *	hidden_stream_close(&s);
 *
 * While piece i is computed one thread reads piece i + 2, or what is left of i + 1, the backend copies what is there of
 * i + 1 to its memory and the output of i - 1 from it, and another thread writes the output of i - 2 (hidden_lane.h).
 * A backend without memory of its own computes on the buffers themselves: piece i + 1 is read and the
 * output of i - 1 written meanwhile. Memory: two pieces of ordinary memory for the input and two for the output, and as
 * many of the backend's memory if it has some.
 * Pieces depend on the shards and the config alone. Everything is called by the thread that calls the backend; a
 * failure of the other threads comes out of the next call that needs what they did not do.
 */
#ifndef QUARRY_WORKER_HIDDEN_STREAM_H
#define QUARRY_WORKER_HIDDEN_STREAM_H

#include "worker/hidden_lane.h"
#include "worker/hidden_shards.h"

struct hidden_stream_config {
	struct backend *backend;
	struct hidden_shards *in;       /* the stream's until it is closed */
	size_t piece;                   /* a piece holds at most so many sequences, > 0, of one shard */
	size_t length;                  /* the first so many sequences, at most all */
	size_t cut[2];                  /* no piece reaches over the border before these sequences */
	const char *out_path;           /* an output as long as the input is made there; NULL: none */
	size_t chunk;                   /* bytes that are read or written at a time; 0: 16 MiB */
};

struct hidden_stream {
	struct hidden_stream_config config;
	struct hidden_pieces pieces;
	size_t next;                    /* the piece that comes next */
	struct hidden_lane reading, writing;
	struct tensor_file out;
	char *in_buffer[HIDDEN_BUFFERS], *out_buffer[HIDDEN_BUFFERS];
	char *x[HIDDEN_BUFFERS], *y[HIDDEN_BUFFERS];    /* memory of the backend; NULL where it has none of its own */
	uint64_t sent;                  /* so much of the input is on its way to x, or was */
};

/* Sequences [first, first + count): rows (count, seq_len, width) in memory of the backend, until the next call. */
struct hidden_piece {
	size_t first, count;
	const float *x;
	float *y;                       /* to be filled; NULL without an output */
};

/* The stream stays where it is until it is closed. */
int hidden_stream_open(struct hidden_stream *s, const struct hidden_stream_config *config, struct err *err);
bool hidden_stream_more(const struct hidden_stream *s);
/* The next piece. The one before has been computed, its output is complete. */
int hidden_stream_next(struct hidden_stream *s, struct hidden_piece *piece, struct err *err);
/* After the last piece, with an output: the file is whole. */
int hidden_stream_finish(struct hidden_stream *s, struct err *err);
/* Ends the threads, wherever they are. */
void hidden_stream_close(struct hidden_stream *s);

#endif
