/* cmd_dequantize.c - a plain checkpoint out of a quantized one. */
#include <stdio.h>
#include <string.h>

#include "cli/args.h"
#include "cli/connect.h"
#include "cli/fetch.h"
#include "cli/place.h"
#include "cli/stored.h"
#include "cli/text.h"
#include "cli/write.h"

static const struct arg_spec options[] = {
	{ "output", "OUT_DIR", "a new or empty folder for the checkpoint (also -o)" },
	{ "dtype", "bf16|f16|f32", "of all weights (default bf16)" },
	{ NULL, NULL, NULL },
};

#define SHARD_BYTES 5000000000u

static const struct plain { const char *word, *format; enum st_dtype dtype; } plains[] = {
	{ "bf16", "dense", ST_BF16 }, { "f16", "dense-f16", ST_F16 }, { "f32", "dense-f32", ST_F32 },
};

static const struct plain *find_plain(const char *word, struct err *err)
{
	for (size_t i = 0; i < sizeof(plains) / sizeof(plains[0]); i++)
		if (strcmp(plains[i].word, word) == 0)
			return &plains[i];
	err_set(err, ERR_INVALID, "--dtype '%s' is not bf16, f16 or f32", word);
	return NULL;
}

static int write_plain(struct stored_folder *f, const struct plain *plain, const char *out_dir, struct err *err)
{
	const struct output_format *format = output_format_find(plain->format);
	struct problems problems = { 0 };
	struct advance advance;
	struct written written;
	struct place place;
	char name[256], bytes[TEXT_SHORT];
	int rc;

	stored_name(f, name, sizeof(name));
	stored_folder_cast(f, plain->dtype);
	rc = write_check(f, format, &problems, err);
	print_other_problems(&problems);
	if (rc != 0 || place_make(&place, out_dir, err) != 0)
		return -1;
	advance_begin(&advance, "writing");
	rc = write_checkpoint(f, format, SHARD_BYTES, name, place.staging, &advance, &written, err);
	status_clear();
	if (rc == 0)
		rc = place_keep(&place, err);
	place_drop(&place);
	if (rc != 0)
		return -1;
	advance_end(&advance);
	printf("checkpoint   %s  (%s, %s)\n", out_dir, text_bytes((double)written.bytes, bytes), plain->word);
	if (f->gguf_file && !stored_has_text(f, "tokenizer.json"))
		print_note("the gguf file carries no tokenizer.json (tokenizer.huggingface.json), and its vocabulary is not turned back into "
			   "one: copy tokenizer.json and tokenizer_config.json of the original model to %s", out_dir);
	return 0;
}

static enum exit_status run(const struct args *args, struct err *err)
{
	const char *out_dir = args_get(args, "output", NULL);
	const struct plain *plain = find_plain(args_get(args, "dtype", "bf16"), err);
	char path[PATH_MAX];
	struct stored_folder f;
	int rc;

	if (plain && !out_dir)
		err_set(err, ERR_INVALID, "no output folder named; give -o OUT_DIR");
	if (!plain || !out_dir)
		return EXIT_USAGE;
	if (fetch_check_target(out_dir, NULL, err) != 0 || stored_place(args->positional[0], path, err) != 0 ||
	    stored_open_whole(&f, path, err) != 0)
		return failed_status(err);
	rc = write_plain(&f, plain, out_dir, err);
	stored_folder_close(&f);
	return rc == 0 ? EXIT_OK : failed_status(err);
}

const struct command cmd_dequantize = {
	.name = "dequantize", .usage = "DIR|FILE.gguf -o OUT_DIR [options]", .summary = "turn a quantized checkpoint into a plain one",
	.details = "Reads any of the formats and writes weights, config.json without quantization, tokenizer files and "
		   "generation_config.json:\na folder that loads wherever the original model does.",
	.options = options, .least = 1, .most = 1, .run = run,
};
