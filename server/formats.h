/* formats.h - the checkpoint formats that `assemble` tasks write, one row of data each.
 *
 * A row says which tensors replace `<module>.weight` of a quantized module, which bits the format can
 * hold, and how config.json changes. Everything else of the model is carried over in the source's dtype.
 * To add a format: a row in formats.c, what `assemble` does for its name in the worker, docs/formats.md.
 */
#ifndef QUARRY_SERVER_FORMATS_H
#define QUARRY_SERVER_FORMATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/recipe.h"

enum format_shape {
	SHAPE_WEIGHT,   /* (N, K) */
	SHAPE_CODES,    /* (N, words of a packed row) */
	SHAPE_GROUPS,   /* (N, G) */
};

struct format_tensor {
	const char *suffix;             /* after the module name */
	const char *dtype;              /* safetensors spelling */
	enum format_shape shape;
};

struct format {
	const char *name;               /* in recipes, in task specs, and the folder's name */
	bool always;                    /* written whether asked for or not */
	int bits_min, bits_max;
	const char *config_dtype;       /* dtype written to config.json; NULL keeps the source's */
	const char *quant_method;       /* quantization_config is written when not NULL */
	const char *meta_format;        /* metadata "format" of the safetensors files */
	bool meta_modules;              /* metadata holds the settings of the file's modules */
	const char *about;              /* a sentence for the model card */
	const struct format_tensor *tensors; /* ends with suffix == NULL */
};

extern const struct format formats[]; /* ends with name == NULL */

const struct format *format_find(const char *name); /* NULL when unknown */

/* Shape of one tensor of a quantized module of `rows` x `cols`. */
void format_tensor_shape(const struct format_tensor *t, const struct module_settings *s, uint64_t rows,
			 uint64_t cols, uint64_t shape[2]);

#endif
