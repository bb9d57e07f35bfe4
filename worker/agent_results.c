/* SEALING, UPLOADING and COMPLETING: a result on its way into the spool and from there to the coordinator. */
#include "common/log.h"
#include "worker/agent_parts.h"

/* --- sealing ------------------------------------------------------------------------------------------------- */

static void keep_outputs(struct hold *h)
{
	struct err err = ERR_INIT;

	for (size_t i = 0; i < h->entry->count; i++)
		if (cache_add(h->agent->cache, h->entry->outputs[i].sha256, h->entry->outputs[i].path, &err) != 0)
			log_warn("output %s of task %s is not cached: %s", h->entry->outputs[i].name, h->task,
				 err.text);
}

static void sealed(void *ctx, struct spool_entry *entry, const struct err *err)
{
	struct hold *h = ctx;
	struct err why = *err;

	loop_timer_stop(h->timer);
	h->seal = NULL;
	h->entry = entry;
	if (why.code != ERR_NONE) {
		hold_fail(h, &why);
		return;
	}
	keep_outputs(h);
	hold_set(h, HOLD_UPLOADING);
	hold_upload(h);
}

void hold_seal(struct hold *h)
{
	if (h->seal) {
		agent_settle_soon(h->agent); /* it takes long: there may be another task meanwhile */
		return;
	}
	h->seal = seal_start(h->agent->loop, h->agent->config.work, h->entry, h->job.result, h->job.stats, sealed, h);
	if (!h->seal) {
		hold_retry(h);
		return;
	}
	h->entry = NULL;
	h->job.result = h->job.stats = NULL;
	h->sealing_since_ms = loop_now_ms(h->agent->loop);
	loop_timer_start(h->timer, SEAL_SOON_MS);
}

/* --- uploading ------------------------------------------------------------------------------------------------ */

static void sent(void *ctx, const struct err *err)
{
	struct hold *h = ctx;
	struct err why = *err;

	send_free(h->send);
	h->send = NULL;
	if (why.code != ERR_NONE) {
		err_prefix(&why, "output %s", h->entry->outputs[h->next_output].name);
		hold_fail(h, &why);
		return;
	}
	h->next_output++;
	hold_upload(h);
}

void hold_upload(struct hold *h)
{
	const struct spool_output *output;

	if (h->send)
		return;
	if (h->next_output == h->entry->count) {
		hold_set(h, HOLD_COMPLETING);
		hold_complete(h);
		return;
	}
	output = &h->entry->outputs[h->next_output];
	h->send = send_start(&h->agent->transfer, output->path, output->sha256, output->bytes, sent, h);
	if (!h->send)
		hold_retry(h);
}

/* The coordinator misses blobs it had: all of them are offered again (what is there costs one request). */
static void upload_again(struct hold *h, const struct err *why)
{
	if (++h->reuploads > DECIDE_REUPLOADS_MOST) {
		hold_fail(h, why);
		return;
	}
	log_warn("task %s epoch %lld: %s; its outputs are uploaded again", h->task, (long long)h->epoch,
		 why->text);
	h->next_output = 0;
	hold_set(h, HOLD_UPLOADING);
	loop_timer_start(h->timer, agent_backoff_ms(h->agent, h->reuploads));
}

static void refused(struct hold *h, const struct err *why)
{
	struct err err = *why;

	err.code = ERR_INTERNAL; /* the fault is in the talk between us, not in the input */
	hold_fail(h, &err);
}

static void completed(void *ctx, const struct client_reply *reply)
{
	struct hold *h = ctx;
	struct agent *a = h->agent;

	h->call = NULL;
	a->transfer.contact(a->transfer.contact_ctx, reply);
	switch (decide_reply(REQUEST_COMPLETE, reply->status, reply->err.code)) {
	case VERDICT_DONE:
		log_info("task %s epoch %lld: acknowledged", h->task, (long long)h->epoch);
		h->over = true;
		hold_end(h);
		return;
	case VERDICT_LOST:
		hold_lost(h, &reply->err);
		return;
	case VERDICT_UPLOAD_AGAIN:
		upload_again(h, &reply->err);
		return;
	case VERDICT_REFUSED:
		refused(h, &reply->err);
		return;
	case VERDICT_RETRY:
	case VERDICT_REGISTER:
		hold_retry(h);
		return;
	}
}

void hold_complete(struct hold *h)
{
	if (!h->call)
		hold_post(h, "complete", wire_complete(h->agent->worker, h->epoch, h->entry->complete), completed);
}
