/* read_parts.h - private to formats/read*.c: tensors, numbers, bit fields and patterns that formats have in common. */
#ifndef QUARRY_FORMATS_READ_PARTS_H
#define QUARRY_FORMATS_READ_PARTS_H

#include "formats/reader.h"

/* One format. */
struct stored_format {
	const char *name;
	int (*settings)(const struct json *config, const char *module, struct stored_settings *out, struct err *err);
	/* As stored_module_read(); `out` holds the settings and the sizes that are known, and is freed by the caller on
	 * failure. */
	int (*read)(const struct json *config, const char *module, struct stored_source source,
		    struct stored_module *out, struct err *err);
};

extern const struct stored_format read_packed, read_mlx, read_gptq, read_awq, read_compressed_tensors;

/* Tensor <module><suffix>, checked: whole, of a type in `dtypes` (bit 1 << type), of `ndim` dimensions. 0, 1 = absent
 * (an error unless `optional`), -1. */
struct wanted { const char *suffix; uint32_t dtypes; unsigned ndim; bool optional; };
int read_tensor(struct stored_source source, const char *module, struct wanted want, struct stored_tensor *out,
		struct err *err);
void read_tensor_free(struct stored_tensor *t);
int read_expect_shape(const struct stored_tensor *t, const char *module, const char *suffix, uint64_t rows,
		      uint64_t cols, struct err *err);

/* Room for N x K codes and N x G groups; fills rows, cols, groups and group_of by K/G columns each. */
int read_room(struct stored_module *m, const char *module, uint64_t rows, uint64_t cols, uint64_t groups,
	      struct err *err);
/* Columns per group of the settings, dividing K; else an error. */
int read_groups(const struct stored_settings *s, const char *module, uint64_t cols, uint64_t *groups, struct err *err);
/* Codes that fit `words` 32-bit words, a whole number; else an error. */
int read_codes_in(const char *module, uint64_t words, int bits, uint64_t *codes, struct err *err);
/* group_of from an I32 tensor <module><suffix> if there is one. */
int read_group_map(struct stored_source source, const char *module, const char *suffix, struct stored_module *m,
		   struct err *err);
/* Scale i of group g and row n, from element [n][g] or, transposed, [g][n]. Fills m->scales; all must be finite. */
int read_scales(const struct stored_tensor *t, const char *module, bool transposed, struct stored_module *m,
		struct err *err);
/* offsets = -scales * zeros. */
void read_offsets_from_zeros(struct stored_module *m);

/* A bit field of a stream of 32-bit words that are `stride` words apart, the first at `first`. */
uint32_t read_field(const void *words, size_t first, size_t stride, uint64_t bit, int bits);
/* Element i of an F16, BF16 or F32 tensor. */
double read_number(const struct stored_tensor *t, size_t i);

/* Whether a Python regular expression matches `text` from its start. 0, 1 = matches, -1 = not understood. */
int read_matches(const char *pattern, const char *text, struct err *err);

enum { READ_I32 = 1 << ST_I32, READ_U32 = 1 << ST_U32, READ_I64 = 1 << ST_I64, READ_I8 = 1 << ST_I8,
       READ_F32 = 1 << ST_F32, READ_FLOATS = 1 << ST_F16 | 1 << ST_BF16 | 1 << ST_F32 };

#endif
