#include "worker/hidden_shards.h"

#include <stdio.h>

#include "common/alloc.h"

static int open_shard(struct hidden_shards *s, size_t shard, struct err *err)
{
	char numbered[32];
	const char *name = s->only ? s->only : numbered, *path;

	tensor_file_close(&s->file);
	snprintf(numbered, sizeof(numbered), "hidden-%zu", shard);
	path = task_input_path(s->env, name);
	if (!path)
		return err_set(err, ERR_INVALID, "the task lacks input '%s'", name);
	s->open = shard;
	return hidden_file_open(&s->file, path, err);
}

static int take_shape(struct hidden_shards *s, size_t shard, struct err *err)
{
	if (open_shard(s, shard, err) != 0)
		return -1;
	if (shard == 0) {
		s->seq_len = s->file.seq_len;
		s->width = s->file.width;
	}
	if (s->file.seq_len != s->seq_len || s->file.width != s->width)
		return err_set(err, ERR_CORRUPT, "%s holds sequences of (%zu, %zu); the shards before it have "
			       "(%zu, %zu)", s->file.path, s->file.seq_len, s->file.width, s->seq_len, s->width);
	if (!size_add(s->first[shard], s->file.sequences, &s->first[shard + 1]))
		return err_set(err, ERR_CORRUPT, "%s claims %zu sequences", s->file.path, s->file.sequences);
	return 0;
}

static int open_all(struct hidden_shards *s, struct err *err)
{
	s->first = mem_alloc(s->count + 1, sizeof(*s->first));
	if (!s->first)
		return err_set_nomem(err, "the list of shards");
	for (size_t i = 0; i < s->count; i++)
		if (take_shape(s, i, err) != 0) {
			hidden_shards_close(s);
			return -1;
		}
	return 0;
}

int hidden_shards_open(struct hidden_shards *s, const struct task_env *env, struct err *err)
{
	*s = (struct hidden_shards){ .env = env, .count = env->input_count, .file = TENSOR_FILE_CLOSED };
	if (open_all(s, err) != 0)
		return -1;
	if (hidden_shards_total(s) > 0)
		return 0;
	hidden_shards_close(s);
	return err_set(err, ERR_INVALID, "the task has no hidden states");
}

int hidden_shards_open_only(struct hidden_shards *s, const struct task_env *env, const char *name, struct err *err)
{
	*s = (struct hidden_shards){ .env = env, .only = name, .count = 1, .file = TENSOR_FILE_CLOSED };
	return open_all(s, err);
}

void hidden_shards_close(struct hidden_shards *s)
{
	tensor_file_close(&s->file);
	mem_free(s->first);
	s->first = NULL;
}

size_t hidden_shards_total(const struct hidden_shards *s)
{
	return s->first[s->count];
}

static size_t shard_of(const struct hidden_shards *s, size_t i)
{
	size_t shard = 0;

	while (s->first[shard + 1] <= i)
		shard++;
	return shard;
}

size_t hidden_shards_end(const struct hidden_shards *s, size_t i)
{
	return s->first[shard_of(s, i) + 1];
}

/* Has the shard of sequence i open. */
static int open_shard_of(struct hidden_shards *s, size_t i, struct err *err)
{
	const size_t shard = shard_of(s, i);

	return shard == s->open && s->file.fd >= 0 ? 0 : open_shard(s, shard, err);
}

int hidden_shards_read(struct hidden_shards *s, size_t first, size_t count, float *rows, struct err *err)
{
	if (open_shard_of(s, first, err) != 0)
		return -1;
	return hidden_file_read(&s->file, first - s->first[s->open], count, rows, err);
}

int hidden_shards_read_part(struct hidden_shards *s, size_t first, uint64_t from, size_t len, void *bytes,
			    struct err *err)
{
	if (open_shard_of(s, first, err) != 0)
		return -1;
	return hidden_file_read_part(&s->file, first - s->first[s->open], from, len, bytes, err);
}
