#include "tests/lib/codec_case.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/half.h"

enum { BEHIND = 64, FILL = 0xA5 };

static void *need(void *p)
{
	if (p)
		return p;
	fprintf(stderr, "codec_case: out of memory\n");
	abort();
}

const char *zero_kind_name(enum zero_kind kind)
{
	static const char *const names[KINDS] = { "float", "quarters", "halves", "integer", "symmetric" };

	return names[kind];
}

struct codec_module codec_case_module(const char *name, uint64_t rows, uint64_t cols, int bits, int64_t group,
				      enum zero_kind kind)
{
	static const unsigned parts[KINDS] = { 0, 4, 2, 1, 1 };

	return (struct codec_module){
		.name = name, .layer = strstr(name, "layers.") ? 0 : -1, .linear = LIN_Q, .rows = rows, .cols = cols,
		.zero_parts = parts[kind],
		.settings = { .bits = bits, .group_size = group, .symmetric = kind == KIND_SYMMETRIC,
			      .zero_point = kind == KIND_INTEGER ? ZERO_INTEGER : ZERO_FLOAT },
	};
}

/* --- values -------------------------------------------------------------------------------------- */

static uint32_t draw(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (uint32_t)(*state >> 24);
}

/* A half of 2^-10 to 2^-3, all mantissas. */
static float draw_scale(uint64_t *state)
{
	return f16_to_f32((uint16_t)((5 + draw(state) % 8) << 10 | draw(state) % 1024));
}

static float draw_zero(uint64_t *state, const struct codec_module *m, float scale)
{
	const unsigned top = (1u << m->settings.bits) - 1, parts = codec_zero_parts(m);
	uint16_t offset;

	if (m->settings.symmetric)
		return (float)(1u << (m->settings.bits - 1));
	if (parts > 0)
		return (float)(draw(state) % (top * parts + 1)) / (float)parts;
	offset = (uint16_t)((draw(state) & 1) << 15 | (1 + draw(state) % 16) << 10 | draw(state) % 1024);
	return (float)((double)f16_to_f32(offset) / (double)scale);
}

static void fill(struct codec_case *c, uint64_t state)
{
	const size_t codes = c->v.rows * c->v.cols, groups = codes / c->v.group;

	for (size_t i = 0; i < codes; i++)
		c->codes[i] = (uint8_t)(draw(&state) & ((1u << c->v.bits) - 1));
	for (size_t i = 0; i < groups; i++) {
		c->scales[i] = draw_scale(&state);
		c->zeros[i] = draw_zero(&state, &c->m, c->scales[i]);
	}
}

void codec_case_init(struct codec_case *c, struct codec_module m, uint64_t seed)
{
	const size_t rows = (size_t)m.rows, cols = (size_t)m.cols, group = codec_group(&m);

	*c = (struct codec_case){ .m = m };
	snprintf(c->name, sizeof(c->name), "%s", m.name);
	c->m.name = c->name;
	c->codes = need(mem_alloc(rows * cols, 1));
	c->scales = need(mem_alloc(rows * (cols / group), sizeof(float)));
	c->zeros = need(mem_alloc(rows * (cols / group), sizeof(float)));
	c->v = (struct codec_values){ rows, cols, group, m.settings.bits, c->codes, c->scales, c->zeros };
	fill(c, seed * 0x9E3779B97F4A7C15u + 1);
}

/* --- tensors ------------------------------------------------------------------------------------- */

static void free_tensors(struct codec_case *c)
{
	for (unsigned i = 0; i < c->count; i++)
		mem_free(c->bytes[i]);
	c->count = 0;
	json_free(c->config);
	c->config = NULL;
}

void codec_case_room(struct codec_case *c, const struct codec *codec)
{
	free_tensors(c);
	c->codec = codec;
	c->count = codec->tensors(&c->m, c->tensors);
	for (unsigned i = 0; i < c->count; i++) {
		const struct codec_tensor *t = &c->tensors[i];

		c->len[i] = (size_t)(t->shape[0] * (t->ndim == 2 ? t->shape[1] : 1) * st_dtype_bits(t->dtype) / 8);
		c->bytes[i] = need(mem_alloc(c->len[i] + BEHIND, 1));
		memset(c->bytes[i], FILL, c->len[i] + BEHIND);
	}
	c->config = need(json_new_object());
	if (codec->config && codec->config(&c->m, 1, NULL, c->config) != 0)
		need(NULL);
}

int codec_case_encode(struct codec_case *c, struct err *err)
{
	return c->codec->encode(&c->m, &c->v, c->bytes, err);
}

bool codec_case_overran(const struct codec_case *c)
{
	for (unsigned i = 0; i < c->count; i++)
		for (size_t k = 0; k < BEHIND; k++)
			if (((const uint8_t *)c->bytes[i])[c->len[i] + k] != FILL)
				return true;
	return false;
}

void *codec_case_tensor(const struct codec_case *c, const char *suffix)
{
	for (unsigned i = 0; i < c->count; i++)
		if (strcmp(c->tensors[i].suffix, suffix) == 0)
			return c->bytes[i];
	return NULL;
}

static int read_case(void *ctx, const char *name, struct stored_tensor *out, struct err *err)
{
	const struct codec_case *c = ctx;
	const size_t prefix = strlen(c->name);

	for (unsigned i = 0; strncmp(name, c->name, prefix) == 0 && i < c->count; i++) {
		const struct codec_tensor *t = &c->tensors[i];

		if (strcmp(name + prefix, t->suffix) != 0)
			continue;
		*out = (struct stored_tensor){ t->dtype, t->ndim, { t->shape[0], t->shape[1] }, NULL, c->len[i] };
		out->bytes = mem_alloc(c->len[i], 1);
		if (!out->bytes)
			return err_set_nomem(err, "a tensor of the case");
		memcpy(out->bytes, c->bytes[i], c->len[i]);
		return 0;
	}
	return 1;
}

struct stored_source codec_case_source(struct codec_case *c)
{
	return (struct stored_source){ read_case, c };
}

void codec_case_deinit(struct codec_case *c)
{
	free_tensors(c);
	mem_free(c->codes);
	mem_free(c->scales);
	mem_free(c->zeros);
}
