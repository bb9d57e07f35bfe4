/* checkpoint_files.c - see checkpoint_files.h.
 *
 * The index decides which files there are; without one there is a single model.safetensors. Names
 * from the index are untrusted: only plain names reach the source. A folder that holds only pickle
 * files is refused with a sentence that says what to do.
 */
#include "common/checkpoint_files.h"

#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/utf8.h"

enum { INDEX_BYTES_MAX = 16 << 20, FILES_MAX = 4096 };

#define SINGLE_NAME "model.safetensors"

const struct json *checkpoint_weight_map(const struct json *index)
{
	return json_get(index, "weight_map");
}

/* 1 when the file is there, 0 when it is not, -1 after noting why that cannot be told. */
static int probe(struct checkpoint *ck, struct findings *f, const char *name, uint64_t *bytes)
{
	struct err reason = ERR_INIT;

	if (ck->source->size(ck->source, name, bytes, &reason) == 0)
		return 1;
	return reason.code == ERR_NOT_FOUND ? 0 : findings_add_err(f, &reason);
}

static void refuse_missing(struct checkpoint *ck, struct findings *f)
{
	static const char *const pickles[] = {
		"pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin",
		"consolidated.00.pth", "model.pt", "model.pth",
	};
	uint64_t bytes;

	for (size_t i = 0; i < sizeof(pickles) / sizeof(pickles[0]); i++) {
		int found = probe(ck, f, pickles[i], &bytes);

		if (found > 0)
			findings_add(f, ERR_UNSUPPORTED, "%s holds weights as pickle (%s), a format that "
				     "can run code when it is read: convert them to safetensors first",
				     ck->source->label, pickles[i]);
		if (found != 0)
			return;
	}
	findings_add(f, ERR_NOT_FOUND, "%s holds no weights: there is neither %s nor %s", ck->source->label,
		     CHECKPOINT_INDEX_NAME, SINGLE_NAME);
}

/* --- the list of files -------------------------------------------------------- */

static int compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The file names of the map, sorted, each once; *count of them. Array owned by the caller, texts by
 * the map. NULL after noting a problem. */
static const char **collect_names(struct findings *f, const struct json *map, size_t *count)
{
	const struct err nomem = { .code = ERR_NOMEM, .text = "out of memory for the index" };
	const char **names = mem_alloc(json_size(map), sizeof(*names));
	size_t n = 0, unique = 0;

	if (!names) {
		findings_add_err(f, &nomem);
		return NULL;
	}
	for (const struct json *m = json_first(map); m; m = json_next(m)) {
		char tensor[UTF8_SHOWN_MAX], file[UTF8_SHOWN_MAX];
		const char *name = json_string(m, NULL);

		if (name && path_is_plain_name(name))
			names[n++] = name;
		else
			findings_add(f, ERR_CORRUPT, CHECKPOINT_INDEX_NAME " puts tensor \"%s\" into "
				     "\"%s\", which is not the plain name of a file beside it",
				     utf8_show(tensor, json_key(m)), utf8_show(file, name ? name : "?"));
	}
	if (n > 1)
		qsort(names, n, sizeof(*names), compare_texts);
	for (size_t i = 0; i < n; i++)
		if (i == 0 || strcmp(names[i], names[i - 1]) != 0)
			names[unique++] = names[i];
	*count = unique;
	return names;
}

static void set_files(struct checkpoint *ck, struct findings *f, const char *const *names, size_t count)
{
	const struct err nomem = { .code = ERR_NOMEM, .text = "out of memory for the list of shards" };

	if (count > FILES_MAX) {
		findings_add(f, ERR_CORRUPT, "the checkpoint has %zu shards; at most %d are accepted", count,
			     FILES_MAX);
		return;
	}
	ck->files = mem_alloc(count, sizeof(*ck->files));
	if (!ck->files) {
		findings_add_err(f, &nomem);
		return;
	}
	for (; ck->file_count < count; ck->file_count++) {
		ck->files[ck->file_count].name = mem_strdup(names[ck->file_count]);
		if (!ck->files[ck->file_count].name) {
			findings_add_err(f, &nomem);
			return;
		}
	}
}

static void list_indexed(struct checkpoint *ck, struct findings *f, const struct json *index)
{
	const struct json *map = checkpoint_weight_map(index);
	const char **names;
	size_t count = 0;

	if (json_type(map) != JSON_OBJECT || !json_first(map)) {
		findings_add(f, ERR_CORRUPT, CHECKPOINT_INDEX_NAME ": \"weight_map\" must be an object that "
			     "names the file of each tensor");
		return;
	}
	names = collect_names(f, map, &count);
	if (names)
		set_files(ck, f, names, count);
	mem_free(names);
}

static struct json *read_index(struct checkpoint *ck, struct findings *f)
{
	struct err reason = ERR_INIT;
	struct json *index = NULL;
	size_t len;
	char *text = source_read_all(ck->source, CHECKPOINT_INDEX_NAME, INDEX_BYTES_MAX, &len, &reason);

	if (text) {
		index = json_parse(text, len, &reason);
		if (!index)
			err_prefix(&reason, "%s/%s", ck->source->label, CHECKPOINT_INDEX_NAME);
	}
	if (!index)
		findings_add_err(f, &reason);
	mem_free(text);
	return index;
}

/* --- headers ------------------------------------------------------------------ */

struct reader { struct source *source; const char *file; };

static int read_range(void *ctx, uint64_t offset, void *bytes, size_t len, struct err *err)
{
	struct reader *r = ctx;

	return r->source->read(r->source, r->file, offset, bytes, len, err);
}

static void load_file(struct checkpoint *ck, struct findings *f, struct checkpoint_file *file)
{
	struct reader r = { .source = ck->source, .file = file->name };
	struct err reason = ERR_INIT;
	int found = probe(ck, f, file->name, &file->bytes);

	if (found == 0)
		findings_add(f, ERR_NOT_FOUND, "%s names %s, which is not in %s", CHECKPOINT_INDEX_NAME,
			     file->name, ck->source->label);
	if (found > 0 &&
	    st_header_read(&file->header, file->name, file->bytes, read_range, &r, &reason) != 0)
		findings_add_err(f, &reason);
}

void checkpoint_load_files(struct checkpoint *ck, struct findings *f, struct json **index)
{
	static const char *const single[] = { SINGLE_NAME };
	uint64_t bytes;
	int found = probe(ck, f, CHECKPOINT_INDEX_NAME, &bytes);

	*index = NULL;
	if (found > 0) {
		*index = read_index(ck, f);
		if (*index)
			list_indexed(ck, f, *index);
	} else if (found == 0) {
		found = probe(ck, f, SINGLE_NAME, &bytes);
		if (found > 0)
			set_files(ck, f, single, 1);
		else if (found == 0)
			refuse_missing(ck, f);
	}
	for (size_t i = 0; i < ck->file_count && !f->failed; i++)
		load_file(ck, f, &ck->files[i]);
}
