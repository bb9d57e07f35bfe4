/* hidden_shards.h - the inputs "hidden-0", "hidden-1" ... of a task as one run of sequences.
 *
 * One file is open at a time. Single-threaded.
 */
#ifndef QUARRY_WORKER_HIDDEN_SHARDS_H
#define QUARRY_WORKER_HIDDEN_SHARDS_H

#include "worker/task.h"
#include "worker/tensor_file.h"

struct hidden_shards {
	const struct task_env *env;     /* borrowed */
	size_t count, seq_len, width;
	size_t *first;                  /* (count + 1) each shard's first sequence, then how many there are */
	struct tensor_file file;        /* of shard `open` */
	size_t open;
};

/* Every input of the task is a shard; -1 when one is missing or they differ in shape. */
int hidden_shards_open(struct hidden_shards *s, const struct task_env *env, struct err *err);
void hidden_shards_close(struct hidden_shards *s);
size_t hidden_shards_total(const struct hidden_shards *s);
/* The first sequence of the shard after that of sequence i < total. */
size_t hidden_shards_end(const struct hidden_shards *s, size_t i);
/* Sequences [first, first + count) of one shard: rows (count, seq_len, width). */
int hidden_shards_read(struct hidden_shards *s, size_t first, size_t count, float *rows, struct err *err);

#endif
