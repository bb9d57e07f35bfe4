/* settings.h - the modules of a stored checkpoint for people: equal ones of several layers in one row. */
#ifndef QUARRY_CLI_SETTINGS_H
#define QUARRY_CLI_SETTINGS_H

#include "formats/stored_folder.h"

enum { SETTING_MAX = 160, LAYERS_MAX_TEXT = 256 };

/* How module `i` of the blocks is stored: "4 bits, groups of 64, any zero-points", "Q4_1, 4 bits, ...", "BF16". */
void setting_text(struct stored_folder *f, size_t i, char out[SETTING_MAX]);

struct setting_row {
	char layers[LAYERS_MAX_TEXT];   /* "0-11", "0, 2-5" */
	const char *module;             /* "self_attn.q_proj" */
	uint64_t rows, cols;
	char setting[SETTING_MAX];
	double bits_per_weight;
};
/* Calls `each` for every row, modules in model order; non-zero stops and is returned. -1 with err when out of memory. */
int setting_rows(struct stored_folder *f, int (*each)(void *ctx, const struct setting_row *row), void *ctx, struct err *err);
/* The same for a table (0 the embedding, 1 the head): false when the model has no such table of its own. */
bool setting_table(struct stored_folder *f, int table, struct setting_row *out);

#endif
