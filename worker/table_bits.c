#include "worker/table_bits.h"

#include "formats/embedding.h"

static int read_one(const struct json *spec, const char *key, int *bits, struct err *err)
{
	const int64_t asked = json_get_int(spec, key, json_get(spec, key) ? 0 : 16);

	if (!embedding_bits_known(asked))
		return err_set(err, ERR_INVALID, "\"%s\" of the task must be 16, 8, 6 or 4", key);
	*bits = (int)asked;
	return 0;
}

int table_bits_read(struct table_bits *t, const struct json *spec, struct err *err)
{
	if (read_one(spec, "embeddings", &t->embeddings, err) != 0)
		return -1;
	return read_one(spec, "lm_head", &t->lm_head, err);
}
