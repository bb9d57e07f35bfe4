/* distill_state.h - the state of a model in training, on disk, so that neither memory nor a crash matters.
 *
 *   DIR/state-0/layer-<l>, DIR/state-1/layer-<l>   floats of each layer's state (tuned.h), two generations
 *   DIR/best-0/layer-<l>, DIR/best-1/layer-<l>     layer files of the best probe so far, two generations
 *   DIR/manifest.json                              which of them count, their digests, and how far training has come
 *
 * Invariants:
 *  1. What the manifest names is never written to: after a commit the next step goes into the other generation, and
 *     so does a better probe. A process may die at any moment; what was committed last is whole.
 *  2. A manifest counts only for the same identity (spec and inputs) and backend, and when every file it names has
 *     the digest it gives; anything else is discarded and training starts over. Nothing is flushed to disk but
 *     the manifest: after a power cut the digests tell.
 *  3. Disk: two states (about 12 bytes each per weight when codes are trained), two sets of layer files.
 * Memory: nothing that grows with the model; layers are read and written one at a time. Single-threaded.
 */
#ifndef QUARRY_WORKER_DISTILL_STATE_H
#define QUARRY_WORKER_DISTILL_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/digest.h"
#include "common/err.h"
#include "common/json.h"

enum { DISTILL_CURVE_MAX = 128 };

struct distill_loss { double kl, hidden; };     /* means over tokens */

/* How far training has come: all that is remembered beside the parameters. */
struct distill_course {
	int64_t step;                   /* steps done */
	int64_t probes;                 /* probes done; the first is before the first step */
	struct distill_loss before, best;
	int64_t best_probe;             /* 0 = the start: its layer files are the inputs */
	struct distill_loss sum;        /* since the last point of the curve */
	int64_t summed;
	struct distill_point { int64_t step; struct distill_loss loss; } curve[DISTILL_CURVE_MAX];
	size_t curve_count;
};

/* Whose state it is. */
struct distill_owner {
	char identity[DIGEST_HEX];      /* of spec and inputs */
	const char *backend;            /* "cpu" */
	const char *exact;              /* what determines the backend's bits */
	size_t layers;
	const size_t *floats;           /* of each layer's state; borrowed */
};

struct distill_state {
	const char *dir;                /* borrowed */
	struct distill_owner owner;
	struct distill_course progress;
	int current;                    /* generation that holds the state now */
	int target;                     /* where writes of the step under way go */
	int best;                       /* folder of the best layer files */
	bool committed;                 /* the manifest names `current` as it is */
	bool digesting;                 /* the step under way ends in a commit */
	struct distill_digest { char hex[DIGEST_HEX]; } *files, *best_files; /* (layers) */
};

/* Makes the folder and takes over what was committed there, if it counts: *found. */
int distill_state_open(struct distill_state *s, const char *dir, const struct distill_owner *owner, bool *found,
		       struct err *err);
void distill_state_close(struct distill_state *s);

/* One change of the whole state: begin, write every layer once (each may be read before it is written), end.
 * `commit_follows`: distill_state_commit() may come next. Without an end the change has not happened only as far as
 * commits go: the process has to give up. */
void distill_state_begin(struct distill_state *s, bool commit_follows);
void distill_state_end(struct distill_state *s);
/* Floats of a layer; those from skip_begin to skip_end are left as they are in `floats`. */
int distill_state_read(struct distill_state *s, size_t layer, float *floats, size_t skip_begin, size_t skip_end,
		       struct err *err);
int distill_state_write(struct distill_state *s, size_t layer, const float *floats, struct err *err);

/* Where to write a layer file that may become the best; free with mem_free(). Makes the folder. */
char *distill_state_best_path(struct distill_state *s, size_t layer, struct err *err);
/* Every layer was written there: these are the best from the next commit on. */
int distill_state_take_best(struct distill_state *s, struct err *err);
/* Copies a layer of the best to `path`; ERR_IO when it changed on disk. */
int distill_state_copy_best(struct distill_state *s, size_t layer, const char *path, struct err *err);
/* Copies a whole file; its digest must be sha256, unless NULL. */
int distill_file_copy(const char *from, const char *to, const char *sha256, struct err *err);

/* The curve as [[step, kl, hidden], ...]; NULL when out of memory. */
struct json *distill_curve_json(const struct distill_course *p);

/* From here on this is what a restart finds. */
int distill_state_commit(struct distill_state *s, struct err *err);

/* --- one file of it all (distill_pack.c) -------------------------------------------------------- */

/* Packs what was committed into one safetensors file: tensors "state.<l>" F32, "best.<l>" U8, metadata
 * "manifest". */
int distill_state_pack(struct distill_state *s, const char *path, struct err *err);
/* Takes over a packed state when it counts and is further than s: *taken. A state packed by another host counts when
 * the backend's name is the same. What does not count leaves s as it was. */
int distill_state_unpack(struct distill_state *s, const char *path, bool *taken, struct err *err);

#endif
