/* codec.h - checkpoint formats: what they can hold, which tensors they write, how codes become bytes.
 *
 * One struct codec per format, listed in formats/table.c; no code elsewhere asks for a format by name.
 * A format takes a quantized module, value = s (q - z), and says whether it can hold it exactly as it is;
 * a module that it cannot hold is refused with what would fit, never rounded in silence. Scales and
 * offsets of the intermediate are IEEE half values already (struct grid, `half`), so that formats that store
 * s and s z in 16 bits lose nothing.
 * Pure: no I/O; thread-safe. encode() allocates nothing. Layouts: docs/formats.md.
 */
#ifndef QUARRY_FORMATS_CODEC_H
#define QUARRY_FORMATS_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/json.h"
#include "common/model_config.h"
#include "common/recipe.h"
#include "common/safetensors.h"

enum { CODEC_TENSORS_MAX = 5 };

/* A linear module of the model and what was asked of it. */
struct codec_module {
	const char *name;               /* "model.layers.0.self_attn.q_proj" */
	int64_t layer;                  /* -1: not in a block ("lm_head"); `linear` says nothing then */
	enum block_linear linear;
	uint64_t rows, cols;            /* N, K */
	struct module_settings settings;
	/* Every z is a multiple of 1/zero_parts; 0 = any number. Matters where the settings ask for float
	 * zero-points: integer and symmetric ones have 1 part whatever stands here (codec_zero_parts). */
	unsigned zero_parts;
};

/* One tensor that takes the place of <module>.weight. */
struct codec_tensor {
	const char *suffix;             /* ".qweight" */
	enum st_dtype dtype;
	unsigned ndim;
	uint64_t shape[2];
};

/* A quantized module in memory, borrowed. */
struct codec_values {
	size_t rows, cols, group;       /* group: columns per group */
	int bits;
	const uint8_t *codes;           /* (N,K) */
	const float *scales, *zeros;    /* (N,K/group) */
};

/* What becomes of an embedding or head that was asked for in fewer than 16 bits (formats/embedding.h). */
enum codec_tables {
	CODEC_TABLES_REFUSED,
	CODEC_TABLES_CARRIED,           /* stored as the source has them, the bits noted in config.json */
	CODEC_TABLES_ROUNDED,           /* <name>.weight in the format's dtype, rounded first */
	CODEC_TABLES_CODED,             /* modules like those of the blocks, 8 and 4 bits */
};

struct codec {
	const char *name;               /* in recipes, and the folder's name */
	const char *about;              /* a sentence for the model card */
	bool always;                    /* written whether asked for or not */
	const char *meta_format;        /* metadata "format" of safetensors files */
	bool meta_modules;              /* metadata holds the settings of the file's modules */
	const char *config_dtype;       /* dtype written to config.json; NULL keeps the source's */
	const char *other_dtype;        /* dtype ("F16") of tensors that are not quantized; NULL keeps the source's */
	enum codec_tables tables;
	bool always_index;              /* an index file also for one shard */
	const char *extra_file;         /* a file that holds config()'s "quantization_config" alone, or NULL */

	/* 0 when the format can hold the module; else -1, and each reason with what would fit (problems may be
	 * NULL). A skipped module fits everywhere. */
	int (*check)(const struct codec_module *m, struct problems *problems);
	/* The same for what modules of one model must have in common; those that check() refuses are not
	 * looked at. NULL when nothing. */
	int (*check_model)(const struct codec_module *modules, size_t count, struct problems *problems);
	/* What a known reader makes of such modules that a user should hear of: sentences, or nothing. 0, or -1 without memory.
	 * NULL when nothing is known. */
	int (*caution)(const struct codec_module *modules, size_t count, struct problems *warnings);
	/* 0 when the format takes any z for this module; n when z must be a multiple of 1/n. Asked before
	 * quantizing, so that z can be chosen so. NULL = 0. */
	unsigned (*zero_parts)(const struct codec_module *m);
	/* The tensors of a module that check() accepts: their number, at most CODEC_TENSORS_MAX. */
	unsigned (*tensors)(const struct codec_module *m, struct codec_tensor *out);
	/* Their bytes: out[i] has the size of tensor i and the alignment of its type. ERR_NUMERIC, naming module,
	 * row and group, when a value does not fit exactly; ERR_REFUSED when the values are not those of the module. */
	int (*encode)(const struct codec_module *m, const struct codec_values *v, void *const *out,
		      struct err *err);
	/* Members of config.json that the format needs, added to an object that has none; every module of the model
	 * in order, skipped ones too; `source` is the model's own config.json. -1 when out of memory. May be NULL. */
	int (*config)(const struct codec_module *modules, size_t count, const struct json *source,
		      struct json *config);
};

extern const struct codec *const codec_list[]; /* ends with NULL */
const struct codec *codec_find(const char *name); /* NULL when unknown */

/* Columns per group of a module's settings. */
size_t codec_group(const struct codec_module *m);
/* 1 for integer and symmetric zero-points, else m->zero_parts. */
unsigned codec_zero_parts(const struct codec_module *m);

#endif
