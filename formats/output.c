/* output.c - the formats that jobs can write, by the words of recipes. */
#include "formats/output.h"

#include <string.h>

#include "formats/codecs.h"
#include "formats/gguf_blocks.h"

/* A codec's own words are repeated here, as C needs constants; a test holds them equal. */
const struct output_format output_formats[] = {
	{ "packed", "codes, scales and zero-points exactly as quantized; the source of every other format", true,
	  &codec_packed },
	{ "mlx", "MLX affine quantization for mlx-lm; zero-points kept exactly as biases", false, &codec_mlx },
	{ "gguf", "one file with tokenizer and metadata for llama.cpp, Ollama and LM Studio", false, NULL },
	{ "compressed-tensors", "compressed-tensors pack-quantized for vLLM, SGLang and transformers; integer zero-points",
	  false, &codec_compressed_tensors },
	{ "gptq", "GPTQ tensors for GPTQModel, transformers and vLLM; integer zero-points", false, &codec_gptq },
	{ "awq", "AWQ gemm tensors for vLLM, SGLang and transformers; 4 bits, integer zero-points", false, &codec_awq },
	{ "dense", "quantized weights written out as BF16; loads wherever the original model does", false, &codec_dense },
	{ "dense-f16", "quantized weights written out as F16, for runtimes without BF16", false, &codec_dense_f16 },
	{ "dense-f32", "quantized weights written out as F32, without any rounding; for comparisons", false,
	  &codec_dense_f32 },
	{ NULL, NULL, false, NULL },
};

const struct output_format *output_format_find(const char *name)
{
	for (const struct output_format *f = output_formats; f->name; f++)
		if (strcmp(f->name, name) == 0)
			return f;
	return NULL;
}

unsigned output_zero_parts(const struct output_format *f, const struct codec_module *m)
{
	if (m->settings.skip || m->layer < 0)
		return 0;
	if (!f->codec)
		return gguf_zero_parts(m);
	return f->codec->zero_parts ? f->codec->zero_parts(m) : 0;
}

bool output_in_halves(const struct output_format *f)
{
	return !f->codec || (f->codec->other_dtype && strcmp(f->codec->other_dtype, "F16") == 0);
}
