/* A planned job becomes rows: the job, its details, its texts, its modules, its tasks and their inputs. Runs inside the
 * submitting request's savepoint. */
#include <stdio.h>

#include "common/alloc.h"
#include "server/engine_submit.h"

/* --- storing ------------------------------------------------------------------ */

/* How many tasks this one waits for. last_reader[i]: the last task seen to read from task i, plus 1. */
static int64_t count_producers(const struct plan_task *t, size_t index, size_t *last_reader)
{
	int64_t count = 0;

	for (size_t i = 0; i < t->input_count; i++) {
		int64_t from = t->inputs[i].from;

		if (from < 0 || last_reader[from] == index + 1)
			continue;
		last_reader[from] = index + 1;
		count++;
	}
	return count;
}

static int store_inputs(struct submit *s, const struct plan_task *t, int64_t pk, int64_t first)
{
	for (size_t i = 0; i < t->input_count; i++) {
		const struct plan_input *in = &t->inputs[i];
		bool made = in->from >= 0;

		if (store_exec(s->tx->db, SQL_TASK_INPUT_ADD, s->err, sql_i(pk), sql_i((int64_t)i), sql_t(in->name),
			       made ? sql_i(first + in->from) : sql_null(), made ? sql_t(in->output) : sql_null(),
			       sql_t(in->sha256), made ? sql_null() : sql_i((int64_t)in->bytes)) < 0)
			return -1;
	}
	return 0;
}

static int store_tasks(struct submit *s, int64_t job, int64_t first)
{
	size_t *last_reader = mem_alloc(s->plan.task_count, sizeof(*last_reader));
	int rc = last_reader ? 0 : err_set_nomem(s->err, "the tasks");

	for (size_t i = 0; rc == 0 && i < s->plan.task_count; i++) {
		const struct plan_task *t = &s->plan.tasks[i];
		int64_t pk = first + (int64_t)i, deps = count_producers(t, i, last_reader);

		if (store_exec(s->tx->db, SQL_TASK_ADD, s->err, sql_i(pk), sql_i(job), sql_i(t->kind),
			       sql_i(deps == 0 ? TASK_READY : TASK_BLOCKED), sql_i(t->rank), sql_i(t->layer),
			       sql_i(t->shard), sql_i(deps), sql_i(t->work)) < 0 ||
		    store_exec(s->tx->db, SQL_TASK_SPEC_ADD, s->err, sql_i(pk), sql_t(t->spec)) < 0 ||
		    store_inputs(s, t, pk, first) != 0)
			rc = -1;
	}
	mem_free(last_reader);
	return rc;
}

static int store_modules(struct submit *s, int64_t job, int64_t first)
{
	size_t task = s->plan.first_quantize;

	for (size_t i = 0; i < s->plan.module_count; i++) {
		const struct plan_module *m = &s->plan.modules[i];

		while (s->plan.tasks[task].kind != KIND_QUANTIZE || s->plan.tasks[task].layer != m->layer)
			task++; /* both go layer by layer */
		if (store_exec(s->tx->db, SQL_MODULE_ADD, s->err, sql_i(job), sql_i(m->layer), sql_i(m->linear),
			       sql_t(m->name), sql_i(m->settings.skip), sql_i(m->settings.bits),
			       sql_i(m->settings.group_size), sql_i(first + (int64_t)task)) < 0)
			return -1;
	}
	return 0;
}

static int store_dataset_use(struct submit *s, int64_t job, size_t slot, const char *role)
{
	const struct dataset_ref *d = &s->datasets[slot];

	return store_exec(s->tx->db, SQL_JOB_DATASET_ADD, s->err, sql_i(job), sql_i((int64_t)slot), sql_t(role),
			  sql_i(d->pk), sql_t(d->name), sql_t(d->sha256), sql_i(d->bytes)) < 0 ? -1 : 0;
}

static int store_datasets(struct submit *s, int64_t job)
{
	if (s->recipe.kind == RECIPE_QUANTIZE && store_dataset_use(s, job, 0, "calibration") != 0)
		return -1;
	for (size_t i = 0; i < s->recipe.eval_count; i++)
		if (store_dataset_use(s, job, i + 1, "eval") != 0)
			return -1;
	return 0;
}

/* Memory is warned of, not refused: a larger worker may join later. */
static struct json *run_warnings(struct submit *s)
{
	struct json *list = json_new_array();
	int64_t largest = 0;
	char text[256];

	if (store_get_int(s->tx->db, SQL_WORKER_MOST_MEMORY, &largest, s->err,
			  sql_i(s->tx->now_ms - s->tx->e->config.lease_ms)) == 1 &&
	    largest > 0 && (uint64_t)largest < s->plan.memory_bytes) {
		snprintf(text, sizeof(text),
			 "a task needs about %llu bytes of memory, the largest worker at submission had %lld",
			 (unsigned long long)s->plan.memory_bytes, (long long)largest);
		if (json_push(list, json_new_string(text)) != 0) {
			json_free(list);
			return NULL;
		}
	}
	return list;
}

/* What later views need of the plan; the rest is in the tables. */
static char *plan_text(struct submit *s)
{
	struct plan_forecast forecast;
	struct json *o;
	char *text = NULL;

	if (submit_forecast(s, false, &forecast) != 0)
		return NULL;
	o = plan_to_json(&s->plan, &s->plan_request, &forecast);
	json_remove(o, "modules");
	json_remove(o, "disk_free_bytes");
	if (json_set(o, "run_warnings", run_warnings(s)) == 0)
		text = json_print(o, false);
	json_free(o);
	return text;
}

static char *model_summary(struct submit *s)
{
	struct json *o = json_new_object();
	char *text = NULL;

	if ((json_set_string(o, "model", s->model_id) | json_set_string(o, "name", s->model_name)) == 0 &&
	    json_set(o, "config", model_config_json(s->config_text, s->err)) == 0)
		text = json_print(o, false);
	json_free(o);
	return text;
}

static char *recipe_text(struct submit *s)
{
	struct json *o = recipe_to_json(&s->recipe);
	char *text = o ? json_print(o, false) : NULL;

	json_free(o);
	return text;
}

static void default_name(struct submit *s, char out[JOB_NAME_MAX + 1])
{
	if (s->recipe.kind == RECIPE_EVALUATE)
		snprintf(out, JOB_NAME_MAX, "%.150s evaluation", s->model_name);
	else
		snprintf(out, JOB_NAME_MAX, "%.150s %d bits", s->model_name, s->recipe.bits);
}

static int store_details(struct submit *s, int64_t job)
{
	char *summary = model_summary(s), *recipe = recipe_text(s), *plan = plan_text(s);
	char fallback[JOB_NAME_MAX + 1];
	const char *name = json_get_string(s->request->body, "name", "");
	int rc = -1;

	default_name(s, fallback);
	if ((!summary || !recipe || !plan) && s->err->code == ERR_NONE)
		err_set_nomem(s->err, "the job");
	else if (!summary || !recipe || !plan)
		rc = -1;
	else if (store_exec(s->tx->db, SQL_JOB_DETAILS_ADD, s->err, sql_i(job), sql_t(name[0] ? name : fallback),
			    sql_i(s->model_pk), sql_t(summary), sql_t(recipe), sql_t(plan),
			    s->reference_pk ? sql_i(s->reference_pk) : sql_null()) >= 0)
		rc = 0;
	mem_free(summary);
	mem_free(recipe);
	mem_free(plan);
	return rc;
}

static int store_job_row(struct submit *s, const char *id, int64_t *job, int64_t first)
{
	int64_t main_tasks = 0, first_quantize = 0;

	for (size_t i = 0; i < s->plan.task_count; i++)
		main_tasks += s->plan.tasks[i].kind != KIND_ASSEMBLE;
	/* Consecutive only when captures do not wait for quantized layers; see schedule.c. */
	if (s->recipe.kind == RECIPE_QUANTIZE && s->recipe.propagate == PROPAGATE_ORIGINAL)
		first_quantize = first + (int64_t)s->plan.first_quantize;
	if (store_exec(s->tx->db, SQL_JOB_ADD, s->err, sql_t(id), sql_t(s->request->subject), sql_i(s->recipe.kind),
		       sql_i(first), sql_i((int64_t)s->plan.task_count), sql_i(first_quantize),
		       sql_i(main_tasks), sql_i(s->tx->now_ms)) < 0)
		return -1;
	return store_get_int(s->tx->db, SQL_JOB_PK, job, s->err, sql_t(id)) == 1 ? 0 : -1;
}

int submit_store(struct submit *s, char id[ID_MAX], int64_t *job)
{
	int64_t first = 1;

	if (engine_new_id(s->tx->e, "j_", id, s->err) != 0 ||
	    store_get_int(s->tx->db, SQL_TASK_NEXT_PK, &first, s->err) < 0 ||
	    store_job_row(s, id, job, first) != 0 || store_details(s, *job) != 0 ||
	    store_datasets(s, *job) != 0 || store_modules(s, *job, first) != 0 || store_tasks(s, *job, first) != 0 ||
	    job_move(s->tx->db, *job, id, JOB_PLANNING, JOB_RUNNING, s->tx->now_ms, s->err) != 0 ||
	    effects_wake(s->tx->fx, WAKE_LEASE, "", s->err) != 0)
		return -1;
	return job_advance(s->tx, *job, s->err);
}
