/* Group commit: many requests, one transaction, one flush.
 *
 * Invariants:
 *  1. write_lock is held from BEGIN until the files of dropped blobs are gone, so a blob's row and file
 *     appear and vanish in the same order everywhere.
 *  2. Each request has a savepoint of its own: one that fails leaves the others of its batch alone.
 *  3. A reply is given after COMMIT. When COMMIT (or the whole transaction) fails, every reply of the batch
 *     becomes that failure and nothing is stored.
 */
#include <string.h>

#include "common/alloc.h"
#include "common/log.h"
#include "server/blobs.h"
#include "server/engine_internal.h"

static void fail_reply(struct engine_reply *reply, const struct err *why)
{
	engine_reply_deinit(reply);
	memset(reply, 0, sizeof(*reply));
	reply->err = *why;
}

static void note_health(struct engine *e, const struct err *failure)
{
	pthread_mutex_lock(&e->health_lock);
	if (failure) {
		e->last_failure = *failure;
		e->failed_commits++;
	} else {
		err_clear(&e->last_failure);
	}
	pthread_mutex_unlock(&e->health_lock);
}

/* -1: the transaction as a whole is lost, *err says why. A request's own failure is in its reply. */
static int run_one(struct tx *tx, struct engine_call *call, struct err *err)
{
	struct effects_mark mark = effects_mark(tx->fx);
	struct err failure;
	int rc;

	if (store_savepoint(tx->db, err) != 0)
		return -1;
	rc = verb_handler_of(call->request.verb)(tx, &call->request, &call->reply);
	if (rc == 0)
		return store_release(tx->db, err);
	if (call->reply.err.code == ERR_NONE)
		err_set(&call->reply.err, ERR_INTERNAL, "the request failed without a reason");
	effects_undo(tx->fx, mark);
	failure = call->reply.err;
	if (!store_in_transaction(tx->db)) { /* disk full and the like: SQLite gave up everything */
		*err = failure;
		return -1;
	}
	return store_rollback_to(tx->db, err);
}

static int run_all(struct tx *tx, struct engine_call **calls, size_t count, struct err *err)
{
	if (store_begin(tx->db, err) != 0)
		return -1;
	for (size_t i = 0; i < count; i++)
		if (run_one(tx, calls[i], err) != 0)
			return -1;
	return store_commit(tx->db, err);
}

/* Ends a transaction that ran (rc = 0) or failed: file deletions now, wakes for later. */
static void settle(struct engine *e, struct tx *tx, int rc, const struct err *failure, struct effects *later)
{
	struct err err = ERR_INIT;

	if (rc != 0) {
		store_rollback(tx->db);
		effects_undo(tx->fx, (struct effects_mark){ 0, 0 });
		log_error("write transaction failed: %s", failure->text);
	}
	e->commits++;
	note_health(e, rc != 0 ? failure : NULL);
	for (size_t i = 0; i < tx->fx->delete_count; i++)
		if (blobs_delete(e->config.blobs, tx->fx->deletes[i], &err) != 0)
			log_warn("%s", err.text);
	*later = *tx->fx;
	memset(tx->fx, 0, sizeof(*tx->fx));
}

static void send_wakes(struct engine *e, struct effects *later)
{
	pthread_mutex_lock(&e->change_lock);
	for (size_t i = 0; e->changed && i < later->wake_count; i++)
		if (later->wakes[i].kind != WAKE_FINISH)
			e->changed(e->changed_ctx, later->wakes[i].kind, later->wakes[i].id);
	pthread_mutex_unlock(&e->change_lock);
	effects_deinit(later);
}

static bool wants_finish(const struct effects *later)
{
	for (size_t i = 0; i < later->wake_count; i++)
		if (later->wakes[i].kind == WAKE_FINISH)
			return true;
	return false;
}

void writer_run_batch(struct engine *e, struct engine_call **calls, size_t count)
{
	struct err err = ERR_INIT;
	struct effects later;
	struct tx tx = { .e = e };
	bool finish;
	int rc;

	pthread_mutex_lock(&e->write_lock);
	tx.db = e->writer;
	tx.fx = &e->effects;
	tx.now_ms = engine_now(e);
	rc = run_all(&tx, calls, count, &err);
	settle(e, &tx, rc, &err, &later);
	pthread_mutex_unlock(&e->write_lock);
	e->writes += count;
	for (size_t i = 0; rc != 0 && i < count; i++)
		fail_reply(&calls[i]->reply, &err);
	finish = wants_finish(&later);
	send_wakes(e, &later);
	for (size_t i = 0; i < count; i++)
		calls[i]->done(calls[i]);
	if (finish)
		helper_kick(e);
}

int writer_run(struct engine *e, int (*step)(struct tx *tx, void *ctx, struct err *err), void *ctx,
	       struct err *err)
{
	struct effects later;
	struct tx tx = { .e = e };
	int rc;

	pthread_mutex_lock(&e->write_lock);
	tx.db = e->writer;
	tx.fx = &e->effects;
	tx.now_ms = engine_now(e);
	rc = store_begin(tx.db, err);
	if (rc == 0)
		rc = step(&tx, ctx, err);
	if (rc == 0)
		rc = store_commit(tx.db, err);
	settle(e, &tx, rc, err, &later);
	pthread_mutex_unlock(&e->write_lock);
	send_wakes(e, &later);
	return rc;
}

/* --- the thread --------------------------------------------------------------- */

static size_t take_batch(struct engine *e, struct engine_call *calls[ENGINE_BATCH])
{
	size_t count = 0;

	pthread_mutex_lock(&e->queue_lock);
	while (!e->queue_head && !e->stopping)
		pthread_cond_wait(&e->queue_filled, &e->queue_lock);
	while (e->queue_head && count < ENGINE_BATCH) {
		calls[count] = e->queue_head;
		e->queue_head = calls[count++]->next;
	}
	if (!e->queue_head)
		e->queue_tail = &e->queue_head;
	e->queue_length -= count;
	pthread_mutex_unlock(&e->queue_lock);
	return count;
}

static void *writer_main(void *arg)
{
	struct engine *e = arg;
	struct engine_call *calls[ENGINE_BATCH];
	size_t count;

	while ((count = take_batch(e, calls)) > 0)
		writer_run_batch(e, calls, count);
	return NULL;
}

int writer_start(struct engine *e, struct err *err)
{
	int rc = pthread_create(&e->writer_thread, NULL, writer_main, e);

	if (rc != 0)
		return err_set_errno(err, rc, "cannot start the writer thread");
	e->writer_running = true;
	return 0;
}

void writer_stop(struct engine *e)
{
	if (!e->writer_running)
		return;
	pthread_mutex_lock(&e->queue_lock);
	e->stopping = true;
	pthread_cond_signal(&e->queue_filled);
	pthread_mutex_unlock(&e->queue_lock);
	pthread_join(e->writer_thread, NULL);
	e->writer_running = false;
}

int writer_post(struct engine *e, struct engine_call *call, struct err *err)
{
	bool full;

	call->next = NULL;
	pthread_mutex_lock(&e->queue_lock);
	full = e->stopping || e->queue_length >= ENGINE_QUEUE_MAX;
	if (!full) {
		*e->queue_tail = call;
		e->queue_tail = &call->next;
		e->queue_length++;
		pthread_cond_signal(&e->queue_filled);
	}
	pthread_mutex_unlock(&e->queue_lock);
	return full ? err_set(err, ERR_BUSY, "the coordinator is busy; try again shortly") : 0;
}
