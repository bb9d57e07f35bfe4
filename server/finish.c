/* Ends jobs: when every task is done, the small files are written and the job becomes DONE.
 *
 * Invariants:
 *  1. Files go into the blob store first; their rows, the report's digest and the move to DONE are one
 *     transaction. A crash in between leaves the job ASSEMBLING, and it is finished again.
 *  2. A failure of the machine (disk full, I/O) leaves the job as it is for the next try; a reason that will not go away
 *     (a carried file changed) fails the job.
 * Runs in the helper thread, outside the writer, which only stores the rows.
 */
#include "server/finish.h"

#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "server/blobs.h"
#include "server/engine_model_source.h"

enum { FILES_MAX = 256, PENDING_MAX = 64 };

struct finish_file { char path[256]; char sha256[DIGEST_HEX]; int64_t bytes; };

struct finish {
	struct engine *e;
	struct store *db;
	struct job_ref job;
	struct json *report;
	struct finish_outputs outputs;
	struct finish_file *files; size_t file_count;
};

/* --- collecting files --------------------------------------------------------- */

static int add_row(struct finish *f, const char *folder, const char *name, const char *sha256, int64_t bytes,
		   struct err *err)
{
	struct finish_file *file = &f->files[f->file_count];

	if (f->file_count == FILES_MAX)
		return err_set(err, ERR_INTERNAL, "a job has more than %d small files", FILES_MAX);
	snprintf(file->path, sizeof(file->path), "%s%s%s", folder, folder[0] ? "/" : "", name);
	snprintf(file->sha256, sizeof(file->sha256), "%s", sha256);
	file->bytes = bytes;
	f->file_count++;
	return 0;
}

static int add_bytes(struct finish *f, const char *folder, const char *name, const void *bytes, size_t len,
		     struct err *err)
{
	char sha256[DIGEST_HEX];

	if (blobs_put(f->e->config.blobs, bytes, len, sha256, err) != 0)
		return -1;
	return add_row(f, folder, name, sha256, (int64_t)len, err);
}

static int add_buf(struct finish *f, const char *folder, const char *name, struct buf *text, struct err *err)
{
	if (buf_failed(text))
		return err_set_nomem(err, name);
	return add_bytes(f, folder, name, buf_text(text), text->len, err);
}

/* A file of the source that the result carries unchanged; it must still be the one that was registered. */
static int add_carried(struct finish *f, const char *folder, const char *name, const char *sha256,
		       int64_t bytes, struct err *err)
{
	char *path, *text, now[DIGEST_HEX];
	size_t len;
	int rc;

	if (!f->outputs.path)
		return add_row(f, folder, name, sha256, bytes, err);
	path = path_join(f->outputs.path, name);
	if (!path)
		return err_set_nomem(err, "a path");
	text = file_read_all(path, (size_t)bytes, &len, err);
	rc = text ? digest_of(text, len, now) : -1;
	if (text && rc != 0)
		err_set_nomem(err, "a digest");
	if (!text && (err->code == ERR_NOT_FOUND || err->code == ERR_TOO_LARGE))
		err_set(err, ERR_REFUSED, "%s is gone or changed since the model was registered", path);
	if (rc == 0 && strcmp(now, sha256) != 0)
		rc = err_set(err, ERR_REFUSED, "%s changed since the model was registered", path);
	if (rc == 0)
		rc = add_bytes(f, folder, name, text, len, err);
	mem_free(text);
	mem_free(path);
	return rc;
}

static int add_all_carried(struct finish *f, const char *folder, struct err *err)
{
	struct query *q = store_select(f->db, SQL_JOB_MODEL_FILES, err, sql_i(f->job.pk));
	int more, rc = 0;

	while (rc == 0 && (more = query_next(q, err)) != 0)
		if (more < 0)
			rc = -1;
		else if (query_int(q, 1) == MODEL_FILE_CARRIED)
			rc = add_carried(f, folder, query_text(q, 0), query_text(q, 3), query_int(q, 2), err);
	query_done(q);
	return rc;
}

/* A text that a format may have. */
static int add_text(struct finish *f, const struct finish_output *out, const char *name,
		    int (*make)(struct finish *f, const struct finish_output *out, struct buf *text, struct err *err),
		    struct err *err)
{
	struct buf text;
	int rc;

	buf_init(&text, FINISH_TEXT_MAX);
	rc = make(f, out, &text, err);
	if (rc == 0 && (text.len > 0 || buf_failed(&text)))
		rc = add_buf(f, out->format->name, name, &text, err);
	buf_deinit(&text);
	return rc;
}

static int make_config(struct finish *f, const struct finish_output *out, struct buf *text, struct err *err)
{
	return output_config(out->format, &f->outputs.model, f->outputs.config_text, json_get(f->report, "recipe"), text,
			     err);
}

static int make_extra(struct finish *f, const struct finish_output *out, struct buf *text, struct err *err)
{
	return output_extra(out->format, &f->outputs.model, text, err);
}

static int make_index(struct finish *f, const struct finish_output *out, struct buf *text, struct err *err)
{
	(void)f;
	return output_index(&out->plan, text, err);
}

static int make_card(struct finish *f, const struct finish_output *out, struct buf *text, struct err *err)
{
	return finish_card(f->report, out->format, text, err);
}

/* A format without a codec carries everything but the card in its one file. */
static int add_format(struct finish *f, const struct finish_output *out, struct err *err)
{
	const struct codec *codec = out->format->codec;

	if (codec && (add_text(f, out, "config.json", make_config, err) != 0 ||
		      (codec->extra_file && add_text(f, out, codec->extra_file, make_extra, err) != 0) ||
		      add_text(f, out, "model.safetensors.index.json", make_index, err) != 0 ||
		      add_all_carried(f, out->format->name, err) != 0))
		return -1;
	return add_text(f, out, "README.md", make_card, err);
}

/* The file's name in the folder `prefix` ("mlx/"), or NULL: it lies elsewhere. */
static const char *name_in(const char *path, const char *prefix)
{
	return strncmp(path, prefix, strlen(prefix)) == 0 ? path + strlen(prefix) : NULL;
}

/* Adds the weights of a format, which the tasks made. Paths come in order, from the folder's on. */
static int add_stored_digests(const struct finish *f, const char *prefix, struct json *o, struct err *err)
{
	struct query *q = store_select(f->db, SQL_FILES, err, sql_i(f->job.pk), sql_t(prefix), sql_i(1 << 20));
	const char *name;
	int more, rc = 0;

	while (rc == 0 && (more = query_next(q, err)) == 1 && (name = name_in(query_text(q, 0), prefix)))
		rc = json_set_string(o, name, query_text(q, 1));
	query_done(q);
	return rc == 0 && more >= 0 ? 0 : -1;
}

/* "sha256" of a format: of every file of its folder. */
static struct json *digests_of(const struct finish *f, const char *format, struct err *err)
{
	struct json *o = json_new_object();
	char prefix[80];
	int rc = o ? 0 : -1;

	snprintf(prefix, sizeof(prefix), "%s/", format);
	if (rc == 0)
		rc = add_stored_digests(f, prefix, o, err);
	for (size_t i = 0; rc == 0 && i < f->file_count; i++) {
		const char *name = name_in(f->files[i].path, prefix);

		if (name)
			rc = json_set_string(o, name, f->files[i].sha256);
	}
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

/* Model cards are made from the report, so the digests come into it last. */
static int add_digests(struct finish *f, struct err *err)
{
	struct json *all = json_copy(json_get(f->report, "outputs")), *told = json_new_object();
	int rc = all && told ? 0 : -1;

	for (const struct json *o = json_first(all); rc == 0 && o; o = json_next(o)) {
		struct json *with = json_copy(o);

		rc = json_set(with, "sha256", digests_of(f, json_key(o), err));
		rc |= json_set(told, json_key(o), with);
	}
	json_free(all);
	json_remove(f->report, "outputs");
	if (rc == 0)
		return json_set(f->report, "outputs", told) == 0 ? 0 : err_set_nomem(err, "the report");
	json_free(told);
	return err->code != ERR_NONE ? -1 : err_set_nomem(err, "the report");
}

static int add_report(struct finish *f, struct err *err)
{
	char *text = f->outputs.count == 0 || add_digests(f, err) == 0 ? json_print(f->report, true) : NULL;
	int rc = text ? 0 : err->code != ERR_NONE ? -1 : err_set_nomem(err, "the report");
	size_t len = text ? strlen(text) : 0;

	if (rc == 0) {
		text[len] = '\n'; /* in place of the NUL: only bytes are stored */
		rc = add_bytes(f, "", "report.json", text, len + 1, err);
	}
	mem_free(text);
	return rc;
}

static int make_files(struct finish *f, struct err *err)
{
	if (finish_outputs_read(&f->outputs, f->db, &f->job, err) != 0)
		return -1;
	f->report = finish_report(f->e, f->db, &f->job, &f->outputs, err);
	if (!f->report)
		return -1;
	for (size_t i = 0; i < f->outputs.count; i++)
		if (add_format(f, &f->outputs.items[i], err) != 0)
			return -1;
	return add_report(f, err);
}

/* --- storing ------------------------------------------------------------------ */

static int store_file(struct tx *tx, const struct job_ref *job, const struct finish_file *file, struct err *err)
{
	if (!blobs_has(tx->e->config.blobs, file->sha256, NULL))
		return err_set(err, ERR_UNAVAILABLE, "%s was dropped meanwhile; it is made again", file->path);
	if (store_exec(tx->db, SQL_BLOB_ADD, err, sql_t(file->sha256), sql_i(file->bytes), sql_i(tx->now_ms)) < 0 ||
	    store_exec(tx->db, SQL_FILE_ADD, err, sql_i(job->pk), sql_t(file->path), sql_t(file->sha256),
		       sql_i(file->bytes)) < 0)
		return -1;
	return 0;
}

/* The job may have been cancelled meanwhile: then there is nothing to do. */
static int store_done(struct tx *tx, void *ctx, struct err *err)
{
	struct finish *f = ctx;
	struct job_ref job;

	if (job_load(tx->db, f->job.pk, &job, err) != 0)
		return -1;
	if (job.state != JOB_ASSEMBLING || job.unfinished != 0)
		return 0;
	for (size_t i = 0; i < f->file_count; i++)
		if (store_file(tx, &job, &f->files[i], err) != 0)
			return -1;
	if (store_exec(tx->db, SQL_JOB_SET_REPORT, err, sql_i(job.pk), sql_t(f->files[f->file_count - 1].sha256)) < 0 ||
	    job_drop_outputs(tx, &job, err) != 0 ||
	    job_move(tx->db, job.pk, job.id, JOB_ASSEMBLING, JOB_DONE, tx->now_ms, err) != 0)
		return -1;
	return job_touch(tx, job.pk, job.id, err);
}

struct give_up { int64_t job; const char *detail; };

static int store_failure(struct tx *tx, void *ctx, struct err *err)
{
	const struct give_up *g = ctx;
	struct job_ref job;

	if (job_load(tx->db, g->job, &job, err) != 0)
		return -1;
	return job_fail(tx, &job, 0, g->detail, err);
}

static void finish_failed(struct engine *e, const struct job_ref *job, const struct err *why)
{
	struct give_up g = { job->pk, why->text };
	struct err err = ERR_INIT;

	log_error("job %s: cannot finish: %s", job->id, why->text);
	if (!err_retryable(why->code) && writer_run(e, store_failure, &g, &err) != 0)
		log_error("job %s: %s", job->id, err.text);
}

static void finish_one(struct engine *e, int64_t pk)
{
	struct finish f = { .e = e };
	struct err err = ERR_INIT;
	int rc = -1;

	f.files = mem_alloc(FILES_MAX, sizeof(*f.files));
	f.db = f.files ? reader_take(e, &err) : NULL;
	if (!f.files)
		err_set_nomem(&err, "the files of a job");
	if (f.db) {
		rc = job_load(f.db, pk, &f.job, &err);
		if (rc == 0)
			rc = make_files(&f, &err);
		reader_give(e, f.db);
	}
	if (rc == 0)
		rc = writer_run(e, store_done, &f, &err);
	if (rc != 0)
		finish_failed(e, &f.job, &err);
	json_free(f.report);
	finish_outputs_deinit(&f.outputs);
	mem_free(f.files);
}

static size_t list_pending(struct engine *e, int64_t pks[PENDING_MAX])
{
	struct err err = ERR_INIT;
	struct store *db = reader_take(e, &err);
	struct query *q;
	size_t count = 0;

	if (!db)
		return 0;
	q = store_select(db, SQL_JOBS_TO_FINISH, &err);
	while (count < PENDING_MAX && query_next(q, &err) == 1)
		pks[count++] = query_int(q, 0);
	query_done(q);
	reader_give(e, db);
	return count;
}

void finish_pending(struct engine *e)
{
	int64_t pks[PENDING_MAX];
	size_t count;

	if (pthread_mutex_trylock(&e->finish_lock) != 0)
		return; /* somebody is at it */
	count = list_pending(e, pks);
	for (size_t i = 0; i < count; i++)
		finish_one(e, pks[i]);
	pthread_mutex_unlock(&e->finish_lock);
}
