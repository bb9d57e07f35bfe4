/* loop.h - the agent's event loop: timers, events from other threads, background work, signals.
 *
 * One of the few modules that know libuv. Invariants:
 *  1. Every callback runs in the thread that called loop_run().
 *  2. loop_post() is the only function that another thread may call.
 *  3. A timer that was stopped or freed never calls back afterwards.
 * Objects are made with x_new and freed with x_free, in the loop's thread.
 */
#ifndef QUARRY_WORKER_LOOP_H
#define QUARRY_WORKER_LOOP_H

#include <stdint.h>

#include "common/err.h"

struct loop;

struct loop *loop_new(struct err *err);
/* Stops every timer and closes everything; waits for background work. */
void loop_free(struct loop *loop);
/* Returns after loop_stop(). */
void loop_run(struct loop *loop);
void loop_stop(struct loop *loop);
/* Milliseconds of a clock that never goes back. */
int64_t loop_now_ms(const struct loop *loop);
/* The uv_loop_t, for client.c. */
void *loop_uv(struct loop *loop);

/* --- timers: one shot ---------------------------------------------------------------------- */

struct loop_timer;
/* NULL when out of memory. */
struct loop_timer *loop_timer_new(struct loop *loop, void (*fire)(void *ctx), void *ctx);
/* (Re)starts; fires once after `delay_ms` (not before the loop's next round). */
void loop_timer_start(struct loop_timer *timer, int64_t delay_ms);
void loop_timer_stop(struct loop_timer *timer);
void loop_timer_free(struct loop_timer *timer); /* NULL is fine */

/* --- events from other threads --------------------------------------------------------------- */

/* Embedded in the poster's object; borrowed until `happened` was called. */
struct loop_event {
	void (*happened)(void *ctx);
	void *ctx;
	struct loop_event *next; /* private */
};
void loop_post(struct loop *loop, struct loop_event *event);

/* --- background work --------------------------------------------------------------------------- */

/* Runs work(ctx) in a pool thread, then done(ctx) in the loop, always. -1 when out of memory. */
int loop_background(struct loop *loop, void (*work)(void *ctx), void (*done)(void *ctx), void *ctx);

/* --- signals ------------------------------------------------------------------------------------ */

int loop_on_signal(struct loop *loop, int signum, void (*caught)(void *ctx), void *ctx,
		   struct err *err);

#endif
