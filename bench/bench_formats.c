/* Speed of writing each format, one core.
 *
 * bench_formats
 * A module of 4096 x 4096 weights in groups of 64 is encoded again and again; the figure is packed input - codes of
 * b bits, float32 scales and zero-points - per second, best of several runs, and its ratio to memcpy of the same bytes
 * in the same run. The bar is 500 MB/s. Unpacking the codes from the intermediate is the last column.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/alloc.h"
#include "common/packed.h"
#include "formats/codec.h"

enum { ROWS = 4096, COLS = 4096, GROUP = 64, RUNS = 5 };

struct input { uint8_t *codes; float *scales, *zeros; uint32_t *words; };

/* Of this thread: other processes on the machine do not count. */
static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *need(size_t bytes)
{
	void *p = mem_alloc_aligned(bytes, 1);

	if (p) {
		memset(p, 0, bytes);
		return p;
	}
	fprintf(stderr, "bench_formats: out of memory\n");
	exit(1);
}

static double packed_bytes(int bits)
{
	return (double)ROWS * COLS * bits / 8 + 8.0 * ROWS * (COLS / GROUP);
}

static struct codec_module module(int bits, bool integer)
{
	return (struct codec_module){
		.name = "model.layers.0.mlp.up_proj", .linear = LIN_UP, .rows = ROWS, .cols = COLS,
		.settings = { .bits = bits, .group_size = GROUP, .zero_point = integer ? ZERO_INTEGER : ZERO_FLOAT },
	};
}

static struct codec_values values(const struct input *in, int bits, bool integer)
{
	uint64_t x = 88172645463325252u;

	for (size_t i = 0; i < (size_t)ROWS * COLS; i++) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		in->codes[i] = (uint8_t)(x >> 32 & ((1u << bits) - 1));
	}
	for (size_t i = 0; i < (size_t)ROWS * (COLS / GROUP); i++) {
		in->scales[i] = (1 + (float)(i % 1024) / 1024) / 256;
		in->zeros[i] = integer ? (float)(i % (1u << bits)) : (1 + (float)(i * 7 % 1024) / 1024) / 64 / in->scales[i];
	}
	return (struct codec_values){ ROWS, COLS, GROUP, bits, in->codes, in->scales, in->zeros };
}

static double copy_s(double bytes)
{
	char *from = need((size_t)bytes), *to = need((size_t)bytes);
	double best = 1e9;

	for (int i = 0; i < RUNS; i++) {
		const double start = now_s();

		memcpy(to, from, (size_t)bytes);
		from[i] = to[(size_t)bytes - 1];
		best = now_s() - start < best ? now_s() - start : best;
	}
	mem_free(from);
	mem_free(to);
	return best;
}

static double unpack_s(const struct input *in, int bits)
{
	const size_t words = packed_row_words(COLS, bits);
	double best = 1e9;

	for (size_t r = 0; r < ROWS; r++)
		packed_pack_row(in->codes + r * COLS, COLS, bits, in->words + r * words);
	for (int i = 0; i < RUNS; i++) {
		const double start = now_s();

		for (size_t r = 0; r < ROWS; r++)
			packed_unpack_row(in->words + r * words, COLS, bits, in->codes + r * COLS);
		best = now_s() - start < best ? now_s() - start : best;
	}
	return best;
}

static double encode_s(const struct codec *codec, const struct codec_module *m, const struct codec_values *v)
{
	struct codec_tensor tensors[CODEC_TENSORS_MAX];
	void *out[CODEC_TENSORS_MAX];
	const unsigned count = codec->tensors(m, tensors);
	struct err err = ERR_INIT;
	double best = 1e9;

	for (unsigned i = 0; i < count; i++)
		out[i] = need((size_t)(tensors[i].shape[0] * (tensors[i].ndim == 2 ? tensors[i].shape[1] : 1) *
				       st_dtype_bits(tensors[i].dtype) / 8));
	for (int i = 0; i < RUNS; i++) {
		const double start = now_s();

		if (codec->encode(m, v, out, &err) != 0) {
			fprintf(stderr, "bench_formats: %s: %s\n", codec->name, err.text);
			exit(1);
		}
		best = now_s() - start < best ? now_s() - start : best;
	}
	for (unsigned i = 0; i < count; i++)
		mem_free(out[i]);
	return best;
}

static void one(const struct codec *codec, const struct input *in, int bits)
{
	struct codec_module m = module(bits, false);
	const bool integer = codec->check(&m, NULL) != 0;
	const double bytes = packed_bytes(bits);
	struct codec_values v;
	double seconds;

	m = module(bits, integer);
	if (codec->check(&m, NULL) != 0)
		return;
	v = values(in, bits, integer);
	seconds = encode_s(codec, &m, &v);
	printf("%-19s %d bits  %7.0f MB/s  %5.1f x the bar  %5.3f of memcpy  unpacking %7.0f MB/s\n", codec->name, bits,
	       bytes / seconds / 1e6, bytes / seconds / 5e8, copy_s(bytes) / seconds, bytes / unpack_s(in, bits) / 1e6);
}

int main(void)
{
	const size_t count = (size_t)ROWS * COLS;
	const struct input in = { need(count), need(count / GROUP * 4), need(count / GROUP * 4), need(count) };

	for (const struct codec *const *c = codec_list; *c; c++)
		for (int bits = 2; bits <= 8; bits++)
			one(*c, &in, bits);
	mem_free(in.codes);
	mem_free(in.scales);
	mem_free(in.zeros);
	mem_free(in.words);
	return 0;
}
