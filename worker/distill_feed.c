#include "worker/distill_feed.h"

#include <stdio.h>

#include "common/alloc.h"
#include "worker/model/embed.h"

enum { EMBED_SEQUENCES = 16 };

void distill_feed_close(struct distill_feed *d)
{
	tensor_file_close(&d->embedded);
	mem_free(d->shards);
	*d = (struct distill_feed){ .embedded = TENSOR_FILE_CLOSED };
}

static int open_tokens(struct distill_feed *d, const struct task_env *env, struct err *err)
{
	const struct task_input *input = task_input_find(env, "tokens", err);
	struct tensor_file tokens;
	int rc = 0;

	if (!input || tokens_file_open(&tokens, input->path, err) != 0)
		return -1;
	d->seq_len = tokens.seq_len;
	if (tokens.sequences < d->sequences || d->sequences == 0 || d->seq_len == 0)
		rc = err_set(err, ERR_INVALID, "the task wants %zu sequences; its tokens are %zu of length %zu",
			     d->sequences, tokens.sequences, tokens.seq_len);
	tensor_file_close(&tokens);
	return rc;
}

static int add_shard(struct distill_feed *d, const char *path, struct err *err)
{
	const size_t before = d->shard_count > 0 ? d->shards[d->shard_count - 1].end : 0;
	struct tensor_file f;
	int rc = 0;

	if (hidden_file_open(&f, path, err) != 0)
		return -1;
	if (f.width != d->hidden || f.seq_len != d->seq_len)
		rc = err_set(err, ERR_CORRUPT, "%s holds hidden states (%zu, %zu), not (%zu, %zu) as the model and its "
			     "tokens", path, f.seq_len, f.width, d->seq_len, d->hidden);
	else
		d->shards[d->shard_count++] = (struct distill_shard){ path, before + f.sequences };
	tensor_file_close(&f);
	return rc;
}

static int open_targets(struct distill_feed *d, const struct task_env *env, struct err *err)
{
	size_t there = 0;
	char name[32];

	d->shards = mem_alloc(env->input_count, sizeof(*d->shards));
	if (!d->shards)
		return err_set_nomem(err, "the inputs of a task");
	while (there < d->sequences) {
		const struct task_input *input;

		snprintf(name, sizeof(name), "target-%zu", d->shard_count);
		input = task_input_find(env, name, err);
		if (!input || add_shard(d, input->path, err) != 0)
			return -1;
		there = d->shards[d->shard_count - 1].end;
	}
	return 0;
}

int distill_feed_open(struct distill_feed *d, const struct task_env *env, const struct model_config *config,
		      size_t sequences, struct err *err)
{
	*d = (struct distill_feed){ .sequences = sequences, .hidden = config->hidden, .embedded = TENSOR_FILE_CLOSED };
	if (open_tokens(d, env, err) == 0 && open_targets(d, env, err) == 0)
		return 0;
	distill_feed_close(d);
	return -1;
}

/* --- embedding ------------------------------------------------------------------------------------ */

static int embed_piece(struct distill_feed *d, struct checkpoint *ck, int bits, struct tensor_file *tokens, size_t first,
		       size_t count, int32_t *ids, float *rows, struct err *err)
{
	if (tokens_file_read(tokens, first, count, ids, err) != 0 ||
	    embed_tokens(ck, bits, ids, count * d->seq_len, rows, err) != 0)
		return -1;
	return hidden_file_write(&d->embedded, first, count, rows, err);
}

int distill_feed_embed(struct distill_feed *d, const struct task_env *env, struct checkpoint *ck, int bits,
		       const char *path, struct err *err)
{
	const size_t most = d->sequences < EMBED_SEQUENCES ? d->sequences : EMBED_SEQUENCES;
	struct tensor_file tokens = TENSOR_FILE_CLOSED;
	size_t ids_count, floats;
	int32_t *ids = NULL;
	float *rows = NULL;
	int rc = -1;

	if (size_mul(most, d->seq_len, &ids_count) && size_mul(ids_count, d->hidden, &floats)) {
		ids = mem_alloc(ids_count, sizeof(*ids));
		rows = mem_alloc_aligned(floats, sizeof(*rows));
	}
	if (!ids || !rows)
		err_set_nomem(err, "hidden states");
	else if (tokens_file_open(&tokens, task_input_path(env, "tokens"), err) == 0)
		rc = hidden_file_create(&d->embedded, path, d->sequences, d->seq_len, d->hidden, err);
	for (size_t first = 0; rc == 0 && first < d->sequences; first += most) {
		const size_t count = d->sequences - first < most ? d->sequences - first : most;

		rc = task_step(env, 0, "embedding the calibration tokens", err);
		if (rc == 0)
			rc = embed_piece(d, ck, bits, &tokens, first, count, ids, rows, err);
	}
	tensor_file_close(&tokens);
	mem_free(ids);
	mem_free(rows);
	return rc;
}

/* --- reading ------------------------------------------------------------------------------------------ */

int distill_feed_input(struct distill_feed *d, size_t sequence, float *out, struct err *err)
{
	return hidden_file_read(&d->embedded, sequence, 1, out, err);
}

int distill_feed_target(struct distill_feed *d, size_t sequence, float *out, struct err *err)
{
	size_t shard = 0, before;
	struct tensor_file f;
	int rc;

	while (d->shards[shard].end <= sequence)
		shard++;
	before = shard > 0 ? d->shards[shard - 1].end : 0;
	if (hidden_file_open(&f, d->shards[shard].path, err) != 0)
		return -1;
	rc = hidden_file_read(&f, sequence - before, 1, out, err);
	tensor_file_close(&f);
	return rc;
}
