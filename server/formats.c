/* The table of output formats. Rows are data: no code elsewhere asks for a format by name. */
#include "server/formats.h"

#include <string.h>

#include "common/packed.h"

static const struct format_tensor packed_tensors[] = {
	{ ".codes", "U32", SHAPE_CODES },
	{ ".scales", "F32", SHAPE_GROUPS },
	{ ".zeros", "F32", SHAPE_GROUPS },
	{ NULL, NULL, SHAPE_WEIGHT },
};

static const struct format_tensor dense_tensors[] = {
	{ ".weight", "BF16", SHAPE_WEIGHT },
	{ NULL, NULL, SHAPE_WEIGHT },
};

const struct format formats[] = {
	{ .name = "packed", .always = true, .bits_min = 1, .bits_max = 8, .quant_method = "quarry",
	  .meta_format = "quarry-packed", .meta_modules = true, .tensors = packed_tensors,
	  .about = "codes, scales and zero-points exactly as quantized; the source of every other format" },
	{ .name = "dense", .bits_min = 1, .bits_max = 8, .config_dtype = "bfloat16", .meta_format = "pt",
	  .tensors = dense_tensors,
	  .about = "quantized weights written out as BF16; loads wherever the original model does" },
	{ .name = NULL },
};

const struct format *format_find(const char *name)
{
	for (const struct format *f = formats; f->name; f++)
		if (strcmp(f->name, name) == 0)
			return f;
	return NULL;
}

void format_tensor_shape(const struct format_tensor *t, const struct module_settings *s, uint64_t rows,
			 uint64_t cols, uint64_t shape[2])
{
	shape[0] = rows;
	shape[1] = cols;
	switch (t->shape) {
	case SHAPE_WEIGHT:
		break;
	case SHAPE_CODES:
		shape[1] = packed_row_words(cols, s->bits);
		break;
	case SHAPE_GROUPS:
		shape[1] = s->group_size > 0 ? cols / (uint64_t)s->group_size : 1;
		break;
	}
}
