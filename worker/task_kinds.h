/* task_kinds.h - the functions behind task.c's table; one file each, contract in docs/protocol.md. */
#ifndef QUARRY_WORKER_TASK_KINDS_H
#define QUARRY_WORKER_TASK_KINDS_H

#include "worker/task.h"

typedef int (*task_fn)(const struct json *spec, struct task_env *env, struct json **result,
		       struct err *err);

int task_verify(const struct json *spec, struct task_env *env, struct json **result, struct err *err);
int task_tokenize(const struct json *spec, struct task_env *env, struct json **result, struct err *err);
int task_embed(const struct json *spec, struct task_env *env, struct json **result, struct err *err);
int task_capture(const struct json *spec, struct task_env *env, struct json **result, struct err *err);
int task_quantize(const struct json *spec, struct task_env *env, struct json **result, struct err *err);
int task_distill(const struct json *spec, struct task_env *env, struct json **result, struct err *err);
int task_evaluate(const struct json *spec, struct task_env *env, struct json **result, struct err *err);
int task_assemble(const struct json *spec, struct task_env *env, struct json **result, struct err *err);

#endif
