#include "formats/gguf_types.h"

struct type_row {
	enum gguf_type type;
	const char *name;
	size_t elements, bytes;
	uint32_t file_type;
};

static const struct type_row rows[] = {
	{ GGUF_F32, "F32", 1, 4, 0 },
	{ GGUF_F16, "F16", 1, 2, 1 },
	{ GGUF_BF16, "BF16", 1, 2, 32 },
	{ GGUF_Q4_0, "Q4_0", 32, 18, 2 },
	{ GGUF_Q4_1, "Q4_1", 32, 20, 3 },
	{ GGUF_Q5_0, "Q5_0", 32, 22, 8 },
	{ GGUF_Q5_1, "Q5_1", 32, 24, 9 },
	{ GGUF_Q8_0, "Q8_0", 32, 34, 7 },
	{ GGUF_Q2_K, "Q2_K", 256, 84, 10 },
	{ GGUF_Q3_K, "Q3_K", 256, 110, 12 },
	{ GGUF_Q4_K, "Q4_K", 256, 144, 15 },
	{ GGUF_Q5_K, "Q5_K", 256, 176, 17 },
	{ GGUF_Q6_K, "Q6_K", 256, 210, 18 },
};

static const struct type_row *row_of(enum gguf_type type)
{
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (rows[i].type == type)
			return &rows[i];
	return &rows[0];
}

const char *gguf_type_name(enum gguf_type type)
{
	return row_of(type)->name;
}

size_t gguf_block_elements(enum gguf_type type)
{
	return row_of(type)->elements;
}

size_t gguf_block_bytes(enum gguf_type type)
{
	return row_of(type)->bytes;
}

size_t gguf_row_bytes(enum gguf_type type, size_t cols)
{
	return cols / row_of(type)->elements * row_of(type)->bytes;
}

double gguf_bits_per_weight(enum gguf_type type)
{
	return 8.0 * (double)row_of(type)->bytes / (double)row_of(type)->elements;
}

uint32_t gguf_file_type(enum gguf_type most)
{
	return row_of(most)->file_type;
}
