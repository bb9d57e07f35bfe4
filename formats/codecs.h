/* codecs.h - private to formats/: the rows of formats/table.c. */
#ifndef QUARRY_FORMATS_CODECS_H
#define QUARRY_FORMATS_CODECS_H

#include "formats/codec.h"

extern const struct codec codec_packed, codec_mlx, codec_compressed_tensors, codec_gptq, codec_awq,
	codec_dense, codec_dense_f16, codec_dense_f32;

#endif
