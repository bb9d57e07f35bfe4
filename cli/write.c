#include "cli/write.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "cli/text.h"
#include "common/alloc.h"
#include "common/checkpoint.h"
#include "common/file.h"

enum { TEXT_LIMIT = 64 << 20 };

struct writing {
	struct stored_folder *f;
	const struct output_format *format;
	struct output_model model;
	struct output_source source;
	struct output_plan plan;
	const char *dir;
	struct advance *advance;
	struct written *out;
};

static bool is_dense(const struct output_format *format)
{
	return format->codec && format->codec->tables == CODEC_TABLES_ROUNDED;
}

/* What a format could be written from only by leaving modules plain that were quantized, or were meant to be. */
static int check_quantized(const struct stored_folder *f, const struct output_format *format, struct problems *problems)
{
	size_t plain = 0, quantized = 0, first = 0;
	int rc = 0;

	for (size_t i = f->linears; i > 0; i--) {
		quantized += f->linear[i - 1].quantized;
		plain += f->linear[i - 1].quantized && f->linear[i - 1].why_plain;
		first = f->linear[i - 1].quantized && f->linear[i - 1].why_plain ? i - 1 : first;
	}
	if (is_dense(format) || (quantized == 0 && !format->codec))
		return 0;
	if (quantized == 0)
		rc = problems_add(problems, "%s: no module of the checkpoint is quantized; quantize it, or write it as dense, dense-f16, "
				  "dense-f32 or gguf", format->name);
	else if (plain > 0)
		rc = problems_add(problems, "%s: %s and %zu more modules cannot be told as scales and zero-points: %s; dense, dense-f16 and "
				  "dense-f32 hold them", format->name, f->modules[first].name, plain - 1, f->linear[first].why_plain);
	else
		return 0;
	return rc == 0 ? -1 : rc;
}

int write_check(struct stored_folder *f, const struct output_format *format, struct problems *problems, struct err *err)
{
	const struct output_source source = stored_folder_source(f);
	const size_t before = problems->count;
	struct output_model model;

	stored_folder_model(f, &model);
	if ((check_quantized(f, format, problems) | output_check(format, &model, problems)) != 0)
		return problems->count > before ? err_set(err, ERR_REFUSED, "%s", problems->items[before]) :
			err_set_nomem(err, "the check of a format");
	if (output_check_texts(format, &model, &source, err) == 0)
		return 0;
	if (err_retryable(err->code))
		return -1;
	return problems_add(problems, "%s", err->text) == 0 ? -1 : err_set_nomem(err, "the check of a format");
}

/* --- files --------------------------------------------------------------------------------------- */

static int put_bytes(struct writing *w, const char *name, const void *bytes, size_t len, struct err *err)
{
	char *path = path_join(w->dir, name);
	const int rc = path ? file_write_atomic(path, bytes, len, err) : err_set_nomem(err, "a path");

	mem_free(path);
	return rc;
}

/* Nothing when the format has no such file. */
static int put_buf(struct writing *w, const char *name, const struct buf *text, struct err *err)
{
	if (buf_failed(text))
		return err_set_nomem(err, name);
	return text->len ? put_bytes(w, name, text->data, text->len, err) : 0;
}

struct sink { int fd; const char *path; struct advance *advance; };

static int sink_write(void *ctx, uint64_t offset, const void *bytes, size_t len, struct err *err)
{
	const struct sink *s = ctx;

	return file_pwrite(s->fd, bytes, len, offset, s->path, err);
}

static int sink_progress(void *ctx, double share, struct err *err)
{
	return advance_to(((struct sink *)ctx)->advance, share, err);
}

static int write_file(struct writing *w, size_t i, const char *path, struct err *err)
{
	struct sink s = { file_open(path, O_RDWR | O_CREAT | O_EXCL, 0644, err), path, w->advance };
	const struct output_sink sink = { sink_write, sink_progress, &s };
	struct output_stats stats = { 0 };
	int rc;

	if (s.fd < 0)
		return -1;
	rc = output_write(&w->plan, i, &w->source, &sink, &stats, err);
	if (rc == 0)
		rc = file_sync(s.fd, path, err);
	if (close(s.fd) != 0 && rc == 0)
		rc = err_set(err, ERR_IO, "cannot write %s", path);
	w->out->bytes += stats.bytes;
	w->out->rounding = stats.rounding > w->out->rounding ? stats.rounding : w->out->rounding;
	return rc;
}

static int write_weights(struct writing *w, struct err *err)
{
	const double all = w->plan.bytes ? (double)w->plan.bytes : 1;
	double done = 0;
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < w->plan.file_count; i++) {
		const double bytes = (double)w->plan.files[i].bytes;
		char *path = path_join(w->dir, w->plan.files[i].name);

		advance_part(w->advance, done / all, bytes / all);
		rc = path ? write_file(w, i, path, err) : err_set_nomem(err, "a path");
		mem_free(path);
		done += bytes;
	}
	return rc;
}

static int write_carried(struct writing *w, struct err *err)
{
	for (const char *const *name = checkpoint_carried_files; w->format->codec && *name; name++) {
		struct err reason = ERR_INIT;
		size_t len = 0;
		char *text = w->source.text(w->source.ctx, *name, &len, &reason);
		const int rc = text ? put_bytes(w, *name, text, len, err) : 0;

		mem_free(text);
		if (!text && reason.code != ERR_NONE)
			return err_set(err, reason.code, "%s", reason.text);
		if (rc != 0)
			return -1;
	}
	return 0;
}

static int write_config(struct writing *w, struct err *err)
{
	struct buf text;
	int rc;

	buf_init(&text, TEXT_LIMIT);
	rc = output_config(w->format, &w->model, w->f->config_text, NULL, &text, err);
	if (rc == 0)
		rc = put_buf(w, "config.json", &text, err);
	buf_reset(&text);
	if (rc == 0)
		rc = output_extra(w->format, &w->model, &text, err);
	if (rc == 0 && text.len)
		rc = put_buf(w, w->format->codec->extra_file, &text, err);
	buf_reset(&text);
	if (rc == 0)
		rc = output_index(&w->plan, &text, err);
	if (rc == 0)
		rc = put_buf(w, "model.safetensors.index.json", &text, err);
	buf_deinit(&text);
	return rc;
}

static int write_readme(struct writing *w, const char *name, struct err *err)
{
	struct buf text;
	int rc;

	buf_init(&text, TEXT_LIMIT);
	rc = write_card(w->f, w->format, name, w->out, &text, err);
	if (rc == 0)
		rc = put_buf(w, "README.md", &text, err);
	buf_deinit(&text);
	return rc;
}

static int check_room(const struct writing *w, struct err *err)
{
	char need[TEXT_SHORT], have[TEXT_SHORT];
	uint64_t room;

	if (disk_free(w->dir, &room, err) != 0)
		return -1;
	if (w->plan.bytes <= room)
		return 0;
	return err_set(err, ERR_NOSPC, "no space: %s needs %s, and %s has %s left", w->format->name,
		       text_bytes((double)w->plan.bytes, need), w->dir, text_bytes((double)room, have));
}

int write_checkpoint(struct stored_folder *f, const struct output_format *format, uint64_t max_shard_size, const char *name,
		     const char *dir, struct advance *advance, struct written *out, struct err *err)
{
	struct writing w = { .f = f, .format = format, .dir = dir, .advance = advance, .out = out };
	int rc;

	*out = (struct written){ 0 };
	stored_folder_model(f, &w.model);
	w.source = stored_folder_source(f);
	if (output_plan_make(&w.plan, format, &w.model, max_shard_size, err) != 0)
		return -1;
	if (w.plan.quantized_weights)
		out->bits_per_weight = 8.0 * (double)w.plan.quantized_bytes / (double)w.plan.quantized_weights;
	rc = check_room(&w, err);
	if (rc == 0)
		rc = write_weights(&w, err);
	if (rc == 0)
		rc = write_config(&w, err);
	if (rc == 0)
		rc = write_carried(&w, err);
	if (rc == 0)
		rc = write_readme(&w, name, err);
	output_plan_deinit(&w.plan);
	return rc;
}
