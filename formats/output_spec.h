/* output_spec.h - a model's modules as they travel in specs of assemble tasks: a list of objects
 * {"name","layer", settings}, every linear of the blocks in model order, then embedding and head where they are quantized.
 */
#ifndef QUARRY_FORMATS_OUTPUT_SPEC_H
#define QUARRY_FORMATS_OUTPUT_SPEC_H

#include "formats/codec.h"

struct output_modules {
	struct codec_module *items;     /* names point into `names` */
	size_t count;
	char (*names)[MODEL_NAME_MAX];
};

/* NULL when out of memory. */
struct json *output_modules_json(const struct codec_module *modules, size_t count);
/* Shapes come from the model; the list must be exactly its modules. 0, or -1 with *out empty. */
int output_modules_read(struct output_modules *out, const struct model_config *config, const struct json *list,
			struct err *err);
void output_modules_deinit(struct output_modules *m);

#endif
