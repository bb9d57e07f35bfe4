/* A checkpoint that a task left, on its way to the coordinator: hashed, uploaded like an output, then announced. The
 * task computes on meanwhile and leaves no other. What goes wrong for good costs no more than this one checkpoint. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "worker/agent_parts.h"

void hold_forget_checkpoint(struct hold *h)
{
	hash_cancel(h->checkpoint.hash);
	send_free(h->checkpoint.send);
	client_cancel(h->checkpoint.call);
	if (h->checkpoint.timer)
		loop_timer_stop(h->checkpoint.timer);
	if (h->checkpoint.path) {
		unlink(h->checkpoint.path);
		mem_free(h->checkpoint.path);
		atomic_store(&h->job.checkpoint_busy, false);
	}
	h->checkpoint.path = NULL;
	h->checkpoint.hash = NULL;
	h->checkpoint.send = NULL;
	h->checkpoint.call = NULL;
	h->checkpoint.failures = 0;
}

/* Through with it, one way or the other. */
static void finish(struct hold *h)
{
	const struct clock *clock = h->agent->config.clock;

	atomic_store(&h->job.checkpoint_took_ms,
		     clock->mono_ms(clock->ctx) - atomic_load(&h->job.checkpoint_asked_ms));
	hold_forget_checkpoint(h);
	if (h->leaving && !h->running && h->state == HOLD_COMPUTING)
		hold_release(h);
}

static void give_up(struct hold *h, const struct err *why)
{
	log_warn("task %s: its checkpoint is not left: %s", h->task, why->text);
	finish(h);
}

static void retry_later(struct hold *h)
{
	h->checkpoint.failures++;
	loop_timer_start(h->checkpoint.timer, agent_backoff_ms(h->agent, h->checkpoint.failures));
}

/* --- announcing -------------------------------------------------------------------------------------- */

static void announced(void *ctx, const struct client_reply *reply)
{
	struct hold *h = ctx;
	struct agent *a = h->agent;

	h->checkpoint.call = NULL;
	a->transfer.contact(a->transfer.contact_ctx, reply);
	switch (decide_reply(REQUEST_CHECKPOINT, reply->status, reply->err.code)) {
	case VERDICT_DONE:
		log_info("task %s epoch %lld: checkpoint of %llu bytes left with the coordinator", h->task,
			 (long long)h->epoch, (unsigned long long)h->checkpoint.bytes);
		finish(h);
		return;
	case VERDICT_LOST:
		hold_lost(h, &reply->err);
		return;
	case VERDICT_RETRY:
		retry_later(h);
		return;
	case VERDICT_REGISTER:
	case VERDICT_UPLOAD_AGAIN:
	case VERDICT_REFUSED:
		give_up(h, &reply->err);
		return;
	}
}

static void announce(struct hold *h)
{
	char path[WIRE_ID_MAX + 64];
	char *body = wire_checkpoint(h->agent->worker, h->epoch, h->checkpoint.sha256, h->checkpoint.bytes);
	const struct client_request rq = {
		.method = "POST", .path = path, .json = body, .timeout_s = REQUEST_SECONDS, .done = announced, .ctx = h,
	};

	snprintf(path, sizeof(path), "/v1/leases/%s/checkpoint", h->task);
	h->checkpoint.call = body ? client_send(h->agent->client, &rq) : NULL;
	mem_free(body);
	if (!h->checkpoint.call)
		retry_later(h);
}

void hold_checkpoint_step(void *ctx)
{
	announce(ctx); /* the only step that is repeated here */
}

/* --- hashing and sending ---------------------------------------------------------------------------------- */

static void sent(void *ctx, const struct err *err)
{
	struct hold *h = ctx;
	struct err why = *err;

	send_free(h->checkpoint.send);
	h->checkpoint.send = NULL;
	if (why.code != ERR_NONE)
		give_up(h, &why);
	else
		announce(h);
}

static void hashed(void *ctx, const char *sha256, const struct err *err)
{
	struct hold *h = ctx;
	struct err why = *err;

	h->checkpoint.hash = NULL;
	if (why.code != ERR_NONE || file_size(h->checkpoint.path, &h->checkpoint.bytes, &why) != 0) {
		give_up(h, &why);
		return;
	}
	snprintf(h->checkpoint.sha256, sizeof(h->checkpoint.sha256), "%s", sha256);
	h->checkpoint.send = send_start(&h->agent->transfer, h->checkpoint.path, sha256, h->checkpoint.bytes, sent, h);
	if (!h->checkpoint.send) {
		err_set_nomem(&why, "an upload");
		give_up(h, &why);
	}
}

void hold_checkpoint_left(void *ctx)
{
	struct hold *h = ctx;
	struct err why = ERR_INIT;

	h->checkpoint.path = h->job.checkpoint;
	h->job.checkpoint = NULL;
	if (h->state != HOLD_COMPUTING) {
		hold_forget_checkpoint(h);
		return;
	}
	h->checkpoint.hash = hash_start(h->agent->loop, h->checkpoint.path, hashed, h);
	if (!h->checkpoint.hash) {
		err_set_nomem(&why, "a digest");
		give_up(h, &why);
	}
}

void hold_leave(struct hold *h)
{
	if (!atomic_load(&h->job.checkpoint_busy))
		hold_release(h);
}
