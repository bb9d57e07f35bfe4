/* quarry-worker with one backend: `ref` under the name of "cuda", with a device that a test can break.
 *
 * The file that FAULTS names says what is wrong; it is read again at every use. Its words:
 *   lost N           the next N block passes fail because the device is lost, each once a process
 *   lost-quietly N   the same, but the pass that meets it says "internal"
 *   out-of-memory N  the next N block passes find no memory
 *   gone             there is no device
 *   silent           the device opens, and does not answer
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker/backend/backend.h"
#include "worker/backend/ref/ref.h"

static struct backend_ops faulty_ops;
static struct backend_options given;
static bool lost;
static char name[128];

/* The word of the file, and its number. */
static int fault(char word[32])
{
	const char *path = getenv("FAULTS");
	FILE *f = path ? fopen(path, "re") : NULL;
	int number = 0;

	word[0] = '\0';
	if (f && fscanf(f, "%31s %d", word, &number) < 1)
		word[0] = '\0';
	if (f)
		fclose(f);
	return number;
}

/* One fewer is left of it. */
static void count_down(const char *word, int number)
{
	FILE *f = fopen(getenv("FAULTS"), "we");

	if (f) {
		fprintf(f, "%s %d\n", word, number - 1);
		fclose(f);
	}
}

static int faulty_block_forward(struct backend *be, const struct block_shape *shape, const struct block_weights *w,
				const struct rope_table *rope, const float *x, size_t n_seq, size_t seq_len, float *y,
				block_tap tap, void *tap_ctx, struct err *err)
{
	char word[32];
	int number = fault(word);

	if (number > 0 && (strcmp(word, "lost") == 0 || strcmp(word, "lost-quietly") == 0)) {
		count_down(word, number);
		lost = true;
		return err_set(err, word[4] ? ERR_INTERNAL : ERR_UNAVAILABLE, "block pass: the device fell off the bus");
	}
	if (number > 0 && strcmp(word, "out-of-memory") == 0) {
		count_down(word, number);
		return err_set_nomem(err, "the activations of a block");
	}
	return ref_ops.block_forward(be, shape, w, rope, x, n_seq, seq_len, y, tap, tap_ctx, err);
}

static const char *faulty_identity(struct backend *be)
{
	(void)be;
	snprintf(name, sizeof(name), "faulty device %d memory %llu", given.device, (unsigned long long)given.device_memory);
	return name;
}

static int faulty_describe(struct backend *be, struct backend_device *out)
{
	char word[32];

	(void)be;
	fault(word);
	if (lost || strcmp(word, "silent") == 0)
		return -1;
	*out = (struct backend_device){ .name = "Faulty 9000", .driver = "CUDA 0.1", .number = given.device, .clock_mhz = 1000,
					.memory_bytes = 64000000000, .memory_free = 63000000000 };
	return 0;
}

static struct backend *faulty_open(const struct backend_options *options, struct err *err)
{
	const struct backend_options plain = { .threads = options->threads };
	struct backend_ops mine = faulty_ops;
	struct backend *be;
	char word[32];

	fault(word);
	given = *options;
	if (strcmp(word, "gone") == 0) {
		err_set(err, ERR_UNAVAILABLE, "this backend needs a faulty GPU and its driver: there is none");
		return NULL;
	}
	be = ref_ops.open(&plain, err);
	if (!be)
		return NULL;
	faulty_ops = ref_ops;
	faulty_ops.name = mine.name;
	faulty_ops.open = mine.open;
	faulty_ops.identity = mine.identity;
	faulty_ops.describe = mine.describe;
	faulty_ops.block_forward = mine.block_forward;
	be->ops = &faulty_ops;
	return be;
}

static struct backend_ops faulty_ops = {
	.name = "cuda", .open = faulty_open, .identity = faulty_identity, .describe = faulty_describe,
	.block_forward = faulty_block_forward,
};

const struct backend_ops *const backend_list[] = { &faulty_ops, NULL };
const char backend_list_note[] = "";
