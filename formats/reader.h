/* reader.h - quantized checkpoints back to codes, scales and zero-points.
 *
 * Written from the description of the formats and not from the encoders: nothing is shared with them, so that one
 * checks the other. Input is untrusted: types, shapes, indices and settings are checked, sizes multiplied with
 * overflow checks; what a format can say and this reader does not know is refused by name (ERR_UNSUPPORTED).
 * Regular expressions in settings are Python's; those that POSIX reads alike are taken, others refused.
 * No I/O: tensors come from a callback. Thread-safe; a module's result belongs to the caller.
 */
#ifndef QUARRY_FORMATS_READER_H
#define QUARRY_FORMATS_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/json.h"
#include "common/safetensors.h"

struct stored_tensor {
	enum st_dtype dtype;
	unsigned ndim;                  /* 0..2; a tensor of more dimensions is none that a format has */
	uint64_t shape[2];
	void *bytes;                    /* from mem_alloc(); whoever asked frees it */
	size_t len;
};

/* Reads a whole tensor by name. 0 = *out filled, 1 = there is none of that name, -1 = error. */
struct stored_source {
	int (*read)(void *ctx, const char *name, struct stored_tensor *out, struct err *err);
	void *ctx;
};

/* What config.json says of one module. */
struct stored_settings {
	bool quantized;                 /* as far as config.json tells: its tensors decide */
	int bits;                       /* of a stored code */
	int64_t group_size;             /* -1 = one group per output channel */
	bool symmetric;
};

/* weight(n,k) = scales(n,g) codes(n,k) + offsets(n,g) = scales (codes - zeros), g = group_of(k). */
struct stored_module {
	struct stored_settings settings;
	size_t rows, cols, groups;      /* N, K, groups per row */
	uint8_t *codes;                 /* (N,K) */
	uint32_t *group_of;             /* (K) */
	double *scales, *offsets;       /* (N,G), without rounding */
	double *zeros;                  /* (N,G); where the format stores offsets, -offset / scale rounded once */
};

/* "packed", "mlx", "gptq", "awq", "compressed-tensors", or "dense" when config.json names no quantization; NULL with
 * err set when it names one that is not known. */
const char *codec_detect(const struct json *config, struct err *err);
/* 0 or -1. A dense checkpoint has no quantized modules. */
int stored_settings_of(const struct json *config, const char *module, struct stored_settings *out, struct err *err);
/* `rows`, `cols`: N and K as the model has them, 0 = not known; a module of other sizes is an error. (Packed rows of one
 * group do not tell K when it is no multiple of 32.)
 * 0 = decoded, 1 = the module is not quantized (read <module>.weight), -1 = error; *out is empty unless 0. */
int stored_module_read(const struct json *config, const char *module, uint64_t rows, uint64_t cols,
		       struct stored_source source, struct stored_module *out, struct err *err);
void stored_module_deinit(struct stored_module *m);
/* One row of weights in float64, each rounded once at most. */
void stored_module_row(const struct stored_module *m, size_t row, double *out);

#endif
