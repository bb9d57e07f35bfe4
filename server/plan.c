/* Planning from end to end: resolve, check, build, estimate. See plan.h. */
#include "server/plan.h"

#include <inttypes.h>
#include <string.h>

#include "common/alloc.h"
#include "server/plan_parts.h"
#include "server/plan_time.h"

enum { SEQ_LEN_DEFAULT = 1024 };

void plan_resolve(struct recipe *recipe, const struct model_config *config)
{
	if (recipe->seq_len == 0)
		recipe->seq_len = config->max_position < SEQ_LEN_DEFAULT ? (int64_t)config->max_position
									 : SEQ_LEN_DEFAULT;
	if (recipe->lm_head == 0)
		recipe->lm_head = config->tied_embeddings ? recipe->embeddings : 16;
}

static int refuse(const struct problems *problems, struct err *err)
{
	return err_set(err, ERR_REFUSED, "%s", problems->items[0]);
}

static int check_disk(const struct plan *plan, const struct plan_request *r, struct problems *problems,
		      struct err *err)
{
	if (plan->disk_bytes <= r->disk_free_bytes)
		return 0;
	if (problems_add(problems,
			 "no space: the job needs about %" PRIu64 " bytes on the coordinator's disk, %" PRIu64
			 " are free",
			 plan->disk_bytes, r->disk_free_bytes) != 0)
		return err_set_nomem(err, "the list of problems");
	return refuse(problems, err);
}

int plan_make(struct plan *plan, const struct plan_request *r, struct problems *problems, struct err *err)
{
	memset(plan, 0, sizeof(*plan));
	plan->distill = -1;
	if (plan_check(plan, r, problems, err) != 0)
		return -1;
	if (problems->count > 0)
		return refuse(problems, err);
	if (plan_graph(plan, r, err) != 0 || plan_outputs(plan, r, err) != 0)
		return -1;
	plan_estimate(plan, r);
	return check_disk(plan, r, problems, err);
}

void plan_deinit(struct plan *plan)
{
	for (size_t i = 0; i < plan->task_count; i++) {
		mem_free(plan->tasks[i].spec);
		mem_free(plan->tasks[i].inputs);
	}
	mem_free(plan->tasks);
	mem_free(plan->modules);
	mem_free(plan->stored);
	mem_free(plan->quantize);
	problems_deinit(&plan->warnings);
	memset(plan, 0, sizeof(*plan));
}

/* --- the dry run's reply ------------------------------------------------------ */

static struct json *counts_json(const struct plan *plan)
{
	int64_t counts[KIND_COUNT] = { 0 };
	struct json *o = json_new_object();
	int rc = json_set_int(o, "total", (int64_t)plan->task_count);

	for (size_t i = 0; i < plan->task_count; i++)
		counts[plan->tasks[i].kind]++;
	for (int i = 0; i < KIND_COUNT - 1; i++) {
		enum task_kind k = task_kinds_in_order[i];

		if (counts[k] > 0)
			rc |= json_set_int(o, task_kind_name(k), counts[k]);
	}
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *module_json(const struct plan_module *m)
{
	struct json *o = json_new_object();

	if (json_set_string(o, "name", m->name) == 0 && json_set_int(o, "rows", (int64_t)m->rows) == 0 &&
	    json_set_int(o, "cols", (int64_t)m->cols) == 0 && module_settings_to_json(&m->settings, o) == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *modules_json(const struct plan *plan)
{
	struct json *a = json_new_array();

	for (size_t i = 0; i < plan->module_count; i++)
		if (json_push(a, module_json(&plan->modules[i])) != 0) {
			json_free(a);
			return NULL;
		}
	return a;
}

static struct json *outputs_json(const struct plan *plan)
{
	struct json *o = json_new_object();

	for (size_t i = 0; i < plan->output_count; i++)
		if (json_set_int(o, plan->outputs[i].format->name, (int64_t)plan->outputs[i].bytes) != 0) {
			json_free(o);
			return NULL;
		}
	return o;
}

static struct json *sentences_json(const struct problems *p)
{
	struct json *a = json_new_array();

	for (size_t i = 0; i < p->count; i++)
		if (json_push(a, json_new_string(p->items[i])) != 0) {
			json_free(a);
			return NULL;
		}
	return a;
}

static struct json *efforts_json(const struct plan_forecast *f)
{
	struct json *o = json_new_object();
	int rc = 0;

	for (int e = 0; e < EFFORTS; e++)
		if (f->efforts[e] >= 0)
			rc |= json_set_number(o, effort_name((enum effort)e), f->efforts[e]);
	if (o && rc == 0)
		return o;
	json_free(o);
	return NULL;
}

static struct json *forecast_json(const struct plan_forecast *f)
{
	struct json *o = json_new_object();

	if ((json_set_int(o, "workers", f->fleet.crew.workers) | json_set_int(o, "threads", f->fleet.crew.threads) |
	     json_set_int(o, "devices", f->fleet.crew.devices) |
	     json_set_bool(o, "measured", f->fleet.measured) | json_set_number(o, "seconds", f->seconds) |
	     json_set(o, "efforts", efforts_json(f))) == 0)
		return o;
	json_free(o);
	return NULL;
}

static double total_work(const struct plan *plan)
{
	double sum = 0;

	for (size_t i = 0; i < plan->task_count; i++)
		sum += (double)plan->tasks[i].work;
	return sum;
}

static struct json *output_json(const struct plan_output *out)
{
	struct json *o = json_new_object();

	if ((json_set_int(o, "bytes", (int64_t)out->bytes) | json_set_int(o, "files", (int64_t)out->files) |
	     json_set_number(o, "bits_per_weight", out->bits_per_weight)) == 0)
		return o;
	json_free(o);
	return NULL;
}

/* What each format holds: {"mlx": {"bytes","files","bits_per_weight"}}. */
static struct json *formats_json(const struct plan *plan)
{
	struct json *o = json_new_object();

	for (size_t i = 0; o && i < plan->output_count; i++)
		if (json_set(o, plan->outputs[i].format->name, output_json(&plan->outputs[i])) != 0) {
			json_free(o);
			return NULL;
		}
	return o;
}

struct json *plan_to_json(const struct plan *plan, const struct plan_request *r, const struct plan_forecast *f)
{
	struct json *o = json_new_object();
	int rc = json_set(o, "tasks", counts_json(plan));

	rc |= json_set_int(o, "model_bytes", (int64_t)r->model_bytes);
	rc |= json_set(o, "output_bytes", outputs_json(plan));
	rc |= json_set(o, "outputs", formats_json(plan));
	rc |= json_set_number(o, "disk_bytes", (double)plan->disk_bytes);
	rc |= json_set_number(o, "disk_free_bytes", (double)r->disk_free_bytes);
	rc |= json_set_number(o, "memory_per_task_bytes", (double)plan->memory_bytes);
	rc |= json_set_number(o, "work", total_work(plan));
	rc |= json_set(o, "estimate", forecast_json(f));
	rc |= json_set_int(o, "shards", plan->shards);
	rc |= json_set_int(o, "per_shard", plan->per_shard);
	rc |= json_set_int(o, "seq_len", r->recipe->seq_len);
	rc |= json_set(o, "modules", modules_json(plan));
	rc |= json_set(o, "warnings", sentences_json(&plan->warnings));
	if (rc == 0)
		return o;
	json_free(o);
	return NULL;
}
