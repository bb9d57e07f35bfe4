/* checkpoint.c - opens a checkpoint and checks config, index and headers against each other.
 *
 * Every problem is noted, not the first: a person fixes a folder once. All tensors of all files are
 * put into one array sorted by name; each check is a walk over it or a search in it.
 */
#include "common/checkpoint.h"

#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/checkpoint_files.h"
#include "common/utf8.h"

enum { CONFIG_BYTES_MAX = 1 << 20 };

const char *const checkpoint_carried_files[] = {
	"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
	"tokenizer.model", "vocab.json", "merges.txt", "generation_config.json", "chat_template.jinja",
	"chat_template.json", NULL,
};

static void note_nomem(struct findings *f)
{
	struct err nomem = ERR_INIT;

	err_set_nomem(&nomem, "the checkpoint's tensors");
	findings_add_err(f, &nomem);
}

/* --- configuration ------------------------------------------------------------ */

static bool read_config(struct checkpoint *ck, struct findings *f)
{
	struct err reason = ERR_INIT;

	ck->config_text = source_read_all(ck->source, "config.json", CONFIG_BYTES_MAX, &ck->config_len,
					  &reason);
	if (!ck->config_text) {
		findings_add_err(f, &reason);
		return false;
	}
	if (model_config_parse(&ck->config, ck->config_text, ck->config_len, f->list, &reason) == 0)
		return true;
	if (f->count++ == 0 || err_retryable(reason.code)) /* the sentences are in the list already */
		err_set(f->err, reason.code, "%s", reason.text);
	f->failed = f->failed || err_retryable(reason.code);
	return false;
}

/* --- the table of tensors ----------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
	const struct checkpoint_entry *x = a, *y = b;

	return strcmp(x->tensor->name, y->tensor->name);
}

static struct checkpoint_entry *find_entry(const struct checkpoint *ck, const char *name)
{
	struct st_tensor tensor = { .name = (char *)(uintptr_t)name };
	struct checkpoint_entry wanted = { .tensor = &tensor };

	if (ck->entry_count == 0)
		return NULL;
	return bsearch(&wanted, ck->entries, ck->entry_count, sizeof(wanted), by_name);
}

/* Lists the tensors of all readable files; false when that failed. */
static bool gather_entries(struct checkpoint *ck, struct findings *f)
{
	size_t total = 0;

	for (size_t i = 0; i < ck->file_count; i++)
		total += ck->files[i].header.count;
	if (total > ST_TENSORS_MAX) {
		findings_add(f, ERR_CORRUPT, "the checkpoint holds %zu tensors; at most %d are accepted",
			     total,
			     ST_TENSORS_MAX);
		return false;
	}
	ck->entries = mem_alloc(total, sizeof(*ck->entries));
	if (!ck->entries) {
		note_nomem(f);
		return false;
	}
	for (size_t i = 0; i < ck->file_count; i++)
		for (size_t j = 0; j < ck->files[i].header.count; j++)
			ck->entries[ck->entry_count++] = (struct checkpoint_entry){
				.tensor = &ck->files[i].header.tensors[j], .file = i };
	if (ck->entry_count > 1)
		qsort(ck->entries, ck->entry_count, sizeof(*ck->entries), by_name);
	return true;
}

static void check_twice(struct checkpoint *ck, struct findings *f)
{
	for (size_t i = 1; i < ck->entry_count; i++) {
		const struct checkpoint_entry *a = &ck->entries[i - 1], *b = &ck->entries[i];
		char shown[UTF8_SHOWN_MAX];

		if (by_name(a, b) == 0)
			findings_add(f, ERR_CORRUPT, "tensor \"%s\" is both in %s and in %s",
				     utf8_show(shown, a->tensor->name), ck->files[a->file].name,
				     ck->files[b->file].name);
	}
}

/* --- the index ---------------------------------------------------------------- */

static const struct checkpoint_file *file_named(const struct checkpoint *ck, const char *name)
{
	for (size_t low = 0, high = ck->file_count; low < high;) {
		size_t middle = low + (high - low) / 2;
		int order = strcmp(name, ck->files[middle].name);

		if (order == 0)
			return &ck->files[middle];
		if (order < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return NULL;
}

static void check_indexed(struct checkpoint *ck, struct findings *f, const struct json *member)
{
	const struct checkpoint_file *file = file_named(ck, json_string(member, ""));
	struct checkpoint_entry *entry = find_entry(ck, json_key(member));
	char shown[UTF8_SHOWN_MAX];

	if (!file || file->header.data_start == 0)
		return; /* noted already: not a plain name, or the file cannot be read */
	if (entry)
		entry->indexed = true;
	if (!st_find(&file->header, json_key(member)))
		findings_add(f, ERR_CORRUPT, "%s says that %s holds tensor \"%s\", which it does not",
			     CHECKPOINT_INDEX_NAME, file->name, utf8_show(shown, json_key(member)));
}

static void check_index(struct checkpoint *ck, struct findings *f, const struct json *index)
{
	for (const struct json *m = json_first(checkpoint_weight_map(index)); m; m = json_next(m))
		check_indexed(ck, f, m);
	for (size_t i = 0; i < ck->entry_count; i++) {
		const struct checkpoint_entry *e = &ck->entries[i];
		char shown[UTF8_SHOWN_MAX];

		if (!e->indexed)
			findings_add(f, ERR_CORRUPT, "%s holds tensor \"%s\", which %s does not list",
				     ck->files[e->file].name, utf8_show(shown, e->tensor->name),
				     CHECKPOINT_INDEX_NAME);
	}
}

/* --- the model's tensors ------------------------------------------------------ */

struct check { struct checkpoint *ck; struct findings *f; bool complete; };

static bool is_float(enum st_dtype dtype)
{
	return dtype == ST_BF16 || dtype == ST_F16 || dtype == ST_F32;
}

static int check_tensor(void *ctx, const struct model_tensor *want)
{
	struct check *c = ctx;
	struct checkpoint_entry *entry = find_entry(c->ck, want->name);
	unsigned ndim = want->dim[1] ? 2 : 1;
	const struct st_tensor *t;
	const char *file;

	if (!entry) {
		if (c->complete)
			findings_add(c->f, ERR_CORRUPT, "tensor \"%s\" is missing", want->name);
		return 0;
	}
	t = entry->tensor;
	file = c->ck->files[entry->file].name;
	entry->wanted = true;
	if (!is_float(t->dtype))
		findings_add(c->f, ERR_UNSUPPORTED, "%s: tensor \"%s\" is %s; supported are BF16, F16 and "
			     "F32",
			     file, t->name, st_dtype_name(t->dtype));
	if (t->ndim != ndim || t->shape[0] != want->dim[0] || (ndim == 2 && t->shape[1] != want->dim[1]))
		findings_add(c->f, ERR_CORRUPT, "%s: tensor \"%s\" has %u dimensions, %llu x %llu; "
			     "config.json asks for %u, %zu x %zu", file, t->name, t->ndim,
			     (unsigned long long)(t->ndim > 0 ? t->shape[0] : 1),
			     (unsigned long long)(t->ndim > 1 ? t->shape[1] : 1), ndim, want->dim[0],
			     ndim == 2 ? want->dim[1] : 1);
	return c->f->failed ? -1 : 0;
}

/* What a runtime of the family recomputes or never looks at. */
static bool is_ignored(const struct checkpoint *ck, const char *name)
{
	static const char inv_freq[] = ".rotary_emb.inv_freq";
	size_t len = strlen(name), tail = sizeof(inv_freq) - 1;

	if (ck->config.tied_embeddings && strcmp(name, MODEL_HEAD_NAME) == 0)
		return true;
	return len > tail && strcmp(name + len - tail, inv_freq) == 0;
}

static void check_tensors(struct checkpoint *ck, struct findings *f)
{
	struct check c = { .ck = ck, .f = f, .complete = true };

	for (size_t i = 0; i < ck->file_count; i++)
		if (ck->files[i].header.data_start == 0)
			c.complete = false; /* what is missing may be in the file that cannot be read */
	model_each_tensor(&ck->config, check_tensor, &c);
	for (size_t i = 0; i < ck->entry_count; i++) {
		const struct checkpoint_entry *e = &ck->entries[i];
		char shown[UTF8_SHOWN_MAX];

		if (!e->wanted && !is_ignored(ck, e->tensor->name))
			findings_add(f, ERR_UNSUPPORTED, "%s: tensor \"%s\" is no part of a %s model of this "
				     "configuration", ck->files[e->file].name,
				     utf8_show(shown, e->tensor->name), ck->config.family);
	}
}

/* --- the whole ---------------------------------------------------------------- */

/* Shards and index against each other, and with `config_ok` against the configuration. */
static void open_files(struct checkpoint *ck, struct findings *f, bool config_ok)
{
	struct json *index = NULL;

	checkpoint_load_files(ck, f, &index);
	if (!f->failed && ck->file_count > 0 && gather_entries(ck, f)) {
		check_twice(ck, f);
		if (index)
			check_index(ck, f, index);
		if (config_ok)
			check_tensors(ck, f);
	}
	json_free(index);
}

static int end_open(struct checkpoint *ck, struct findings *f)
{
	if (findings_result(f) == 0)
		return 0;
	checkpoint_close(ck);
	return -1;
}

int checkpoint_open(struct checkpoint *ck, struct source *source, struct problems *problems,
		    struct err *err)
{
	struct findings f = { .list = problems, .err = err };
	bool config_ok;

	*ck = (struct checkpoint){ .source = source };
	config_ok = read_config(ck, &f);
	if (!f.failed)
		open_files(ck, &f, config_ok);
	return end_open(ck, &f);
}

int checkpoint_open_files(struct checkpoint *ck, struct source *source, struct problems *problems, struct err *err)
{
	struct findings f = { .list = problems, .err = err };

	*ck = (struct checkpoint){ .source = source };
	open_files(ck, &f, false);
	return end_open(ck, &f);
}

void checkpoint_close(struct checkpoint *ck)
{
	for (size_t i = 0; i < ck->file_count; i++) {
		mem_free(ck->files[i].name);
		st_header_deinit(&ck->files[i].header);
	}
	mem_free(ck->files);
	mem_free(ck->entries);
	mem_free(ck->config_text);
	*ck = (struct checkpoint){ 0 };
}

const struct st_tensor *checkpoint_find(const struct checkpoint *ck, const char *name,
					const struct checkpoint_file **file)
{
	const struct checkpoint_entry *entry = find_entry(ck, name);

	if (!entry)
		return NULL;
	if (file)
		*file = &ck->files[entry->file];
	return entry->tensor;
}
