/* hidden_shards.h - the inputs "hidden-0", "hidden-1" ... of a task, or one input alone, as one run of sequences.
 *
 * One file is open at a time. One thread at a time reads; while a stream does (hidden_stream.h), that is its thread.
 */
#ifndef QUARRY_WORKER_HIDDEN_SHARDS_H
#define QUARRY_WORKER_HIDDEN_SHARDS_H

#include "worker/task.h"
#include "worker/tensor_file.h"

struct hidden_shards {
	const struct task_env *env;     /* borrowed */
	const char *only;               /* the name of the one shard; NULL: they are numbered */
	size_t count, seq_len, width;
	size_t *first;                  /* (count + 1) each shard's first sequence, then how many there are */
	struct tensor_file file;        /* of shard `open` */
	size_t open;
};

/* Every input of the task is a shard; -1 when one is missing or they differ in shape. */
int hidden_shards_open(struct hidden_shards *s, const struct task_env *env, struct err *err);
/* The input of this name (borrowed) is the only shard, which may hold no sequence. */
int hidden_shards_open_only(struct hidden_shards *s, const struct task_env *env, const char *name, struct err *err);
void hidden_shards_close(struct hidden_shards *s);
size_t hidden_shards_total(const struct hidden_shards *s);
/* The first sequence of the shard after that of sequence i < total. */
size_t hidden_shards_end(const struct hidden_shards *s, size_t i);
/* Sequences [first, first + count) of one shard: rows (count, seq_len, width). */
int hidden_shards_read(struct hidden_shards *s, size_t first, size_t count, float *rows, struct err *err);
/* Bytes [from, from + len) of the sequences from `first` on, of one shard. */
int hidden_shards_read_part(struct hidden_shards *s, size_t first, uint64_t from, size_t len, void *bytes,
			    struct err *err);

#endif
