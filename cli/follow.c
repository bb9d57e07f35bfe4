#include "cli/follow.h"

#include <stdio.h>
#include <string.h>

#include "cli/interrupt.h"
#include "cli/text.h"
#include "common/alloc.h"
#include "common/buf.h"
#include "common/clock.h"

enum { POLL_S = 1, PLAIN_EVERY_MS = 5000, DRAW_PAUSE_MS = 200, AWAY_PAUSE_MS = 500, BAR_CELLS = 24 };

/* In the order in which a job passes through them. */
static const char *const stages[] = { "verify", "tokenize", "embed", "capture", "quantize", "distill",
				      "evaluate", "assemble" };
enum { STAGES = sizeof(stages) / sizeof(stages[0]) };

struct view {
	bool finished[STAGES];  /* its standing line is out */
	int64_t began_ms, plain_ms, away_since_ms;
	char last[512];
	char etag[128];
};

static int64_t now_ms(void)
{
	return clock_system.mono_ms(clock_system.ctx);
}

/* --- reading a job ------------------------------------------------------------------------------ */

bool job_is_final(const struct json *job)
{
	const char *state = json_get_string(job, "state", "");

	return strcmp(state, "DONE") == 0 || strcmp(state, "FAILED") == 0 || strcmp(state, "CANCELLED") == 0;
}

int job_outcome(const struct json *job, struct err *err)
{
	const char *state = json_get_string(job, "state", "");
	const char *detail = json_get_string(json_get(job, "failure"), "detail", "");

	if (strcmp(state, "DONE") == 0)
		return 0;
	if (strcmp(state, "CANCELLED") == 0)
		return err_set(err, ERR_CANCELLED, "the job was cancelled");
	return err_set(err, ERR_INTERNAL, "the job failed%s%s", *detail ? ": " : "", detail);
}

void print_attempts(const struct json *job)
{
	const struct json *attempts = json_get(json_get(job, "failure"), "attempts");

	for (const struct json *a = json_first(attempts); a; a = json_next(a))
		print_note("  attempt on %s: %s (%s)", json_get_string(a, "worker", "?"),
			   json_get_string(a, "detail", ""), json_get_string(a, "error", ""));
}

bool worst_module(const struct json *job, char *name, size_t cap, double *loss)
{
	*loss = -1;
	for (const struct json *l = json_first(json_get(job, "layers")); l; l = json_next(l))
		for (const struct json *m = json_first(json_get(l, "modules")); m; m = json_next(m)) {
			double relative = json_get_number(m, "relative_loss", -1);

			if (relative <= *loss)
				continue;
			*loss = relative;
			snprintf(name, cap, "%lld.%s", (long long)json_get_int(l, "layer", 0),
				 json_get_string(m, "name", "?"));
		}
	return *loss >= 0;
}

static long long stage_count(const struct json *job, size_t stage, const char *field)
{
	return (long long)json_get_int(json_get(json_get(job, "kinds"), stages[stage]), field, 0);
}

/* The first stage with work left, or -1. */
static int current_stage(const struct json *job)
{
	for (size_t i = 0; i < STAGES; i++)
		if (stage_count(job, i, "DONE") < stage_count(job, i, "total"))
			return (int)i;
	return -1;
}

/* --- lines ---------------------------------------------------------------------------------------- */

static void put_bar(struct buf *line, double progress)
{
	int full = (int)(progress * BAR_CELLS + 0.5);
	char cells[BAR_CELLS + 1];

	for (int i = 0; i < BAR_CELLS; i++)
		cells[i] = i < full ? '#' : '.';
	cells[BAR_CELLS] = '\0';
	buf_printf(line, "[%s] ", cells);
}

static void put_stage(struct buf *line, const struct json *job)
{
	int stage = current_stage(job);

	if (stage >= 0)
		buf_printf(line, "  %s %lld/%lld", stages[stage], stage_count(job, (size_t)stage, "DONE"),
			   stage_count(job, (size_t)stage, "total"));
}

void progress_line(const struct json *job, bool bar, char *out, size_t cap)
{
	double progress = json_get_number(job, "progress", 0), eta = json_get_number(job, "eta_seconds", -1), loss;
	const struct json *tasks = json_get(job, "tasks");
	char left[TEXT_SHORT], name[160], safe[640];
	struct buf line;

	buf_init(&line, 4096);
	progress = progress < 0 ? 0 : progress > 1 ? 1 : progress;
	if (bar)
		put_bar(&line, progress);
	buf_printf(&line, "%3.0f %%  %lld of %lld tasks", progress * 100,
		   (long long)json_get_int(tasks, "DONE", 0), (long long)json_get_int(tasks, "total", 0));
	put_stage(&line, job);
	if (eta >= 0)
		buf_printf(&line, "  %s left", text_duration(eta, left));
	if (worst_module(job, name, sizeof(name), &loss))
		buf_printf(&line, "  worst %s %.1f %%", text_safe(name, safe, sizeof(safe)), loss * 100);
	snprintf(out, cap, "%s", buf_text(&line));
	buf_deinit(&line);
}

static void say_finished_stages(struct view *v, const struct json *job)
{
	char took[TEXT_SHORT];

	for (size_t i = 0; i < STAGES; i++) {
		long long total = stage_count(job, i, "total");

		if (v->finished[i] || total == 0 || stage_count(job, i, "DONE") < total)
			continue;
		v->finished[i] = true;
		status_clear();
		print_note("%-9s %lld of %lld done, %s after the start", stages[i], total, total,
			   text_duration((double)(now_ms() - v->began_ms) / 1000, took));
	}
}

static void show(struct view *v, const struct json *job)
{
	char line[512];
	bool live = status_is_live();

	say_finished_stages(v, job);
	progress_line(job, live, line, sizeof(line));
	if (live) {
		status_draw(line);
	} else if (now_ms() - v->plain_ms >= PLAIN_EVERY_MS && strcmp(line, v->last) != 0) {
		print_note("%s", line);
		v->plain_ms = now_ms();
		snprintf(v->last, sizeof(v->last), "%s", line);
	}
}

/* --- waiting -------------------------------------------------------------------------------------- */

static int ask(const struct follow *f, struct view *v, struct json **job, struct err *err)
{
	char *etag = url_escape(v->etag), path[512];
	struct client_request request = { .method = "GET", .path = path, .wait_s = POLL_S };
	struct client_reply reply = { 0 };
	int rc;

	if (!etag)
		return err_set_nomem(err, "a request");
	snprintf(path, sizeof(path), "/v1/jobs/%s%s%s", f->job, *etag ? "?wait_for_change=" : "", etag);
	mem_free(etag);
	rc = client_call(f->client, &request, &reply, err);
	if (rc == 0 && reply.body) {
		json_free(*job);
		*job = reply.body;
		reply.body = NULL;
		snprintf(v->etag, sizeof(v->etag), "%s", reply.etag);
	}
	client_reply_deinit(&reply);
	return rc;
}

/* A coordinator that does not answer is waited for; any other failure ends the wait. */
static int bear_with(const struct follow *f, struct view *v, struct err *err)
{
	if (err->code != ERR_UNAVAILABLE && err->code != ERR_BUSY && err->code != ERR_TIMEOUT)
		return -1;
	if (v->away_since_ms == 0) {
		v->away_since_ms = now_ms();
		print_note("%s; waiting for it", err->text);
	}
	if (now_ms() - v->away_since_ms > f->patience_ms)
		return -1;
	err_clear(err);
	interruptible_sleep_ms(AWAY_PAUSE_MS);
	return 0;
}

static int follow_step(const struct follow *f, struct view *v, struct json **job, struct err *err)
{
	if (interrupt_check(err) != 0 || (f->tend && f->tend(f->tend_ctx, err) != 0))
		return -1;
	if (ask(f, v, job, err) != 0)
		return bear_with(f, v, err);
	v->away_since_ms = 0;
	if (*job)
		show(v, *job);
	if (!*job || !job_is_final(*job))
		interruptible_sleep_ms(DRAW_PAUSE_MS);
	return 0;
}

int follow_job(const struct follow *f, struct json **job, struct err *err)
{
	struct view v = { .began_ms = now_ms(), .plain_ms = now_ms() };
	int rc = 0;

	*job = NULL;
	while (rc == 0 && !(*job && job_is_final(*job)))
		rc = follow_step(f, &v, job, err);
	status_clear();
	if (rc != 0) {
		json_free(*job);
		*job = NULL;
	}
	return rc;
}
