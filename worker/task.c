#include "worker/task.h"

#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "worker/task_kinds.h"

static const struct task_kind {
	const char *name;
	task_fn run;
} task_kinds[] = {
	{ "verify", task_verify },
	{ "tokenize", task_tokenize },
	{ "embed", task_embed },
	{ "capture", task_capture },
	{ "quantize", task_quantize },
	{ "distill", task_distill },
	{ "evaluate", task_evaluate },
	{ "assemble", task_assemble },
};

int task_run(const char *kind, const struct json *spec, struct task_env *env,
	     struct json **result, struct err *err)
{
	*result = NULL;
	for (size_t i = 0; i < sizeof(task_kinds) / sizeof(task_kinds[0]); i++)
		if (strcmp(kind, task_kinds[i].name) == 0)
			return task_kinds[i].run(spec, env, result, err);
	return err_set(err, ERR_UNSUPPORTED,
		       "this worker does not know task kind '%s'; it is older than the coordinator", kind);
}

const struct task_input *task_input_find(const struct task_env *env, const char *name,
					 struct err *err)
{
	for (size_t i = 0; i < env->input_count; i++)
		if (strcmp(env->inputs[i].name, name) == 0)
			return &env->inputs[i];
	err_set(err, ERR_INVALID, "the task has no input named '%s'", name);
	return NULL;
}

const char *task_input_path(const struct task_env *env, const char *name)
{
	const struct task_input *input = task_input_find(env, name, NULL);

	return input ? input->path : NULL;
}

char *task_output_path(const struct task_env *env, const char *name, struct err *err)
{
	char *path = path_join(env->out_dir, name);

	if (!path)
		err_set_nomem(err, "an output path");
	return path;
}

int task_step(const struct task_env *env, double fraction, const char *what, struct err *err)
{
	if (env->progress && !env->progress(env->progress_ctx, fraction, what))
		return err_set(err, ERR_CANCELLED, "stopped while %s", what);
	return 0;
}
