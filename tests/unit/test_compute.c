/* The compute thread and a device with too little memory: the task again with smaller pieces, and what is told of it.
 *
 * The device is the sealed backend, whose block_forward() finds no memory for more than so many tokens.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/digest.h"
#include "common/file.h"
#include "tests/lib/sealed_backend.h"
#include "worker/compute.h"
#include "worker/tensor_file.h"

enum { SEQ_LEN = 32, SEQUENCES = 8, HIDDEN = 192, PIECE_TOKENS = 256, PATH_BYTES = 512 };

/* --- a device of a size ------------------------------------------------------------------------------------- */

static struct {
	struct backend_ops ops;         /* of the backend that is open */
	int (*forward)(struct backend *be, const struct block_shape *shape, const struct block_weights *w,
		       const struct rope_table *rope, const float *x, size_t n_seq, size_t seq_len, float *y, block_tap tap,
		       void *tap_ctx, struct err *err);
	void *(*take)(struct backend *be, size_t bytes, const char *what, struct err *err);
	bool own_memory;
	size_t piece_tokens, most;      /* tokens: a piece; for which there is memory */
	void (*failing)(void);          /* called when there is none */
	size_t asked[16];               /* tokens that were asked for, one after the other */
	size_t count;
	bool failed;                    /* and nothing was taken since */
	size_t held;                    /* bytes that were held when something was taken after a failure, the most */
} device;

static int forward(struct backend *be, const struct block_shape *shape, const struct block_weights *w,
		   const struct rope_table *rope, const float *x, size_t n_seq, size_t seq_len, float *y, block_tap tap,
		   void *tap_ctx, struct err *err)
{
	if (device.count < sizeof(device.asked) / sizeof(device.asked[0]))
		device.asked[device.count++] = n_seq * seq_len;
	if (n_seq * seq_len <= device.most)
		return device.forward(be, shape, w, rope, x, n_seq, seq_len, y, tap, tap_ctx, err);
	if (device.failing)
		device.failing();
	device.failed = true;
	return err_set_nomem(err, "the activations of a block");
}

static void *take(struct backend *be, size_t bytes, const char *what, struct err *err)
{
	if (device.failed && device.own_memory && sealed_bytes(be) > device.held)
		device.held = sealed_bytes(be);
	device.failed = false;
	return device.take(be, bytes, what, err);
}

static struct backend *open_device(const struct backend_options *options, struct err *err)
{
	const struct backend_ops *ops = device.own_memory ? &sealed_cpu_ops : backend_find("cpu", err);
	struct backend *be = ops->open(options, err);

	if (!be)
		return NULL;
	device.ops = *be->ops;
	device.forward = be->ops->block_forward;
	device.take = be->ops->memory_take;
	device.ops.block_forward = forward;
	device.ops.memory_take = take;
	device.ops.piece_tokens = device.piece_tokens;
	be->ops = &device.ops;
	return be;
}

static void close_device(struct backend *be)
{
	device.ops.close(be);
}

static const struct backend_ops opens = { .name = "small", .open = open_device, .close = close_device };

/* --- one task after the other ---------------------------------------------------------------------------------- */

static struct loop *loop;
static struct compute *compute;
static struct compute_job job;
static struct json *model;
static char out_dir[PATH_BYTES];
static uint64_t allocations;            /* of the last run */

static void add_file(struct json *files, const char *folder, const char *name)
{
	struct json *o = json_new_object();
	struct digest *d = digest_new();
	unsigned char head[8];
	char hex[DIGEST_HEX], *path = path_join(folder, name), *bytes;
	uint64_t size, len = 0;
	int fd = file_open(path, 0, 0, NULL);

	assert_int_equal(file_size(path, &size, NULL), 0);
	assert_int_equal(file_pread(fd, head, sizeof(head), 0, path, NULL), 0);
	for (int i = 7; i >= 0; i--)
		len = len << 8 | head[i];
	len = strstr(name, ".safetensors") && !strstr(name, ".json") ? len + 8 : size;
	bytes = mem_alloc(len, 1);
	assert_int_equal(file_pread(fd, bytes, len, 0, path, NULL), 0);
	digest_add(d, bytes, len);
	digest_finish(d, hex);
	assert_int_equal(json_set_string(o, "name", name) | json_set_int(o, "bytes", (int64_t)size) |
			 json_set_string(o, "header_sha256", hex) | json_push(files, o), 0);
	digest_free(d);
	mem_free(bytes);
	mem_free(path);
	close(fd);
}

static void describe_model(void)
{
	static const char *const names[] = { "config.json", "model-00001-of-00002.safetensors",
					     "model-00002-of-00002.safetensors", "model.safetensors.index.json" };
	struct json *files = json_new_array();
	char folder[PATH_BYTES];

	snprintf(folder, sizeof(folder), "%s/examples/fable-tiny", getenv("QUARRY_ROOT"));
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		add_file(files, folder, names[i]);
	model = json_new_object();
	assert_int_equal(json_set_string(model, "id", "m_1") | json_set_string(model, "path", folder) |
			 json_set(model, "files", files), 0);
}

static void write_hidden(const char *path, size_t sequences)
{
	float *rows = mem_alloc(sequences * SEQ_LEN * HIDDEN, sizeof(*rows));
	struct tensor_file f;
	struct err err = ERR_INIT;

	for (size_t i = 0; i < sequences * SEQ_LEN * HIDDEN; i++)
		rows[i] = (float)((i * 2654435761u >> 7) % 2001) / 1000.0f - 1;
	if (hidden_file_create(&f, path, sequences, SEQ_LEN, HIDDEN, &err) != 0 ||
	    hidden_file_write(&f, 0, sequences, rows, &err) != 0)
		fail_msg("%s", err.text);
	tensor_file_close(&f);
	mem_free(rows);
}

static int prepare(void **state)
{
	int32_t ids[SEQUENCES * SEQ_LEN];

	(void)state;
	describe_model();
	write_hidden("eight", SEQUENCES);
	write_hidden("five", 5);
	write_hidden("three", 3);
	write_hidden("many", 64);
	for (int i = 0; i < SEQUENCES * SEQ_LEN; i++)
		ids[i] = i % 100;
	return spool_prepare("work", NULL) | tokens_file_write("tokens", ids, SEQUENCES, SEQ_LEN, NULL);
}

static int finish(void **state)
{
	(void)state;
	json_free(model);
	return 0;
}

static void done(void *ctx)
{
	(void)ctx;
	loop_stop(loop);
}

/* A worker whose device has memory for pieces of `most` tokens. */
static void start(bool own_memory, size_t piece_tokens, size_t most)
{
	static struct compute_config config;
	struct err err = ERR_INIT;

	memset(&device, 0, sizeof(device));
	device.own_memory = own_memory;
	device.piece_tokens = piece_tokens;
	device.most = most;
	config = (struct compute_config){ .backend = &opens, .options = { .threads = 1 }, .work = "work",
					  .clock = &clock_system, .read_paths = true, .checkpoint_ms = 1000 };
	loop = loop_new(&err);
	assert_non_null(loop);
	compute = compute_start(loop, &config, &err);
	if (!compute)
		fail_msg("%s", err.text);
}

/* Closing the sealed backend fails when something was not given back. */
static void stop(void)
{
	assert_true(compute_end(compute, 60000));
	loop_free(loop);
}

struct task { const char *kind, *spec, *inputs[4]; }; /* inputs: "name=path" */

static const struct task capture = { "capture", "{\"layer\":1}", { "hidden=eight" } };
static const struct task evaluate = { "evaluate", "{\"model\":\"original\",\"chunk\":0,\"chunks\":1}", { "tokens=tokens" } };

/* Runs it; its entry is left in `job` until drop(). Allocation `fail_at` of the compute thread fails, 0: none. */
static void run(const struct task *t, uint64_t fail_at)
{
	struct json *spec = json_parse(t->spec, strlen(t->spec), NULL);
	struct task_input inputs[4];
	char names[4][32];
	size_t n = 0;
	uint64_t before;
	struct err err = ERR_INIT;

	for (; n < 4 && t->inputs[n]; n++) {
		const char *equals = strchr(t->inputs[n], '=');

		snprintf(names[n], sizeof(names[n]), "%.*s", (int)(equals - t->inputs[n]), t->inputs[n]);
		inputs[n] = (struct task_input){ .name = names[n], .path = equals + 1 };
	}
	compute_job_init(&job);
	job.kind = t->kind;
	job.spec = spec;
	job.model = model;
	job.inputs = inputs;
	job.input_count = n;
	job.done = done;
	job.entry = spool_begin("work", "t_1", 1, &err);
	assert_non_null(spec);
	assert_non_null(job.entry);
	snprintf(out_dir, sizeof(out_dir), "%s/out", job.entry->dir);
	device.count = 0;
	before = mem_fail_after(fail_at);
	compute_submit(compute, &job);
	loop_run(loop);
	allocations = mem_fail_after(0) - before;
	if (job.rc == 0)
		assert_int_equal(spool_seal(job.entry, "work", job.result, job.stats, &err), 0);
	json_free(spec);
}

static void drop(void)
{
	spool_drop(job.entry);
	spool_entry_free(job.entry);
	compute_job_deinit(&job);
}

/* What was asked of the device, as "256 128". */
static const char *asked(void)
{
	static char text[256];
	size_t len = 0;

	text[0] = '\0';
	for (size_t i = 0; i < device.count; i++)
		len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%zu", i ? " " : "", device.asked[i]);
	return text;
}

static const struct json *stats(void)
{
	return json_get(job.entry->complete, "stats");
}

static void succeeded(void)
{
	if (job.rc != 0)
		fail_msg("%s", job.err.text);
}

static void has_in_log(const char *words, bool has)
{
	char *text = compute_log(&job);

	if (!strstr(text, words) == has)
		fail_msg("\"%s\" %s in the log:\n%s", words, has ? "is not" : "is", text);
	mem_free(text);
}

/* --- the tests ----------------------------------------------------------------------------------------------------- */

static void enough_memory_is_no_news(void **state)
{
	(void)state;
	start(true, PIECE_TOKENS, PIECE_TOKENS);
	run(&capture, 0);
	succeeded();
	assert_string_equal(asked(), "256");
	assert_null(json_get(stats(), "piece_tokens"));
	has_in_log("out of memory", false);
	drop();
	stop();
}

static void leave_something(void)
{
	char path[PATH_BYTES + 16];

	snprintf(path, sizeof(path), "%s/stray", out_dir);
	file_write_signal(path, "of the first attempt", 20, NULL);
}

/* The second attempt succeeds: nothing is left of the first, in the folder or on the device, and the next task begins
 * with full pieces. */
static void smaller_pieces_fit(void **state)
{
	char first[DIGEST_HEX];

	(void)state;
	start(true, PIECE_TOKENS, PIECE_TOKENS);
	run(&capture, 0);
	succeeded();
	memcpy(first, job.entry->outputs[0].sha256, sizeof(first));
	drop();
	device.most = PIECE_TOKENS / 2;
	device.failing = leave_something;
	for (int i = 0; i < 2; i++) {
		run(&capture, 0);
		succeeded();
		assert_string_equal(asked(), "256 128 128");
		assert_int_equal(job.entry->count, 1);
		assert_string_equal(job.entry->outputs[0].name, "hidden");
		assert_string_equal(job.entry->outputs[0].sha256, first); /* on this backend pieces do not show */
		assert_int_equal(json_get_int(stats(), "piece_tokens", 0), 128);
		assert_string_equal(json_get_string(stats(), "backend", ""), "small");
		has_in_log("out of memory; again with pieces of 128 tokens", true);
		assert_int_equal(device.held, 0);
		drop();
	}
	device.most = PIECE_TOKENS;
	run(&capture, 0);
	succeeded();
	assert_null(json_get(stats(), "piece_tokens"));
	drop();
	stop();
}

static void a_run_of_layers_begins_again(void **state)
{
	double nll;

	(void)state;
	start(true, PIECE_TOKENS, PIECE_TOKENS);
	run(&evaluate, 0);
	succeeded();
	nll = json_get_number(json_get(job.entry->complete, "result"), "nll", 0);
	assert_true(nll > 0);
	drop();
	device.most = 64;
	run(&evaluate, 0);
	succeeded();
	assert_int_equal(json_get_int(stats(), "piece_tokens", 0), 64);
	assert_true(json_get_number(json_get(job.entry->complete, "result"), "nll", 0) == nll);
	drop();
	stop();
}

/* Pieces of each kind: halved in whole sequences from what the task really uses, down to one sequence or four times. */
static void no_piece_fits(void **state)
{
#define MODULE(name) "{\"name\":\"model.layers.0." name "\",\"skip\":false,\"bits\":2,\"group_size\":64,\"method\":\"minmax\"," \
	"\"zero_point\":\"float\",\"symmetric\":false,\"rounding\":\"nearest\"}"
	static const char spec[] = "{\"layer\":0,\"damp\":0.01,\"modules\":[" MODULE("self_attn.q_proj") ","
		MODULE("self_attn.k_proj") "," MODULE("self_attn.v_proj") "," MODULE("self_attn.o_proj") ","
		MODULE("mlp.gate_proj") "," MODULE("mlp.up_proj") "," MODULE("mlp.down_proj") "]}";
	static const struct { struct task task; size_t piece; const char *asked, *tried; } rows[] = {
		{ { "capture", "{\"layer\":1}", { "hidden=eight" } }, 256, "256 128 64 32", "256, 128, 64, 32" },
		{ { "capture", "{\"layer\":1}", { "hidden=eight" } }, 100000, "256 128 64 32", "256, 128, 64, 32" },
		{ { "capture", "{\"layer\":1}", { "hidden=many" } }, 2048, "2048 1024 512 256 128", "2048, 1024, 512, 256, 128" },
		{ { "capture", "{\"layer\":1}", { "hidden=eight" } }, 7 * SEQ_LEN, "224 96 32", "224, 96, 32" },
		{ { "capture", "{\"layer\":1}", { "hidden=eight" } }, SEQ_LEN, "32", NULL },
		{ { "capture", "{\"layer\":1}", { "hidden=eight" } }, 1, "32", NULL },
		{ { "evaluate", "{\"model\":\"original\",\"chunk\":0,\"chunks\":1}", { "tokens=tokens" } }, 100000, "256 128 64 32",
		  "256, 128, 64, 32" },
		{ { "quantize", spec, { "hidden-0=three", "hidden-1=five" } }, 100000, "96 64 32", "160, 64, 32" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		char text[256] = "out of memory for the activations of a block";

		start(true, rows[i].piece, 0);
		run(&rows[i].task, 0);
		assert_int_equal(job.rc, -1);
		assert_string_equal(asked(), rows[i].asked);
		if (rows[i].tried)
			snprintf(text, sizeof(text), "out of memory for the activations of a block; tried with pieces of %s tokens",
				 rows[i].tried);
		assert_string_equal(job.err.text, text);
		assert_int_equal(job.err.code, ERR_NOMEM);
		assert_false(job.device_lost);
		drop();
		stop();
	}
}

static void stop_job(void)
{
	atomic_store(&job.stop, true);
}

static void stop_at_the_second(void)
{
	if (device.count == 2)
		stop_job();
}

/* Whoever cancels does not wait for a device. */
static void a_stopped_task_ends(void **state)
{
	static void (*const when[])(void) = { stop_job, stop_at_the_second };
	static const char *const pieces[] = { "256", "256 128" };

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		start(true, PIECE_TOKENS, 0);
		device.failing = when[i];
		run(&capture, 0);
		assert_int_equal(job.rc, -1);
		assert_int_equal(job.err.code, ERR_NOMEM);
		assert_string_equal(asked(), pieces[i]);
		drop();
		stop();
	}
}

/* The processor's memory is everybody's: there a task that finds none fails at once. */
static void without_a_device_nothing_is_tried(void **state)
{
	(void)state;
	start(false, PIECE_TOKENS, PIECE_TOKENS / 2);
	run(&capture, 0);
	assert_int_equal(job.rc, -1);
	assert_int_equal(job.err.code, ERR_NOMEM);
	assert_string_equal(asked(), "256");
	assert_string_equal(job.err.text, "out of memory for the activations of a block");
	drop();
	stop();
}

static void lose_folder(void)
{
	char path[PATH_BYTES];

	snprintf(path, sizeof(path), "%.*s", (int)(strlen(out_dir) - strlen("/out")), out_dir);
	assert_int_equal(dir_remove(path, NULL), 0);
	file_write_signal(path, "", 0, NULL);
}

static void a_folder_that_cannot_be_emptied_is_an_error(void **state)
{
	(void)state;
	start(true, PIECE_TOKENS, PIECE_TOKENS / 2);
	device.failing = lose_folder;
	run(&capture, 0);
	assert_int_equal(job.rc, -1);
	assert_non_null(strstr(job.err.text, "/out"));
	assert_null(strstr(job.err.text, "tried with"));
	assert_int_equal(job.err.code, ERR_NOT_FOUND);
	assert_string_equal(asked(), "256");
	drop();
	stop();
}

/* Allocations fail, the device's among them: smaller pieces, or an error; now and then it does not matter. Each of the last
 * hundred, where the work is, and some of the many before. */
static void allocations_fail(void **state)
{
	int again = 0, failures = 0;
	uint64_t most;

	(void)state;
	start(true, PIECE_TOKENS, PIECE_TOKENS);
	run(&capture, 0);
	succeeded();
	most = allocations;
	drop();
	for (uint64_t n = 1; n <= most; n += n + 100 < most ? 7 : 1) {
		run(&capture, n);
		if (job.rc != 0)
			assert_int_equal(job.err.code, ERR_NOMEM);
		else if (json_get(stats(), "piece_tokens"))
			assert_int_equal(json_get_int(stats(), "piece_tokens", 0), 128);
		again += job.rc == 0 && json_get(stats(), "piece_tokens");
		failures += job.rc != 0;
		drop();
	}
	if (again < 10 || failures < 10)
		fail_msg("%d runs of one with %d allocations ended with smaller pieces, %d with an error", again, (int)most, failures);
	stop();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(enough_memory_is_no_news),
		cmocka_unit_test(smaller_pieces_fit),
		cmocka_unit_test(a_run_of_layers_begins_again),
		cmocka_unit_test(no_piece_fits),
		cmocka_unit_test(a_stopped_task_ends),
		cmocka_unit_test(without_a_device_nothing_is_tried),
		cmocka_unit_test(a_folder_that_cannot_be_emptied_is_an_error),
		cmocka_unit_test(allocations_fail),
	};

	return cmocka_run_group_tests(tests, prepare, finish);
}
