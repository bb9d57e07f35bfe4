/* The list of formats. Its order is the order in which sentences name those that would fit. */
#include <string.h>

#include "formats/codecs.h"

const struct codec *const codec_list[] = {
	&codec_packed,
	&codec_mlx,
	&codec_compressed_tensors,
	&codec_gptq,
	&codec_awq,
	&codec_dense,
	&codec_dense_f16,
	&codec_dense_f32,
	NULL,
};

const struct codec *codec_find(const char *name)
{
	for (const struct codec *const *c = codec_list; *c; c++)
		if (strcmp((*c)->name, name) == 0)
			return *c;
	return NULL;
}

size_t codec_group(const struct codec_module *m)
{
	return m->settings.group_size > 0 ? (size_t)m->settings.group_size : (size_t)m->cols;
}

unsigned codec_zero_parts(const struct codec_module *m)
{
	const struct module_settings *s = &m->settings;

	return s->symmetric || s->zero_point == ZERO_INTEGER ? 1 : m->zero_parts;
}
