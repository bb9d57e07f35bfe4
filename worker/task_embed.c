/* task_embed.c - token ids of one calibration shard to the hidden states that enter block 0. */
#include "common/alloc.h"
#include "common/checkpoint.h"
#include "worker/model/embed.h"
#include "worker/model/table.h"
#include "worker/task_kinds.h"
#include "worker/tensor_file.h"

enum { PIECE_TOKENS = 2048 }; /* looked up at a time */

static int embed_rows(struct checkpoint *ck, const int32_t *ids, size_t count, size_t seq_len,
		      const char *path, struct err *err)
{
	struct tensor_file out = TENSOR_FILE_CLOSED;
	size_t hidden = ck->config.hidden, piece = seq_len >= PIECE_TOKENS ? 1 : PIECE_TOKENS / seq_len;
	float *rows = mem_alloc(piece * seq_len * hidden, sizeof(*rows));
	int rc = -1;

	if (!rows)
		return err_set_nomem(err, "hidden states");
	if (hidden_file_create(&out, path, count, seq_len, hidden, err) == 0)
		rc = 0;
	for (size_t first = 0; rc == 0 && first < count; first += piece) {
		size_t now = count - first < piece ? count - first : piece;

		rc = embed_tokens(ck, TABLE_UNTOUCHED, ids + first * seq_len, now * seq_len, rows, err);
		if (rc == 0)
			rc = hidden_file_write(&out, first, now, rows, err);
	}
	tensor_file_close(&out);
	mem_free(rows);
	return rc;
}

static int32_t *read_ids(const struct task_env *env, size_t first, size_t count, size_t seq_len,
			 struct err *err)
{
	const struct task_input *input = task_input_find(env, "tokens", err);
	struct tensor_file tokens;
	int32_t *ids = NULL;

	if (!input || tokens_file_open(&tokens, input->path, err) != 0)
		return NULL;
	if (tokens.seq_len != seq_len)
		err_set(err, ERR_CORRUPT, "%s holds sequences of %zu tokens, not %zu", input->path,
			tokens.seq_len, seq_len);
	else if (!(ids = mem_alloc(count * seq_len, sizeof(*ids))))
		err_set_nomem(err, "token ids");
	else if (tokens_file_read(&tokens, first, count, ids, err) != 0) {
		mem_free(ids);
		ids = NULL;
	}
	tensor_file_close(&tokens);
	return ids;
}

int task_embed(const struct json *spec, struct task_env *env, struct json **result, struct err *err)
{
	struct checkpoint ck;
	int64_t first, count, seq_len;
	int32_t *ids;
	char *path;
	int rc = -1;

	if (json_require_int(spec, "first", 0, INT32_MAX, &first, err) != 0 ||
	    json_require_int(spec, "count", 1, 65536, &count, err) != 0 ||
	    json_require_int(spec, "seq_len", 2, 1 << 20, &seq_len, err) != 0)
		return -1;
	ids = read_ids(env, (size_t)first, (size_t)count, (size_t)seq_len, err);
	if (!ids)
		return -1;
	path = task_output_path(env, "hidden", err);
	if (path && checkpoint_open(&ck, env->model, NULL, err) == 0) {
		rc = embed_rows(&ck, ids, (size_t)count, (size_t)seq_len, path, err);
		checkpoint_close(&ck);
	}
	if (rc == 0 && !(*result = json_new_object()))
		rc = err_set_nomem(err, "a result");
	mem_free(path);
	mem_free(ids);
	return rc;
}
