/* Speed of the cuda backend, at the sizes of Llama-2-7B.
 *
 * bench_cuda [products] [operations]
 * Without arguments: operations. `products`: rate and error of every kind of split product. `operations`: every operation of
 * backend.h with arrays in the backend's memory, beside its floor (bench/cuda/operations.c says what is counted). Without
 * a GPU one sentence says so.
 */
#include <stdio.h>
#include <string.h>

#include "bench/cuda/bench.h"

enum { THREADS = 8 };

static const struct { const char *name; void (*run)(struct bench *); } sections[] = {
	{ "products", bench_products }, { "operations", bench_operations },
};

static int run_section(struct bench *b, const char *name)
{
	for (size_t i = 0; i < sizeof(sections) / sizeof(sections[0]); i++)
		if (strcmp(sections[i].name, name) == 0) {
			sections[i].run(b);
			return 0;
		}
	fprintf(stderr, "bench_cuda: no section \"%s\"; there are products and operations\n", name);
	return 2;
}

int main(int argc, char **argv)
{
	const struct backend_options options = { .threads = THREADS };
	struct err err = ERR_INIT;
	const struct backend_ops *ops = backend_find("cuda", &err);
	struct bench b = { .ops = ops, .be = ops ? ops->open(&options, &err) : NULL };
	int rc = 0;

	if (!b.be) {
		printf("nothing measured: %s\n", err.text);
		return 0;
	}
	printf("%s\n", ops->identity(b.be));
	bench_rates(&b);
	for (int i = 1; i < argc && rc == 0; i++)
		rc = run_section(&b, argv[i]);
	if (argc == 1)
		bench_operations(&b);
	ops->close(b.be);
	return rc;
}
