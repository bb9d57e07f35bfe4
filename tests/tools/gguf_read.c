/* gguf_read FILE.gguf OUT.safetensors - a GGUF file turned back into the checkpoint it was made from, in float32, by the reader:
 * names and row order of the source. The config.json that the file carries goes to stdout. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/safetensors.h"
#include "formats/gguf_source.h"

static void stop(const char *what, const struct err *err)
{
	fprintf(stderr, "gguf_read: %s: %s\n", what, err->text);
	exit(1);
}

/* Rows in the source's order. */
static float *decoded(const struct gr_tensor *t, const struct gs_tensor *to, int fd, const char *path)
{
	const size_t rows = to->ndim == 2 ? to->rows : to->cols, n = to->rows * to->cols, width = n / rows;
	unsigned char *bytes = mem_alloc((size_t)t->bytes, 1);
	float *flat = mem_alloc(n, sizeof(float)), *out = mem_alloc(n, sizeof(float));
	struct err err = ERR_INIT;
	uint32_t elements = 1, block = 1;

	gr_type_block(t->type, &elements, &block);
	if (!bytes || !flat || !out || file_pread(fd, bytes, (size_t)t->bytes, t->begin, path, &err) != 0)
		stop(t->name, &err);
	gr_decode(t->type, bytes, n / elements, flat);
	for (size_t r = 0; r < rows; r++)
		memcpy(out + gs_row(to, r) * width, flat + r * width, width * sizeof(float));
	mem_free(bytes);
	mem_free(flat);
	return out;
}

static size_t convert(const struct gr_file *g, const struct gs_model *m, const char *path, struct st_item *items,
		      struct gs_tensor *places)
{
	struct err err = ERR_INIT;
	int fd = file_open(path, O_RDONLY, 0, &err);
	size_t count = 0;

	if (fd < 0)
		stop(path, &err);
	for (size_t i = 0; i < g->tensor_count; i++) {
		struct gs_tensor *to = &places[count];
		const int rc = gs_tensor(m, &g->tensors[i], to, &err);

		if (rc < 0)
			stop(path, &err);
		if (rc > 0)
			continue;
		items[count] = (struct st_item){ .tensor = { .name = to->name, .dtype = ST_F32, .ndim = to->ndim },
						 .data = decoded(&g->tensors[i], to, fd, path) };
		items[count].tensor.shape[0] = to->ndim == 2 ? to->rows : to->cols;
		items[count].tensor.shape[1] = to->cols;
		count++;
	}
	close(fd);
	return count;
}

int main(int argc, char **argv)
{
	static const char *const key[] = { "format" }, *const value[] = { "pt" };
	struct err err = ERR_INIT;
	struct gs_tensor *places;
	struct st_item *items;
	struct gr_text config;
	struct gs_model m;
	struct gr_file g;
	size_t count;

	if (argc != 3) {
		fprintf(stderr, "usage: gguf_read FILE.gguf OUT.safetensors\n");
		return 2;
	}
	if (gr_open_path(&g, argv[1], &err) != 0 || gs_model(&g, &m, &err) != 0)
		stop(argv[1], &err);
	items = mem_alloc(g.tensor_count, sizeof(*items));
	places = mem_alloc(g.tensor_count, sizeof(*places));
	if (!items || !places)
		stop("memory", &err);
	count = convert(&g, &m, argv[1], items, places);
	if (st_write_file(argv[2], items, count, key, value, 1, &err) != 0)
		stop(argv[2], &err);
	if (gs_config(&g, &config))
		fwrite(config.at, 1, config.len, stdout);
	for (size_t i = 0; i < count; i++)
		mem_free((void *)items[i].data);
	mem_free(items);
	mem_free(places);
	gr_close(&g);
	return 0;
}
