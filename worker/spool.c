/* Writing and removing results; reading them back is in spool_load.c. */
#include "worker/spool.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "worker/spool_parts.h"

int spool_prepare(const char *work, struct err *err)
{
	static const char *const folders[] = { "run", "done" };

	for (size_t i = 0; i < 2; i++) {
		char *path = path_join(work, folders[i]);
		int rc = path ? dir_make(path, err) : err_set_nomem(err, "a path");

		mem_free(path);
		if (rc != 0)
			return -1;
	}
	return 0;
}

struct spool_entry *spool_entry_new(const char *work, const char *folder, const char *task, int64_t epoch,
				    struct err *err)
{
	struct spool_entry *entry;
	char name[SPOOL_TASK_MAX + 64];

	if (!path_is_plain_name(task) || strlen(task) > SPOOL_TASK_MAX || epoch < 0) {
		err_set(err, ERR_INVALID, "\"%.120s\" is not a task id", task);
		return NULL;
	}
	entry = mem_alloc(1, sizeof(*entry));
	if (!entry)
		goto nomem;
	snprintf(entry->task, sizeof(entry->task), "%s", task);
	entry->epoch = epoch;
	snprintf(name, sizeof(name), "%s/%s-%lld", folder, task, (long long)epoch);
	entry->dir = path_join(work, name);
	if (entry->dir)
		return entry;
nomem:
	mem_free(entry);
	err_set_nomem(err, "a result");
	return NULL;
}

void spool_entry_free(struct spool_entry *entry)
{
	if (!entry)
		return;
	for (size_t i = 0; i < entry->count; i++) {
		mem_free(entry->outputs[i].name);
		mem_free(entry->outputs[i].path);
	}
	mem_free(entry->outputs);
	mem_free(entry->dir);
	json_free(entry->complete);
	mem_free(entry);
}

char *spool_out_dir(const struct spool_entry *entry)
{
	return path_join(entry->dir, "out");
}

struct spool_entry *spool_begin(const char *work, const char *task, int64_t epoch, struct err *err)
{
	struct spool_entry *entry = spool_entry_new(work, "run", task, epoch, err);
	char *out;
	int rc;

	if (!entry)
		return NULL;
	out = spool_out_dir(entry);
	rc = out ? dir_remove(entry->dir, err) : err_set_nomem(err, "a path");
	if (rc == 0)
		rc = dir_make(out, err);
	mem_free(out);
	if (rc == 0)
		return entry;
	spool_entry_free(entry);
	return NULL;
}

void spool_drop(struct spool_entry *entry)
{
	struct err err = ERR_INIT;

	if (dir_remove(entry->dir, &err) != 0)
		log_warn("%s", err.text);
}

/* --- sealing --------------------------------------------------------------------------------------------- */

int spool_add_output(struct spool_entry *entry, const char *name, struct err *err)
{
	struct spool_output *grown, *output;
	char *out = spool_out_dir(entry);

	if (entry->count >= SPOOL_OUTPUTS_MAX || !path_is_plain_name(name)) {
		mem_free(out);
		return err_set(err, ERR_INVALID, "output \"%.100s\" of task %s is one too many or has no plain name",
			       name, entry->task);
	}
	grown = out ? mem_realloc(entry->outputs, entry->count + 1, sizeof(*grown)) : NULL;
	if (grown) {
		entry->outputs = grown;
		output = &grown[entry->count++];
		*output = (struct spool_output){ .name = mem_strdup(name), .path = path_join(out, name) };
		if (output->name && output->path) {
			mem_free(out);
			return 0;
		}
	}
	mem_free(out);
	return err_set_nomem(err, "an output");
}

static int list_outputs(struct spool_entry *entry, struct err *err)
{
	char *out = spool_out_dir(entry);
	DIR *dir = out ? opendir(out) : NULL;
	struct dirent *item;
	int rc = 0;

	if (!out)
		return err_set_nomem(err, "a path");
	if (!dir)
		rc = err_set_errno(err, errno, "cannot open folder %s", out);
	while (rc == 0 && (item = readdir(dir)))
		if (strcmp(item->d_name, ".") != 0 && strcmp(item->d_name, "..") != 0)
			rc = spool_add_output(entry, item->d_name, err);
	if (dir)
		closedir(dir);
	mem_free(out);
	return rc;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct spool_output *)a)->name, ((const struct spool_output *)b)->name);
}

static struct json *output_json(const struct spool_output *output)
{
	struct json *o = json_new_object();

	if (o && (json_set_string(o, "name", output->name) != 0 ||
		  json_set_string(o, "sha256", output->sha256) != 0 ||
		  json_set_int(o, "bytes", (int64_t)output->bytes) != 0)) {
		json_free(o);
		return NULL;
	}
	return o;
}

/* The same for result and stats: a copy, or {}. */
static int set_copy(struct json *object, const char *key, const struct json *value)
{
	return json_set(object, key, value ? json_copy(value) : json_new_object());
}

static struct json *outputs_json(const struct spool_entry *entry)
{
	struct json *outputs = json_new_array();

	for (size_t i = 0; outputs && i < entry->count; i++)
		if (json_push(outputs, output_json(&entry->outputs[i])) != 0) {
			json_free(outputs);
			return NULL;
		}
	return outputs;
}

static int make_complete(struct spool_entry *entry, const struct json *result, const struct json *stats,
			 struct err *err)
{
	struct json *c = json_new_object();

	entry->complete = c;
	if (c && json_set_string(c, "task", entry->task) == 0 && json_set_int(c, "epoch", entry->epoch) == 0 &&
	    json_set(c, "outputs", outputs_json(entry)) == 0 && set_copy(c, "result", result) == 0 &&
	    set_copy(c, "stats", stats) == 0)
		return 0;
	return err_set_nomem(err, "a result");
}

static int write_complete(const struct spool_entry *entry, struct err *err)
{
	char *path = path_join(entry->dir, "complete.json");
	char *text = json_print(entry->complete, false);
	int rc;

	if (!path || !text)
		rc = err_set_nomem(err, "a result");
	else
		rc = file_write_atomic(path, text, strlen(text), err);
	mem_free(text);
	mem_free(path);
	return rc;
}

/* After the rename every path in the entry names done/. */
static int move_to_done(struct spool_entry *entry, const char *work, struct err *err)
{
	struct spool_entry *there = spool_entry_new(work, "done", entry->task, entry->epoch, err);
	char *out, *old;
	int rc;

	if (!there)
		return -1;
	rc = dir_remove(there->dir, err);
	if (rc == 0)
		rc = file_rename_durable(entry->dir, there->dir, err);
	if (rc == 0) {
		old = entry->dir;
		entry->dir = there->dir;
		there->dir = old;
	}
	spool_entry_free(there);
	out = rc == 0 ? spool_out_dir(entry) : NULL;
	for (size_t i = 0; rc == 0 && i < entry->count; i++) {
		mem_free(entry->outputs[i].path);
		entry->outputs[i].path = out ? path_join(out, entry->outputs[i].name) : NULL;
		if (!entry->outputs[i].path)
			rc = err_set_nomem(err, "a path");
	}
	mem_free(out);
	return rc;
}

int spool_seal(struct spool_entry *entry, const char *work, const struct json *result,
	       const struct json *stats, struct err *err)
{
	if (list_outputs(entry, err) != 0)
		return -1;
	if (entry->count > 1)
		qsort(entry->outputs, entry->count, sizeof(*entry->outputs), by_name);
	for (size_t i = 0; i < entry->count; i++) {
		struct spool_output *o = &entry->outputs[i];

		if (digest_file(o->path, o->sha256, &o->bytes, err) != 0)
			return -1;
	}
	if (make_complete(entry, result, stats, err) != 0 || write_complete(entry, err) != 0)
		return -1;
	return move_to_done(entry, work, err);
}
