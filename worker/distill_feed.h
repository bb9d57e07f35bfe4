/* distill_feed.h - what training sees: per calibration sequence its embedded tokens, and the original model's last
 * hidden states.
 *
 * The embeddings are looked up once, into a file, because the table may be far away; targets are read from the shards
 * "target-0", "target-1", … whose sequences follow each other. Both are read by sequence. Single-threaded.
 */
#ifndef QUARRY_WORKER_DISTILL_FEED_H
#define QUARRY_WORKER_DISTILL_FEED_H

#include "common/checkpoint.h"
#include "worker/task.h"
#include "worker/tensor_file.h"

struct distill_feed {
	size_t sequences;               /* that training uses, the first ones */
	size_t seq_len, hidden;
	struct distill_shard { const char *path; size_t end; } *shards; /* end: sequences up to and with this one */
	size_t shard_count;
	struct tensor_file embedded;
};

/* Reads the headers of `tokens` and of the targets: shapes, and that there are `sequences`. */
int distill_feed_open(struct distill_feed *d, const struct task_env *env, const struct model_config *config,
		      size_t sequences, struct err *err);
/* Writes the embeddings, of a table of `bits` (worker/model/table.h), to `path`; before any read. */
int distill_feed_embed(struct distill_feed *d, const struct task_env *env, struct checkpoint *ck, int bits,
		       const char *path, struct err *err);
void distill_feed_close(struct distill_feed *d);

/* (seq_len, hidden) of one sequence. */
int distill_feed_input(struct distill_feed *d, size_t sequence, float *out, struct err *err);
int distill_feed_target(struct distill_feed *d, size_t sequence, float *out, struct err *err);

#endif
