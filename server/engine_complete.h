/* engine_complete.h - the halves of engine_complete.c: checking a result, and moving the graph on. */
#ifndef QUARRY_SERVER_ENGINE_COMPLETE_H
#define QUARRY_SERVER_ENGINE_COMPLETE_H

#include "server/engine_internal.h"

/* engine_results.c: checks a result of the task's kind and stores what later views need of it. The file
 * of an assemble task is `sha256`. */
int result_store(struct tx *tx, const struct task_ref *t, const struct json *result, const char *sha256,
		 int64_t bytes, struct err *err);

/* engine_graph.c */
/* Consumers that miss nothing more become READY. */
int graph_unblock(struct tx *tx, const struct task_ref *t, struct err *err);
/* The task has read its inputs for the last time: those that nobody else needs are dropped. */
int graph_release_inputs(struct tx *tx, const struct task_ref *t, struct err *err);

#endif
