/* FETCHING and COMPUTING: inputs into the cache, then the task into the compute thread. */
#include <string.h>

#include "common/alloc.h"
#include "common/log.h"
#include "worker/agent_parts.h"

static void fetch_more(struct hold *h);

/* --- pins ------------------------------------------------------------------------------------------------ */

int hold_pin_inputs(struct hold *h, struct err *err)
{
	for (size_t i = 0; i < h->lease.input_count; i++)
		if (cache_pin(h->agent->cache, h->lease.inputs[i].sha256) != 0) {
			while (i-- > 0)
				cache_unpin(h->agent->cache, h->lease.inputs[i].sha256);
			return err_set_nomem(err, "the inputs of a task");
		}
	h->pinned = true;
	return 0;
}

void hold_unpin_inputs(struct hold *h)
{
	for (size_t i = 0; h->pinned && i < h->lease.input_count; i++)
		cache_unpin(h->agent->cache, h->lease.inputs[i].sha256);
	h->pinned = false;
}

/* --- computing --------------------------------------------------------------------------------------------- */

static void take_result(struct hold *h)
{
	log_info("task %s epoch %lld: %s computed in %lld ms", h->task, (long long)h->epoch, h->lease.kind,
		 (long long)json_get_int(h->job.stats, "wall_ms", 0));
	hold_unpin_inputs(h);
	hold_forget_checkpoint(h);
	hold_set(h, HOLD_SEALING);
	hold_seal(h);
}

static void take_failure(struct hold *h)
{
	h->log = compute_log(&h->job);
	if (h->job.device_lost) {
		h->job.err.code = ERR_UNAVAILABLE; /* whatever the call that met it first made of it */
		hold_hand_back(h, &h->job.err);
		return;
	}
	if (h->job.err.code == ERR_CANCELLED || h->job.err.code == ERR_NONE)
		h->job.err.code = ERR_INTERNAL; /* nobody asked it to stop */
	hold_fail(h, &h->job.err);
}

static void computed(void *ctx)
{
	struct hold *h = ctx;

	h->running = false;
	agent_settle_soon(h->agent);
	if (h->job.device_lost)
		agent_device_gone(h->agent, &h->job.err);
	if (h->state == HOLD_STOPPING)
		hold_end(h);
	else if (h->state == HOLD_COMPUTING && h->job.rc == 0)
		take_result(h);
	else if (h->state == HOLD_COMPUTING && h->leaving && h->job.err.code == ERR_CANCELLED)
		hold_leave(h);
	else if (h->state == HOLD_COMPUTING)
		take_failure(h);
	/* RELEASING waits for its answer */
}

static int list_inputs(struct hold *h, struct err *err)
{
	h->inputs = mem_alloc(h->lease.input_count, sizeof(*h->inputs));
	for (size_t i = 0; h->inputs && i < h->lease.input_count; i++) {
		const struct lease_input *in = &h->lease.inputs[i];

		h->inputs[i] = (struct task_input){ .name = in->name, .bytes = in->bytes, .sha256 = in->sha256 };
		h->inputs[i].path = cache_path(h->agent->cache, in->sha256);
		if (!h->inputs[i].path)
			return err_set_nomem(err, "the inputs of a task");
	}
	return h->inputs ? 0 : err_set_nomem(err, "the inputs of a task");
}

static void start_computing(struct hold *h)
{
	struct err err = ERR_INIT;

	h->entry = spool_begin(h->agent->config.work, h->task, h->epoch, &err);
	if (!h->entry || list_inputs(h, &err) != 0) {
		hold_fail(h, &err);
		return;
	}
	h->job.kind = h->lease.kind;
	h->job.spec = h->lease.spec;
	h->job.model = h->lease.model;
	h->job.inputs = h->inputs;
	h->job.input_count = h->lease.input_count;
	h->job.entry = h->entry;
	h->job.done = computed;
	h->job.checkpoint_left = hold_checkpoint_left;
	h->job.ctx = h;
	h->running = true;
	h->running_since_ms = loop_now_ms(h->agent->loop);
	hold_set(h, HOLD_COMPUTING);
	compute_submit(h->agent->compute, &h->job);
}

/* --- fetching --------------------------------------------------------------------------------------------------- */

void hold_stop_fetching(struct hold *h)
{
	for (size_t i = 0; i < HOLD_FETCHES; i++) {
		fetch_free(h->slots[i].fetch);
		h->slots[i].fetch = NULL;
	}
}

static void fetched(void *ctx, const struct err *err)
{
	struct input_slot *slot = ctx;
	struct hold *h = slot->hold;
	struct err why = *err;

	fetch_free(slot->fetch);
	slot->fetch = NULL;
	if (why.code != ERR_NONE) {
		err_prefix(&why, "input %s", h->lease.inputs[slot->input].name);
		hold_fail(h, &why);
		return;
	}
	h->inputs_ready++;
	fetch_more(h);
}

/* The same blob may be several inputs; the first one fetches it. */
static bool is_repeated(const struct hold *h, size_t input)
{
	for (size_t i = 0; i < input; i++)
		if (strcmp(h->lease.inputs[i].sha256, h->lease.inputs[input].sha256) == 0)
			return true;
	return false;
}

static struct input_slot *free_slot(struct hold *h)
{
	for (size_t i = 0; i < HOLD_FETCHES; i++)
		if (!h->slots[i].fetch)
			return &h->slots[i];
	return NULL;
}

static void fetch_more(struct hold *h)
{
	struct input_slot *slot;

	while (h->next_input < h->lease.input_count && (slot = free_slot(h))) {
		const struct lease_input *in = &h->lease.inputs[h->next_input];

		if (is_repeated(h, h->next_input)) {
			h->next_input++;
			h->inputs_ready++;
			continue;
		}
		slot->hold = h;
		slot->input = h->next_input;
		slot->fetch = fetch_start(&h->agent->transfer, in->sha256, in->bytes, in->path, fetched, slot);
		if (!slot->fetch) {
			hold_retry(h);
			return;
		}
		h->next_input++;
	}
	if (h->inputs_ready == h->lease.input_count)
		start_computing(h);
}

void hold_fetch_inputs(struct hold *h)
{
	struct err err = ERR_INIT;

	if (h->state == HOLD_ACCEPTING)
		hold_set(h, HOLD_FETCHING);
	if (!h->pinned && hold_pin_inputs(h, &err) != 0)
		hold_fail(h, &err);
	else
		fetch_more(h);
}
