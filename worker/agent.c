/* The agent: registration, leasing, contact with the coordinator, draining. */
#include "worker/agent.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "worker/agent_parts.h"
#include "worker/task_scratch.h"

enum { HAVE_MAX = 64, DRAIN_CHECK_MS = 500, END_MS = 5000 };

static void attempt(void *ctx);
static void settle(void *ctx);

static int64_t now_ms(const struct agent *a)
{
	return loop_now_ms(a->loop);
}

int64_t agent_backoff_ms(const struct agent *a, unsigned failures)
{
	return decide_backoff_ms(failures, transfer_random(&a->transfer));
}

static void attempt_later(struct agent *a)
{
	a->failures++;
	loop_timer_start(a->timer, agent_backoff_ms(a, a->failures));
}

/* --- contact: one line per change --------------------------------------------------------------------- */

static void note_contact(void *ctx, const struct client_reply *reply)
{
	struct agent *a = ctx;
	bool away = reply->status == 0 &&
		    (reply->err.code == ERR_UNAVAILABLE || reply->err.code == ERR_TIMEOUT);

	if (away && !a->away) {
		log_warn("%s; trying until it does", reply->err.text);
		a->away_since_ms = now_ms(a);
	} else if (!away && a->away && reply->status != 0) {
		log_info("the coordinator at %s answers again", a->config.client.base_url);
	}
	if (away || reply->status != 0)
		a->away = away;
}

/* --- stopping ------------------------------------------------------------------------------------------- */

static void stop(struct agent *a)
{
	agent_move(&a->state, AGENT_STOPPED);
	client_cancel(a->call);
	a->call = NULL;
	loop_timer_stop(a->timer);
	loop_timer_stop(a->settle_timer);
	loop_stop(a->loop);
}

static void stop_with(struct agent *a, const struct err *why)
{
	a->failure = *why;
	stop(a);
}

void agent_settle_soon(struct agent *a)
{
	if (a->state != AGENT_STOPPED)
		loop_timer_start(a->settle_timer, 0);
}

/* No more tasks. What is held goes on. */
static void begin_draining(struct agent *a)
{
	if (a->state == AGENT_DRAINING || a->state == AGENT_STOPPED)
		return;
	client_cancel(a->call);
	a->call = NULL;
	loop_timer_stop(a->timer);
	agent_move(&a->state, AGENT_DRAINING);
	agent_settle_soon(a);
}

void agent_drain(struct agent *a)
{
	a->device_lost = false; /* it is to stop, not to start anew */
	if (a->state == AGENT_SERVING)
		log_info("the coordinator asks this worker to finish and stop");
	begin_draining(a);
}

void agent_device_gone(struct agent *a, const struct err *why)
{
	if (a->state == AGENT_DRAINING || a->state == AGENT_STOPPED)
		return;
	log_error("the device was lost: %s", why->text);
	a->device_lost = true;
	a->loss = *why;
	begin_draining(a);
}

static void signal_caught(void *ctx)
{
	struct agent *a = ctx;
	bool orphaned = a->config.parent != 0 && getppid() != (pid_t)a->config.parent;

	a->signals++;
	a->device_lost = false;
	if (a->hurry_since_ms < 0 && (a->signals > 1 || orphaned)) {
		log_info("stopping at once");
		a->hurry_since_ms = now_ms(a);
	} else if (a->signals == 1) {
		log_info("draining: finishing or giving back what is held");
	}
	if (a->state == AGENT_STOPPED)
		return;
	begin_draining(a);
	for (struct hold *h = a->holds; h; h = h->next)
		hold_consider_release(h, a->hurry_since_ms >= 0);
}

/* --- registering ---------------------------------------------------------------------------------------- */

static void registered(struct agent *a, char *worker)
{
	mem_free(a->worker);
	a->worker = worker;
	a->failures = 0;
	log_info("registered at %s as %s (\"%s\")", a->config.client.base_url, worker, a->config.name);
	agent_move(&a->state, AGENT_SERVING);
	for (struct hold *h = a->holds; h; h = h->next)
		hold_start(h);
	agent_settle_soon(a);
}

static void registration_refused(struct agent *a, const struct err *why)
{
	struct err err = *why;

	if (err.code == ERR_UNAUTHORIZED || err.code == ERR_FORBIDDEN)
		err_set(&err, err.code, "the coordinator at %s does not accept the token%s%s as a worker's: %s",
			a->config.client.base_url, a->config.token_file ? " in " : "; give --token-file",
			a->config.token_file ? a->config.token_file : "", why->text);
	if (!a->worker) {
		stop_with(a, &err);
		return;
	}
	log_warn("%s", err.text);
	attempt_later(a);
}

static void register_done(void *ctx, const struct client_reply *reply)
{
	struct agent *a = ctx;
	struct err err = ERR_INIT;
	char *worker;

	a->call = NULL;
	note_contact(a, reply);
	switch (decide_reply(REQUEST_REGISTER, reply->status, reply->err.code)) {
	case VERDICT_DONE:
		worker = wire_parse_worker(reply->body, reply->len, &err);
		if (worker)
			registered(a, worker);
		else
			registration_refused(a, &err);
		return;
	case VERDICT_RETRY:
		if (!a->config.wait_for_server && !a->worker) {
			stop_with(a, &reply->err);
			return;
		}
		if (reply->status != 0 && a->failures == 0)
			log_warn("%s; trying again", reply->err.text);
		attempt_later(a);
		return;
	case VERDICT_LOST:
	case VERDICT_REGISTER:
	case VERDICT_UPLOAD_AGAIN:
	case VERDICT_REFUSED:
		registration_refused(a, &reply->err);
		return;
	}
}

static struct client_call *send_registration(struct agent *a)
{
	const struct agent_config *c = &a->config;
	const struct wire_worker worker = {
		.name = c->name, .backend = c->backend->name, .identity = compute_identity(a->compute),
		.version = c->version, .threads = c->compute.threads, .memory_bytes = c->memory_bytes,
		.sees_paths = c->read_paths, .device = compute_device(a->compute),
	};
	char *body = wire_register(&worker);
	const struct client_request rq = {
		.method = "POST", .path = "/v1/workers", .json = body, .timeout_s = REQUEST_SECONDS,
		.done = register_done, .ctx = a,
	};
	struct client_call *call = body ? client_send(a->client, &rq) : NULL;

	mem_free(body);
	return call;
}

/* --- leasing ----------------------------------------------------------------------------------------------- */

static void poll_again(struct agent *a)
{
	loop_timer_start(a->timer, decide_poll_again_ms(now_ms(a) - a->asked_ms));
}

static void take_lease(struct agent *a, const struct client_reply *reply)
{
	struct err err = ERR_INIT;

	a->failures = 0;
	if (reply->status == 204) {
		if (reply->drain)
			agent_drain(a);
		else
			poll_again(a);
		return;
	}
	if (hold_from_lease(a, reply->body, reply->len, &err))
		return;
	log_warn("%s", err.text);
	attempt_later(a);
}

static void lease_done(void *ctx, const struct client_reply *reply)
{
	struct agent *a = ctx;

	a->call = NULL;
	note_contact(a, reply);
	switch (decide_reply(REQUEST_LEASE, reply->status, reply->err.code)) {
	case VERDICT_DONE:
		take_lease(a, reply);
		break;
	case VERDICT_REGISTER:
		log_warn("the coordinator does not know worker %s any more", a->worker);
		agent_move(&a->state, AGENT_REGISTERING);
		loop_timer_start(a->timer, 0);
		break;
	case VERDICT_RETRY:
	case VERDICT_LOST:
	case VERDICT_UPLOAD_AGAIN:
	case VERDICT_REFUSED:
		if (reply->status != 0 && a->failures == 0)
			log_warn("%s; trying again", reply->err.text);
		attempt_later(a);
		break;
	}
}

static struct client_call *send_lease(struct agent *a)
{
	const char *have[HAVE_MAX], *holds[WIRE_HOLDS_MAX];
	size_t count = 0, held = 0;
	char *body;
	struct client_request rq = {
		.method = "POST", .path = "/v1/leases", .wait_s = LEASE_WAIT_S, .limit = CLIENT_LEASE_LIMIT,
		.timeout_s = LEASE_WAIT_S + REQUEST_SECONDS, .done = lease_done, .ctx = a,
	};
	struct client_call *call;

	cache_recent(a->cache, have, HAVE_MAX, &count);
	for (const struct hold *h = a->holds; h; h = h->next, held++)
		if (held < WIRE_HOLDS_MAX)
			holds[held] = h->task;
	rq.json = body = wire_lease_request(a->worker, have, count, holds, held);
	a->asked_ms = now_ms(a);
	call = body ? client_send(a->client, &rq) : NULL;
	mem_free(body);
	return call;
}

/* --- what next ------------------------------------------------------------------------------------------------ */

static struct decide_view view_of(const struct agent *a)
{
	struct decide_view view = { .state = a->state, .lease_under_way = a->call != NULL };

	for (const struct hold *h = a->holds; h; h = h->next) {
		view.held++;
		view.busy += hold_is_busy(h);
		view.parting += h->state == HOLD_FAILING || h->state == HOLD_RELEASING;
		view.sealing += h->state == HOLD_SEALING;
		view.sealing_soon += hold_is_sealed_soon(h);
		view.uploading += hold_is_uploading(h);
	}
	return view;
}

/* The timer's attempt at registering or leasing. */
static void attempt(void *ctx)
{
	struct agent *a = ctx;
	struct decide_view view = view_of(a);

	if (a->call)
		return;
	if (a->state == AGENT_REGISTERING)
		a->call = send_registration(a);
	else if (decide_want_lease(&view))
		a->call = send_lease(a);
	else
		return;
	if (!a->call)
		attempt_later(a);
}

static void bury(struct agent *a)
{
	struct hold **link = &a->holds;

	while (*link) {
		struct hold *h = *link;

		if (h->state != HOLD_GONE) {
			link = &h->next;
			continue;
		}
		*link = h->next;
		hold_free(h);
	}
}

static void settle(void *ctx)
{
	struct agent *a = ctx;
	struct decide_view view;
	int64_t away_ms = a->away ? now_ms(a) - a->away_since_ms : 0;

	bury(a);
	view = view_of(a);
	if (a->state == AGENT_DRAINING) {
		if (!a->worker || (a->device_lost && decide_start_anew(&view)) ||
		    decide_stop(&view, away_ms, a->hurry_since_ms < 0 ? -1 : now_ms(a) - a->hurry_since_ms)) {
			if (view.held > 0)
				log_warn("%zu tasks or results stay in %s for the next start", view.held,
					 a->config.work);
			stop(a);
			return;
		}
		loop_timer_start(a->settle_timer, DRAIN_CHECK_MS);
	} else if (a->failures == 0 && decide_want_lease(&view)) {
		loop_timer_start(a->timer, 0);
	}
}

/* --- life --------------------------------------------------------------------------------------------------------- */

static void spool_found(void *ctx, struct spool_entry *entry)
{
	struct agent *a = ctx;

	if (!hold_from_spool(a, entry))
		err_set_nomem(&a->failure, "a finished result");
}

static void spool_broken(void *ctx, const char *task, int64_t epoch, const char *why)
{
	hold_from_wreck(ctx, task, epoch, why); /* without memory the lease lapses instead */
}

static int open_disk(struct agent *a, struct err *err)
{
	char *dir = path_join(a->config.work, "cache");

	if (!dir)
		return err_set_nomem(err, "a path");
	a->cache = cache_open(dir, a->config.cache_bytes, err);
	mem_free(dir);
	if (!a->cache || spool_prepare(a->config.work, err) != 0 ||
	    task_scratch_prepare(a->config.work, a->config.clock->wall_ms(a->config.clock->ctx), err) != 0)
		return -1;
	if (spool_load(a->config.work, spool_found, spool_broken, a, err) != 0)
		return -1;
	if (a->failure.code == ERR_NONE)
		return 0;
	*err = a->failure;
	return -1;
}

static int open_network(struct agent *a, struct err *err)
{
	a->loop = loop_new(err);
	if (!a->loop)
		return -1;
	a->timer = loop_timer_new(a->loop, attempt, a);
	a->settle_timer = loop_timer_new(a->loop, settle, a);
	if (!a->timer || !a->settle_timer)
		return err_set_nomem(err, "the agent");
	a->client = client_open(a->loop, &a->config.client, err);
	if (!a->client)
		return -1;
	if (loop_on_signal(a->loop, SIGTERM, signal_caught, a, err) != 0)
		return -1;
	return loop_on_signal(a->loop, SIGINT, signal_caught, a, err);
}

static void log_backend(const struct agent *a)
{
	const struct backend_device *d = compute_device(a->compute);

	log_info("computing with %s", compute_identity(a->compute));
	if (d)
		log_info("device %d: %s, %s, %d MHz, %.1f of %.1f GiB free", d->number, d->name, d->driver, d->clock_mhz,
			 (double)d->memory_free / (1 << 30), (double)d->memory_bytes / (1 << 30));
}

static int start_compute(struct agent *a, struct err *err)
{
	const struct compute_config config = {
		.backend = a->config.backend, .options = a->config.compute, .work = a->config.work,
		.client = &a->config.client, .clock = a->config.clock, .read_paths = a->config.read_paths,
		.checkpoint_ms = a->config.checkpoint_ms,
	};

	a->compute = compute_start(a->loop, &config, err);
	if (!a->compute)
		return -1;
	log_backend(a);
	return 0;
}

struct agent *agent_new(const struct agent_config *config, struct err *err)
{
	struct agent *a = mem_alloc(1, sizeof(*a));

	if (!a) {
		err_set_nomem(err, "the agent");
		return NULL;
	}
	a->config = *config;
	a->hurry_since_ms = -1;
	if (open_network(a, err) == 0 && start_compute(a, err) == 0) {
		a->transfer = (struct transfer_env){
			.loop = a->loop, .client = a->client, .clock = config->clock,
			.contact = note_contact, .contact_ctx = a,
			.links = { .in = config->read_paths, .out = config->read_paths },
		};
		if (open_disk(a, err) == 0) {
			a->transfer.cache = a->cache;
			return a;
		}
	}
	agent_free(a);
	return NULL;
}

int agent_run(struct agent *a, struct err *err)
{
	loop_timer_start(a->timer, 0);
	loop_run(a->loop);
	if (a->failure.code == ERR_NONE)
		return 0;
	*err = a->failure;
	return -1;
}

bool agent_lost_device(const struct agent *a, struct err *why)
{
	*why = a->loss;
	return a->device_lost;
}

bool agent_free(struct agent *a)
{
	if (!a)
		return true;
	if (!compute_end(a->compute, END_MS))
		return false;
	a->state = AGENT_STOPPED;
	while (a->holds) {
		struct hold *h = a->holds;

		a->holds = h->next;
		h->running = false;
		hold_free(h);
	}
	cache_close(a->cache);
	client_close(a->client);
	loop_timer_free(a->timer);
	loop_timer_free(a->settle_timer);
	mem_free(a->worker);
	loop_free(a->loop);
	mem_free(a);
	return true;
}
