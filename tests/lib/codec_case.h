/* codec_case.h - a made-up quantized module, its tensors in one format, and a reader's view of them.
 *
 * Codes are random and cover their range; scales are IEEE halves; zero-points are of the kind asked for. Failures
 * of memory end the test. Used by tests, the bench and tests/tools/codec_files.
 */
#ifndef QUARRY_TESTS_CODEC_CASE_H
#define QUARRY_TESTS_CODEC_CASE_H

#include "formats/codec.h"
#include "formats/reader.h"

enum zero_kind {
	KIND_FLOAT,             /* s z is a half */
	KIND_QUARTERS,          /* z a multiple of 1/4 */
	KIND_HALVES,            /* z a multiple of 1/2 */
	KIND_INTEGER,
	KIND_SYMMETRIC,
	KINDS
};

struct codec_case {
	char name[64];
	struct codec_module m;          /* m.name = name */
	struct codec_values v;
	uint8_t *codes;                 /* what v points at, to be changed */
	float *scales, *zeros;
	const struct codec *codec;      /* of the tensors below */
	struct codec_tensor tensors[CODEC_TENSORS_MAX];
	void *bytes[CODEC_TENSORS_MAX];
	size_t len[CODEC_TENSORS_MAX];
	unsigned count;
	struct json *config;            /* what codec->config() gave */
};

/* A module as a plan has it, without values. `name` is copied. */
struct codec_module codec_case_module(const char *name, uint64_t rows, uint64_t cols, int bits, int64_t group,
				      enum zero_kind kind);
void codec_case_init(struct codec_case *c, struct codec_module m, uint64_t seed);
/* Room for the tensors of `codec`, filled with 0xA5, and 64 bytes behind each. */
void codec_case_room(struct codec_case *c, const struct codec *codec);
int codec_case_encode(struct codec_case *c, struct err *err);
bool codec_case_overran(const struct codec_case *c);
/* The tensor by its suffix, NULL when there is none. */
void *codec_case_tensor(const struct codec_case *c, const char *suffix);
/* A source that knows the module's tensors. */
struct stored_source codec_case_source(struct codec_case *c);
void codec_case_deinit(struct codec_case *c);

const char *zero_kind_name(enum zero_kind kind);

#endif
