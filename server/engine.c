/* Opening, closing and calling; see engine.h for the contract. Handlers are in engine_*.c. */
#include "server/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "server/blobs.h"
#include "server/engine_internal.h"

static const int64_t upload_age_ms = 24 * 3600 * 1000;
static const uint64_t disk_low_bytes = 64 << 20; /* below this the service says that it is not ready */

int64_t engine_now(struct engine *e)
{
	return e->config.clock->wall_ms(e->config.clock->ctx);
}

int engine_new_id(struct engine *e, const char *prefix, char out[ID_MAX], struct err *err)
{
	char hex[13];

	if (e->config.clock->random_hex(e->config.clock->ctx, hex, 6) != 0)
		return err_set(err, ERR_INTERNAL, "the system gives no random bytes");
	snprintf(out, ID_MAX, "%s%s", prefix, hex);
	return 0;
}

void engine_request_deinit(struct engine_request *r)
{
	json_free(r->body);
	r->body = NULL;
}

void engine_reply_deinit(struct engine_reply *r)
{
	json_free(r->body);
	json_free(r->problems);
	r->body = r->problems = NULL;
}

/* --- opening ------------------------------------------------------------------ */

static int resolve_roots(struct engine *e, struct err *err)
{
	size_t count = 0, n = 0;

	while (e->config.model_roots && e->config.model_roots[count])
		count++;
	e->model_roots = mem_alloc(count + 1, sizeof(*e->model_roots));
	if (!e->model_roots)
		return err_set_nomem(err, "the model roots");
	for (size_t i = 0; i < count; i++) {
		char *real = realpath(e->config.model_roots[i], NULL);

		if (!real)
			return err_set(err, ERR_NOT_FOUND, "the model root %s is not a folder",
				       e->config.model_roots[i]);
		e->model_roots[n++] = real;
	}
	return 0;
}

static bool keep_blob(void *ctx, const char *sha256)
{
	struct engine *e = ctx;
	int64_t bytes;

	return store_get_int(e->writer, SQL_BLOB_BYTES, &bytes, NULL, sql_t(sha256)) != 0;
}

static void init_locks(struct engine *e)
{
	pthread_condattr_t monotonic;

	pthread_mutex_init(&e->write_lock, NULL);
	pthread_mutex_init(&e->queue_lock, NULL);
	pthread_cond_init(&e->queue_filled, NULL);
	pthread_mutex_init(&e->helper_lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&e->helper_wanted, &monotonic);
	pthread_condattr_destroy(&monotonic);
	pthread_mutex_init(&e->reader_lock, NULL);
	pthread_cond_init(&e->reader_freed, NULL);
	pthread_mutex_init(&e->finish_lock, NULL);
	pthread_mutex_init(&e->change_lock, NULL);
	pthread_mutex_init(&e->health_lock, NULL);
	e->queue_tail = &e->queue_head;
	e->helper_tail = &e->helper_head;
}

static int open_all(struct engine *e, void (*token_made)(void *ctx, enum role role, const char *token),
		    void *ctx, struct err *err)
{
	struct err ignored = ERR_INIT;

	e->db_path = path_join(e->config.data_dir, "quarry.db");
	if (!e->db_path)
		return err_set_nomem(err, "a path");
	if (resolve_roots(e, err) != 0)
		return -1;
	e->writer = store_open_writer(e->db_path, err);
	if (!e->writer || tokens_load(e, token_made, ctx, err) != 0 ||
	    writer_run(e, leases_refresh, NULL, err) != 0)
		return -1;
	if (blobs_sweep(e->config.blobs, upload_age_ms, keep_blob, e, &ignored) != 0)
		log_warn("%s", ignored.text);
	finish_pending(e);
	if (!e->config.background)
		return 0;
	return writer_start(e, err) != 0 || helper_start(e, err) != 0 ? -1 : 0;
}

struct engine *engine_open(const struct engine_config *config,
			   void (*token_made)(void *ctx, enum role role, const char *token), void *ctx,
			   struct err *err)
{
	struct engine *e = mem_alloc(1, sizeof(*e));

	if (!e) {
		err_set_nomem(err, "the engine");
		return NULL;
	}
	e->config = *config;
	init_locks(e);
	if (open_all(e, token_made, ctx, err) != 0) {
		engine_close(e);
		return NULL;
	}
	return e;
}

void engine_close(struct engine *e)
{
	if (!e)
		return;
	helper_stop(e);
	writer_stop(e);
	readers_close(e);
	store_close(e->writer);
	effects_deinit(&e->effects);
	for (size_t i = 0; e->model_roots && e->model_roots[i]; i++)
		free(e->model_roots[i]);
	mem_free(e->model_roots);
	mem_free(e->tokens);
	mem_free(e->db_path);
	pthread_mutex_destroy(&e->write_lock);
	pthread_mutex_destroy(&e->queue_lock);
	pthread_cond_destroy(&e->queue_filled);
	pthread_mutex_destroy(&e->helper_lock);
	pthread_cond_destroy(&e->helper_wanted);
	pthread_mutex_destroy(&e->reader_lock);
	pthread_cond_destroy(&e->reader_freed);
	pthread_mutex_destroy(&e->finish_lock);
	pthread_mutex_destroy(&e->change_lock);
	pthread_mutex_destroy(&e->health_lock);
	mem_free(e);
}

/* --- calling ------------------------------------------------------------------ */

static void call_read(struct engine *e, const struct engine_request *r, struct engine_reply *reply)
{
	struct tx tx = { .e = e, .now_ms = engine_now(e) };

	tx.db = reader_take(e, &reply->err);
	if (!tx.db)
		return;
	if (verb_handler_of(r->verb)(&tx, r, reply) != 0 && reply->err.code == ERR_NONE)
		err_set(&reply->err, ERR_INTERNAL, "the request failed without a reason");
	reader_give(e, tx.db);
}

struct waiter { pthread_mutex_t lock; pthread_cond_t ready; bool done; };

static void wake_waiter(struct engine_call *call)
{
	struct waiter *w = call->ctx;

	pthread_mutex_lock(&w->lock);
	w->done = true;
	pthread_cond_signal(&w->ready);
	pthread_mutex_unlock(&w->lock);
}

static void post_and_wait(struct engine *e, struct engine_call *call)
{
	struct waiter w = { .lock = PTHREAD_MUTEX_INITIALIZER, .ready = PTHREAD_COND_INITIALIZER };

	call->done = wake_waiter;
	call->ctx = &w;
	if (writer_post(e, call, &call->reply.err) != 0)
		return;
	pthread_mutex_lock(&w.lock);
	while (!w.done)
		pthread_cond_wait(&w.ready, &w.lock);
	pthread_mutex_unlock(&w.lock);
	pthread_mutex_destroy(&w.lock);
	pthread_cond_destroy(&w.ready);
}

static void ignore_done(struct engine_call *call)
{
	(void)call;
}

static void run_inline(struct engine *e, struct engine_call *call)
{
	call->done = ignore_done;
	writer_run_batch(e, &call, 1);
	finish_pending(e);
}

static void call_write(struct engine *e, const struct engine_request *r, struct engine_reply *reply)
{
	struct engine_call call = { .request = *r };
	bool scan = r->verb == VERB_MODEL_ADD;

	/* The scan replaces the body; the caller keeps the original. */
	if (scan)
		call.request.body = json_copy(r->body);
	if (scan && r->body && !call.request.body)
		err_set_nomem(&call.reply.err, "a request");
	else if (scan && model_add_prepare(e, &call.request, &call.reply) != 0)
		; /* the reply says why */
	else if (e->writer_running)
		post_and_wait(e, &call);
	else
		run_inline(e, &call);
	if (scan)
		json_free(call.request.body);
	*reply = call.reply;
}

void engine_call(struct engine *e, const struct engine_request *request, struct engine_reply *reply)
{
	memset(reply, 0, sizeof(*reply));
	if (verb_is_write(request->verb))
		call_write(e, request, reply);
	else
		call_read(e, request, reply);
}

int engine_post(struct engine *e, struct engine_call *call, struct err *err)
{
	memset(&call->reply, 0, sizeof(call->reply));
	if (e->writer_running)
		return call->request.verb == VERB_MODEL_ADD ? helper_post(e, call, err) : writer_post(e, call, err);
	engine_call(e, &call->request, &call->reply);
	call->done(call);
	return 0;
}

void engine_on_change(struct engine *e, void (*changed)(void *ctx, char kind, const char *id), void *ctx)
{
	pthread_mutex_lock(&e->change_lock);
	e->changed = changed;
	e->changed_ctx = ctx;
	pthread_mutex_unlock(&e->change_lock);
}

bool engine_ready(struct engine *e, char *why, size_t why_cap)
{
	struct err failure = ERR_INIT;
	uint64_t free_bytes = 0;

	pthread_mutex_lock(&e->health_lock);
	if (e->last_failure.code != ERR_NONE)
		failure = e->last_failure;
	pthread_mutex_unlock(&e->health_lock);
	if (failure.code == ERR_NONE && disk_free(e->config.data_dir, &free_bytes, &failure) == 0 &&
	    free_bytes < disk_low_bytes)
		err_set(&failure, ERR_NOSPC, "only %llu bytes are free below %s", (unsigned long long)free_bytes,
			e->config.data_dir);
	snprintf(why, why_cap, "%s", failure.code == ERR_NONE ? "ready" : failure.text);
	return failure.code == ERR_NONE;
}
