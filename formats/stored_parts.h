/* stored_parts.h - private to formats/stored_*.c: what a folder of safetensors files and a GGUF file have in common. */
#ifndef QUARRY_FORMATS_STORED_PARTS_H
#define QUARRY_FORMATS_STORED_PARTS_H

#include "common/findings.h"
#include "formats/stored_folder.h"

enum { STORED_CONFIG_MAX = 1 << 20, STORED_PIECE_BYTES = 1 << 20 };

/* A float tensor of the checkpoint; a vector has cols = 1. */
struct stored_shape { enum st_dtype dtype; unsigned ndim; uint64_t rows, cols; };

/* Names are those of the checkpoint, modules without ".weight". */
struct stored_ops {
	/* 0; 1 when there is no such tensor of plain numbers. */
	int (*find)(struct stored_folder *f, const char *name, struct stored_shape *out);
	/* Rows of it as they are stored; F16, BF16 or F32. */
	int (*rows)(struct stored_folder *f, const char *name, uint64_t row, uint64_t rows, void *out, struct err *err);
	/* Whether a module of this name and shape is quantized, and how. 0 or -1. */
	int (*linear)(struct stored_folder *f, const char *module, struct module_settings *settings,
		      struct stored_linear *out, struct err *err);
	/* Rows [row, row + rows) of a quantized module, as stored; *whole = it was read whole all the same. */
	int (*module)(struct stored_folder *f, const char *module, uint64_t row, uint64_t rows, uint64_t all, uint64_t cols,
		      struct stored_module *out, bool *whole, struct err *err);
	/* Each tensor that nothing has asked for. */
	void (*left_over)(struct stored_folder *f, struct findings *faults);
	char *(*text)(struct stored_folder *f, const char *file, size_t *len, struct err *err);
	int (*files)(const struct stored_folder *f, int (*each)(void *ctx, const char *name), void *ctx);
	void (*close)(struct stored_folder *f);
};

extern const struct stored_ops stored_safetensors, stored_gguf;

/* Each opens its back-end and reads config.json into f->plain, f->config_text, f->config (and f->stored_config). */
int stored_safetensors_open(struct stored_folder *f, struct findings *faults);
int stored_gguf_open(struct stored_folder *f, struct findings *faults);
/* Puts the tables whose bits are known behind the linears of f->modules. */
void stored_add_tables(struct stored_folder *f);
/* Takes config.json's text: parsed, without the members that tell of a quantization. */
int stored_take_config(struct stored_folder *f, const char *text, size_t len, struct findings *faults);
/* config.json made from metadata, for files that carry none; `biased`, `tied`: what the file's tensors say. */
struct gr_file;
int stored_gguf_config(const struct gr_file *g, bool biased, bool tied, uint64_t vocab, struct buf *out, struct err *err);

/* --- modules ------------------------------------------------------------------------------------- */

/* What the values of a module say. */
struct stored_facts {
	bool ordered;                   /* column k belongs to group k / (K/G) */
	bool positive;                  /* every scale is above 0, as stored */
	bool symmetric;                 /* every zero-point is 2^(b-1) */
	unsigned zero_parts;            /* every zero-point is a multiple of 1/zero_parts; 0 = of nothing */
	size_t groups;                  /* the fewest that hold the same values */
	int bits;                       /* that the largest code needs */
};
/* value = s (q - z) with s > 0: codes and zeros of a group with a negative scale are mirrored; one without a scale gets
 * the codes 0. Columns in order are told first. */
void stored_tidy(struct stored_module *m, struct stored_facts *facts);
/* Whether groups may be joined is up to the format. */
void stored_look(const struct stored_module *m, bool joins, struct stored_facts *facts);
/* Joins equal neighbours to `groups` per row: 0, or 1 when they are not equal. */
int stored_join(struct stored_module *m, size_t groups);

/* Decodes quantized module `i` of the blocks, tidied; facts (may be NULL): what stored_tidy() says. *out is the caller's. */
int stored_decode(struct stored_folder *f, size_t i, struct stored_module *out, struct stored_facts *facts, struct err *err);
/* Frees the module that rows() keeps. */
void stored_forget(struct stored_folder *f);

/* Rows of a tensor as they are handed out, in float32. */
int stored_rows_f32(struct stored_folder *f, const char *name, uint64_t row, uint64_t rows, float *out, struct err *err);
/* Shape and type of a tensor as it is handed out; 1 = there is none. */
int stored_handed(struct stored_folder *f, const char *name, struct stored_shape *out);

/* A GGUF tensor of blocks as codes: `bytes` holds `rows` rows. Groups are the smallest that the type has. */
int stored_blocks(uint32_t type, const char *name, const unsigned char *bytes, size_t rows, size_t cols,
		  struct stored_module *out, struct err *err);
/* Bits of a code and columns of a group; false for types of plain numbers. */
bool stored_block_settings(uint32_t type, int *bits, unsigned *group);

#endif
