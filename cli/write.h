/* write.h - a stored checkpoint written as a folder of another format: weights, config.json, index, tokenizer, model card. */
#ifndef QUARRY_CLI_WRITE_H
#define QUARRY_CLI_WRITE_H

#include "cli/advance.h"
#include "formats/stored_folder.h"

struct written {
	uint64_t bytes;                 /* of weight files */
	double bits_per_weight;         /* in the quantized modules; 0 when there is none */
	double rounding;                /* dense formats: the largest relative error of rounding a weight */
};

/* 0 when `format` can take the checkpoint; else -1 and every sentence: err the first, all in `problems`. */
int write_check(struct stored_folder *f, const struct output_format *format, struct problems *problems, struct err *err);
/* Fills the folder `dir`, which is there and empty. The checkpoint passed write_check(). `name`: of the model, for the card. */
int write_checkpoint(struct stored_folder *f, const struct output_format *format, uint64_t max_shard_size, const char *name,
		     const char *dir, struct advance *advance, struct written *out, struct err *err);

/* README.md of a converted checkpoint. */
int write_card(struct stored_folder *f, const struct output_format *format, const char *name, const struct written *w,
	       struct buf *out, struct err *err);

#endif
