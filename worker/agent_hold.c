/* A held task: how it begins, its heartbeats, and the ways it ends. agent_state.h has the picture. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/log.h"
#include "worker/agent_parts.h"
#include "worker/task_scratch.h"

static void step(void *ctx);
static void send_beat(void *ctx);

/* --- life ---------------------------------------------------------------------------------------------- */

static struct hold *hold_new(struct agent *a, enum hold_state state, const char *task, int64_t epoch,
			     int64_t lease_ms)
{
	struct hold *h = mem_alloc(1, sizeof(*h));

	if (!h)
		return NULL;
	h->agent = a;
	h->state = state;
	h->epoch = epoch;
	h->lease_ms = lease_ms;
	snprintf(h->task, sizeof(h->task), "%s", task);
	compute_job_init(&h->job);
	h->beat_timer = loop_timer_new(a->loop, send_beat, h);
	h->timer = loop_timer_new(a->loop, step, h);
	h->checkpoint.timer = loop_timer_new(a->loop, hold_checkpoint_step, h);
	if (!h->beat_timer || !h->timer || !h->checkpoint.timer) {
		hold_free(h);
		return NULL;
	}
	return h;
}

/* Ends everything under way but the compute thread's work. */
static void silence(struct hold *h)
{
	client_cancel(h->beat);
	client_cancel(h->call);
	h->beat = h->call = NULL;
	if (h->beat_timer)
		loop_timer_stop(h->beat_timer);
	if (h->timer)
		loop_timer_stop(h->timer);
	hold_stop_fetching(h);
	hold_forget_checkpoint(h);
	send_free(h->send);
	h->send = NULL;
}

/* drop: nobody wants the result any more; else it waits on disk for the next process. */
static void leave_seal(struct hold *h, bool drop)
{
	seal_abandon(h->seal, drop);
	h->seal = NULL;
}

void hold_free(struct hold *h)
{
	if (!h)
		return;
	silence(h);
	leave_seal(h, false);
	hold_unpin_inputs(h);
	loop_timer_free(h->beat_timer);
	loop_timer_free(h->timer);
	loop_timer_free(h->checkpoint.timer);
	for (size_t i = 0; h->inputs && i < h->lease.input_count; i++)
		mem_free((char *)h->inputs[i].path);
	mem_free(h->inputs);
	compute_job_deinit(&h->job);
	spool_entry_free(h->entry);
	lease_deinit(&h->lease);
	mem_free(h->log);
	mem_free(h);
}

static struct hold *hold_join(struct hold *h)
{
	h->next = h->agent->holds;
	h->agent->holds = h;
	return h;
}

struct hold *hold_from_lease(struct agent *a, const char *text, size_t len, struct err *err)
{
	struct lease lease;
	struct hold *h;

	if (lease_parse(&lease, text, len, err) != 0)
		return NULL;
	h = hold_new(a, HOLD_ACCEPTING, lease.task, lease.epoch, lease.lease_ms);
	if (!h) {
		lease_deinit(&lease);
		err_set_nomem(err, "a lease");
		return NULL;
	}
	h->lease = lease;
	log_info("task %s epoch %lld: %s, %zu inputs", h->task, (long long)h->epoch, lease.kind,
		 lease.input_count);
	hold_start(h);
	return hold_join(h);
}

struct hold *hold_from_spool(struct agent *a, struct spool_entry *entry)
{
	struct hold *h = hold_new(a, HOLD_UPLOADING, entry->task, entry->epoch, HOLD_DEFAULT_LEASE_MS);

	if (!h) {
		spool_entry_free(entry);
		return NULL;
	}
	log_info("task %s epoch %lld: its finished result waits in %s", h->task, (long long)h->epoch,
		 entry->dir);
	h->entry = entry;
	return hold_join(h);
}

struct hold *hold_from_wreck(struct agent *a, const char *task, int64_t epoch, const char *why)
{
	struct hold *h = hold_new(a, HOLD_FAILING, task, epoch, HOLD_DEFAULT_LEASE_MS);

	if (!h)
		return NULL;
	err_set(&h->why, ERR_IO, "%s", why);
	h->wreck = true;
	return hold_join(h);
}

bool hold_is_busy(const struct hold *h)
{
	return h->running || h->state == HOLD_ACCEPTING || h->state == HOLD_FETCHING;
}

bool hold_is_sealed_soon(const struct hold *h)
{
	return h->state == HOLD_SEALING && loop_now_ms(h->agent->loop) - h->sealing_since_ms < SEAL_SOON_MS;
}

bool hold_is_uploading(const struct hold *h)
{
	return h->state == HOLD_UPLOADING || h->state == HOLD_COMPLETING;
}

void hold_set(struct hold *h, enum hold_state to)
{
	hold_move(&h->state, to, h->task, h->epoch);
	h->failures = 0;
	agent_settle_soon(h->agent);
}

/* --- requests ------------------------------------------------------------------------------------------- */

void hold_retry(struct hold *h)
{
	h->failures++;
	loop_timer_start(h->timer, agent_backoff_ms(h->agent, h->failures));
}

static struct client_call *post(struct hold *h, const char *verb, char *body, int timeout_s,
				void (*done)(void *ctx, const struct client_reply *reply))
{
	char path[WIRE_ID_MAX + 64];
	const struct client_request rq = {
		.method = "POST", .path = path, .json = body, .timeout_s = timeout_s, .done = done, .ctx = h,
	};
	struct client_call *call;

	snprintf(path, sizeof(path), "/v1/leases/%s/%s", h->task, verb);
	call = body ? client_send(h->agent->client, &rq) : NULL;
	mem_free(body);
	return call;
}

void hold_post(struct hold *h, const char *verb, char *body,
	       void (*done)(void *ctx, const struct client_reply *reply))
{
	h->call = post(h, verb, body, REQUEST_SECONDS, done);
	if (!h->call)
		hold_retry(h);
}

/* --- heartbeats ------------------------------------------------------------------------------------------ */

static bool needs_beats(const struct hold *h)
{
	return h->state <= HOLD_COMPLETING;
}

static void beat_later(struct hold *h, int64_t ms)
{
	if (needs_beats(h))
		loop_timer_start(h->beat_timer, ms);
}

static void beat_answered(struct hold *h, const struct client_reply *reply)
{
	struct json *o = json_parse(reply->body, reply->len, NULL);
	bool cancel = json_get_bool(o, "cancel", false), drain = json_get_bool(o, "drain", false);
	struct err why = ERR_INIT;

	json_free(o);
	h->beat_failures = 0;
	if (cancel) {
		err_set(&why, ERR_CANCELLED, "the coordinator cancelled it");
		hold_lost(h, &why);
		return;
	}
	beat_later(h, decide_heartbeat_ms(h->lease_ms));
	if (drain)
		agent_drain(h->agent);
	if (h->state == HOLD_ACCEPTING)
		hold_fetch_inputs(h);
}

static void beat_done(void *ctx, const struct client_reply *reply)
{
	struct hold *h = ctx;
	struct agent *a = h->agent;

	h->beat = NULL;
	a->transfer.contact(a->transfer.contact_ctx, reply);
	if (!needs_beats(h))
		return;
	switch (decide_reply(REQUEST_HEARTBEAT, reply->status, reply->err.code)) {
	case VERDICT_DONE:
		beat_answered(h, reply);
		return;
	case VERDICT_LOST:
		hold_lost(h, &reply->err);
		return;
	case VERDICT_RETRY:
	case VERDICT_REGISTER:
	case VERDICT_UPLOAD_AGAIN:
	case VERDICT_REFUSED:
		if (reply->status != 0 && h->beat_failures == 0)
			log_warn("task %s: heartbeat: %s", h->task, reply->err.text);
		h->beat_failures++;
		beat_later(h, decide_heartbeat_retry_ms(h->lease_ms, h->beat_failures,
							transfer_random(&a->transfer)));
		return;
	}
}

static double describe(struct hold *h, char note[COMPUTE_NOTE_MAX])
{
	if (h->state == HOLD_COMPUTING)
		return compute_progress(&h->job, note);
	snprintf(note, COMPUTE_NOTE_MAX, "%s", h->state < HOLD_COMPUTING ? "fetching inputs" :
		 h->state == HOLD_SEALING ? "hashing the result" : "uploading");
	return h->state < HOLD_COMPUTING ? 0 : 1;
}

static void send_beat(void *ctx)
{
	struct hold *h = ctx;
	char note[COMPUTE_NOTE_MAX];
	double progress = describe(h, note);
	int64_t half_s = h->lease_ms / 2000;

	if (!needs_beats(h) || h->beat)
		return;
	h->beat = post(h, "heartbeat", wire_heartbeat(h->agent->worker, h->epoch, progress, note),
		       half_s < 2 ? 2 : half_s > REQUEST_SECONDS ? REQUEST_SECONDS : (int)half_s, beat_done);
	if (!h->beat)
		beat_later(h, decide_heartbeat_retry_ms(h->lease_ms, ++h->beat_failures, UINT32_MAX));
}

/* --- endings ---------------------------------------------------------------------------------------------------- */

/* The task may be held once more, at a later epoch, and then its scratch folder is in use. */
static void drop_scratch(const struct hold *h)
{
	for (const struct hold *other = h->agent->holds; other; other = other->next)
		if (other != h && other->state != HOLD_GONE && strcmp(other->task, h->task) == 0)
			return;
	task_scratch_drop(h->agent->config.work, h->task);
}

void hold_end(struct hold *h)
{
	silence(h);
	if (h->running) {
		atomic_store(&h->job.stop, true);
		if (h->state != HOLD_STOPPING)
			hold_set(h, HOLD_STOPPING);
		return;
	}
	hold_set(h, HOLD_GONE);
	hold_unpin_inputs(h);
	leave_seal(h, true);
	if (h->entry)
		spool_drop(h->entry);
	if (h->over)
		drop_scratch(h);
}

void hold_lost(struct hold *h, const struct err *why)
{
	log_warn("task %s epoch %lld is dropped: %s", h->task, (long long)h->epoch, why->text);
	h->over = true;
	hold_end(h);
}

/* The last word about a task, whatever the answer. */
static void last_word_done(void *ctx, const struct client_reply *reply)
{
	struct hold *h = ctx;
	struct agent *a = h->agent;
	enum request_kind kind = h->state == HOLD_FAILING ? REQUEST_FAIL : REQUEST_RELEASE;
	enum verdict verdict = decide_reply(kind, reply->status, reply->err.code);

	h->call = NULL;
	a->transfer.contact(a->transfer.contact_ctx, reply);
	if (verdict == VERDICT_RETRY) {
		hold_retry(h);
		return;
	}
	if (verdict != VERDICT_DONE)
		log_warn("task %s epoch %lld: %s", h->task, (long long)h->epoch, reply->err.text);
	if (!h->wreck)
		h->over = verdict == VERDICT_LOST || (h->state == HOLD_FAILING && !err_retryable(h->why.code));
	hold_end(h);
}

static void send_failure(struct hold *h)
{
	hold_post(h, "fail", wire_fail(h->agent->worker, h->epoch, &h->why, h->log ? h->log : ""),
		  last_word_done);
}

void hold_fail(struct hold *h, const struct err *why)
{
	log_warn("task %s epoch %lld failed: %s", h->task, (long long)h->epoch, why->text);
	h->why = *why;
	silence(h);
	hold_set(h, HOLD_FAILING);
	send_failure(h);
}

static void send_release(struct hold *h)
{
	bool drain = h->why.code == ERR_NONE;

	hold_post(h, "release", wire_release(h->agent->worker, h->epoch, drain ? "drain" : "the device was lost",
					     drain ? NULL : &h->why, h->log ? h->log : ""), last_word_done);
}

void hold_release(struct hold *h)
{
	silence(h);
	if (h->running)
		atomic_store(&h->job.stop, true);
	hold_set(h, HOLD_RELEASING);
	send_release(h);
}

void hold_hand_back(struct hold *h, const struct err *why)
{
	log_warn("task %s epoch %lld is given back: %s", h->task, (long long)h->epoch, why->text);
	h->why = *why;
	hold_release(h);
}

void hold_consider_release(struct hold *h, bool hurry)
{
	int64_t elapsed = loop_now_ms(h->agent->loop) - h->running_since_ms;
	char note[COMPUTE_NOTE_MAX];
	double progress = h->running ? compute_progress(&h->job, note) : 0;
	bool resumes = h->running && h->state == HOLD_COMPUTING && atomic_load(&h->job.resumes) && !hurry;

	if (!h->started ||
	    !(resumes ? decide_leave(progress) : decide_give_back(h->state, progress, elapsed, hurry)))
		return;
	if (resumes) {
		h->leaving = true; /* hold_leave() goes on */
		atomic_store(&h->job.leaving, true);
		atomic_store(&h->job.stop, true);
		return;
	}
	hold_release(h);
}

/* --- steps --------------------------------------------------------------------------------------------------------- */

/* The timer's attempt at whatever the state wants. */
static void step(void *ctx)
{
	struct hold *h = ctx;

	switch (h->state) {
	case HOLD_FETCHING:
		hold_fetch_inputs(h);
		break;
	case HOLD_SEALING:
		hold_seal(h);
		break;
	case HOLD_UPLOADING:
		hold_upload(h);
		break;
	case HOLD_COMPLETING:
		hold_complete(h);
		break;
	case HOLD_FAILING:
		send_failure(h);
		break;
	case HOLD_RELEASING:
		send_release(h);
		break;
	case HOLD_ACCEPTING:
	case HOLD_COMPUTING:
	case HOLD_STOPPING:
	case HOLD_GONE:
	case HOLD_STATES:
		break;
	}
}

void hold_start(struct hold *h)
{
	if (h->started)
		return;
	h->started = true;
	send_beat(h);
	loop_timer_start(h->timer, 0);
}
