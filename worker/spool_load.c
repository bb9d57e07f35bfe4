/* What an earlier process left behind: finished results are handed on, the rest is cleared away and named. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "worker/spool_parts.h"

enum { COMPLETE_MAX = 16 * 1024 * 1024 };

struct load {
	const char *work;
	void (*found)(void *ctx, struct spool_entry *entry);
	void (*broken)(void *ctx, const char *task, int64_t epoch, const char *why);
	void *ctx;
};

/* "<task>-<epoch>"; the last '-' separates. */
static bool split_folder(const char *name, char task[SPOOL_TASK_MAX + 1], int64_t *epoch)
{
	const char *dash = strrchr(name, '-');
	char *end;

	if (!dash || dash == name || dash - name > SPOOL_TASK_MAX || !path_is_plain_name(name))
		return false;
	snprintf(task, SPOOL_TASK_MAX + 1, "%.*s", (int)(dash - name), name);
	errno = 0;
	*epoch = strtoll(dash + 1, &end, 10);
	return errno == 0 && end != dash + 1 && *end == '\0' && *epoch >= 0;
}

static int read_output(struct spool_entry *entry, const struct json *o, struct err *err)
{
	const char *name, *sha256;
	char digest[DIGEST_HEX];
	struct spool_output *output;
	int64_t bytes;

	if (json_require_string(o, "name", &name, err) != 0 ||
	    json_require_string(o, "sha256", &sha256, err) != 0 ||
	    json_require_int(o, "bytes", 0, (int64_t)1 << 53, &bytes, err) != 0 ||
	    spool_add_output(entry, name, err) != 0)
		return -1;
	output = &entry->outputs[entry->count - 1];
	if (digest_file(output->path, digest, &output->bytes, err) != 0)
		return -1;
	if (strcmp(digest, sha256) != 0 || output->bytes != (uint64_t)bytes)
		return err_set(err, ERR_CORRUPT, "%s changed on disk", output->path);
	memcpy(output->sha256, digest, sizeof(digest));
	return 0;
}

static int read_complete(struct spool_entry *entry, struct err *err)
{
	char *path = path_join(entry->dir, "complete.json");
	size_t len = 0;
	char *text = path ? file_read_all(path, COMPLETE_MAX, &len, err) : NULL;
	const struct json *o;
	int rc = 0;

	mem_free(path);
	if (!text)
		return path ? -1 : err_set_nomem(err, "a path");
	entry->complete = json_parse(text, len, err);
	mem_free(text);
	if (!entry->complete)
		return err_prefix(err, "%s/complete.json", entry->dir);
	if (strcmp(json_get_string(entry->complete, "task", ""), entry->task) != 0 ||
	    json_get_int(entry->complete, "epoch", -1) != entry->epoch)
		return err_set(err, ERR_CORRUPT, "%s/complete.json is another task's", entry->dir);
	for (o = json_first(json_get(entry->complete, "outputs")); o && rc == 0; o = json_next(o))
		rc = read_output(entry, o, err);
	return rc;
}

static void clear_away(const struct load *l, struct spool_entry *entry, const char *why)
{
	log_warn("task %s epoch %lld: %s", entry->task, (long long)entry->epoch, why);
	l->broken(l->ctx, entry->task, entry->epoch, why);
	spool_drop(entry);
	spool_entry_free(entry);
}

static int load_finished(const struct load *l, struct spool_entry *entry, struct err *err)
{
	struct err why = ERR_INIT;

	if (read_complete(entry, &why) == 0) {
		l->found(l->ctx, entry);
	} else if (why.code == ERR_NOMEM) { /* says nothing about the result */
		*err = why;
		spool_entry_free(entry);
		return -1;
	} else {
		clear_away(l, entry, why.text);
	}
	return 0;
}

static int load_folder(const struct load *l, const char *folder, const char *name, struct err *err)
{
	char task[SPOOL_TASK_MAX + 1];
	struct spool_entry *entry;
	int64_t epoch;

	if (!split_folder(name, task, &epoch))
		return 0;
	entry = spool_entry_new(l->work, folder, task, epoch, err);
	if (!entry)
		return -1;
	if (strcmp(folder, "done") == 0)
		return load_finished(l, entry, err);
	clear_away(l, entry, "the worker process ended while it held this task");
	return 0;
}

static int load_folders(const struct load *l, const char *folder, struct err *err)
{
	char *path = path_join(l->work, folder);
	struct dirent **items = NULL;
	int count = path ? scandir(path, &items, NULL, alphasort) : -1, rc = 0;

	if (count < 0)
		rc = path ? err_set_errno(err, errno, "cannot open folder %s", path)
			  : err_set_nomem(err, "a path");
	for (int i = 0; i < count; i++) {
		if (rc == 0 && items[i]->d_name[0] != '.')
			rc = load_folder(l, folder, items[i]->d_name, err);
		free(items[i]);
	}
	free(items);
	mem_free(path);
	return rc;
}

int spool_load(const char *work, void (*found)(void *ctx, struct spool_entry *entry),
	       void (*broken)(void *ctx, const char *task, int64_t epoch, const char *why), void *ctx,
	       struct err *err)
{
	const struct load l = { work, found, broken, ctx };

	return load_folders(&l, "run", err) == 0 ? load_folders(&l, "done", err) : -1;
}
