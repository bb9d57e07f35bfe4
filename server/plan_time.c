#include "server/plan_time.h"

#include "common/alloc.h"

const double plan_task_seconds = 0.02;

const double plan_default_rate[KIND_COUNT] = {
	[KIND_VERIFY] = 8000, [KIND_TOKENIZE] = 8000, [KIND_EMBED] = 4000, [KIND_CAPTURE] = 64000,
	[KIND_QUANTIZE] = 64000, [KIND_DISTILL] = 60000, [KIND_EVALUATE] = 64000, [KIND_ASSEMBLE] = 4000,
};
const double plan_device_threads = 500;

/* --- rates -------------------------------------------------------------------- */

bool plan_is_product(int64_t kind)
{
	return kind == KIND_CAPTURE || kind == KIND_QUANTIZE || kind == KIND_DISTILL || kind == KIND_EVALUATE;
}

/* What one worker does, on average, before anything is measured. */
static double default_rate(const struct plan_crew *crew, int64_t kind)
{
	double threads = (double)crew->threads;

	if (plan_is_product(kind))
		threads += (double)crew->devices * plan_device_threads - (double)crew->device_threads;
	return threads / (double)crew->workers * plan_default_rate[kind];
}

static bool is_measured(const struct plan_history *history, int64_t kind)
{
	return history->work[kind] > 0 && history->seconds[kind] > 0;
}

/* How much faster than the default the measured kinds are, of products or of the others; 1: none was measured. */
static double pace(const struct plan_crew *crew, const struct plan_history *history, bool products)
{
	double expected = 0, seconds = 0;

	for (int k = 1; k < KIND_COUNT; k++) {
		if (plan_is_product(k) != products || !is_measured(history, k))
			continue;
		expected += history->work[k] / default_rate(crew, k);
		seconds += history->seconds[k];
	}
	return seconds > 0 ? expected / seconds : 1;
}

void plan_fleet_init(struct plan_fleet *fleet, const struct plan_crew *crew, const struct plan_history *history)
{
	const double paces[] = { pace(crew, history, false), pace(crew, history, true) };

	*fleet = (struct plan_fleet){ .crew = *crew };
	for (int k = 1; k < KIND_COUNT; k++) {
		fleet->measured |= is_measured(history, k);
		fleet->rate[k] = is_measured(history, k) ? history->work[k] / history->seconds[k]
							 : paces[plan_is_product(k)] * default_rate(crew, k);
	}
}

/* --- heaps -------------------------------------------------------------------- */

/* Smallest key first, then smallest task. */
struct entry { double key; size_t task; };
struct heap { struct entry *items; size_t count; };

static bool before(const struct entry *a, const struct entry *b)
{
	return a->key < b->key || (a->key == b->key && a->task < b->task);
}

static void swap(struct entry *a, struct entry *b)
{
	struct entry t = *a;

	*a = *b;
	*b = t;
}

static void heap_push(struct heap *h, double key, size_t task)
{
	size_t i = h->count++;

	h->items[i] = (struct entry){ key, task };
	for (; i > 0 && before(&h->items[i], &h->items[(i - 1) / 2]); i = (i - 1) / 2)
		swap(&h->items[i], &h->items[(i - 1) / 2]);
}

static struct entry heap_pop(struct heap *h)
{
	struct entry top = h->items[0];
	size_t i = 0;

	h->items[0] = h->items[--h->count];
	for (;;) {
		size_t least = i, left = 2 * i + 1;

		if (left < h->count && before(&h->items[left], &h->items[least]))
			least = left;
		if (left + 1 < h->count && before(&h->items[left + 1], &h->items[least]))
			least = left + 1;
		if (least == i)
			return top;
		swap(&h->items[i], &h->items[least]);
		i = least;
	}
}

/* --- playing the graph -------------------------------------------------------- */

/* readers[start[i]] up to readers[start[i + 1]]: the tasks that read from task i, once per input. */
struct game {
	const struct plan *plan;
	const struct plan_fleet *fleet;
	size_t *missing, *start, *readers;
	struct heap ready, running;
};

static int index_readers(struct game *g)
{
	const struct plan *plan = g->plan;
	size_t n = plan->task_count, edges = 0;

	for (size_t i = 0; i < n; i++)
		edges += plan->tasks[i].input_count;
	g->missing = mem_alloc(n + 1, sizeof(*g->missing));
	g->start = mem_alloc(n + 2, sizeof(*g->start));
	g->readers = mem_alloc(edges + 1, sizeof(*g->readers));
	if (!g->missing || !g->start || !g->readers)
		return -1;
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < plan->tasks[i].input_count; j++)
			if (plan->tasks[i].inputs[j].from >= 0) {
				g->missing[i]++;
				g->start[plan->tasks[i].inputs[j].from + 2]++;
			}
	for (size_t i = 2; i < n + 2; i++)
		g->start[i] += g->start[i - 1];
	for (size_t i = 0; i < n; i++) /* start[from + 1] runs from the first place of `from` to that of the next */
		for (size_t j = 0; j < plan->tasks[i].input_count; j++)
			if (plan->tasks[i].inputs[j].from >= 0)
				g->readers[g->start[plan->tasks[i].inputs[j].from + 1]++] = i;
	return 0;
}

static double duration(const struct game *g, size_t task)
{
	const struct plan_task *t = &g->plan->tasks[task];

	return plan_task_seconds + (double)t->work / g->fleet->rate[t->kind];
}

static double play(struct game *g)
{
	double now = 0;

	for (size_t i = 0; i < g->plan->task_count; i++)
		if (g->missing[i] == 0)
			heap_push(&g->ready, (double)g->plan->tasks[i].rank, i);
	while (g->ready.count > 0 || g->running.count > 0) {
		struct entry done;

		while (g->ready.count > 0 && g->running.count < (size_t)g->fleet->crew.workers) {
			size_t task = heap_pop(&g->ready).task;

			heap_push(&g->running, now + duration(g, task), task);
		}
		done = heap_pop(&g->running);
		now = done.key;
		for (size_t r = g->start[done.task]; r < g->start[done.task + 1]; r++)
			if (--g->missing[g->readers[r]] == 0)
				heap_push(&g->ready, (double)g->plan->tasks[g->readers[r]].rank, g->readers[r]);
	}
	return now;
}

double plan_seconds(const struct plan *plan, const struct plan_fleet *fleet)
{
	struct game g = { .plan = plan, .fleet = fleet };
	double seconds = -1;

	g.ready.items = mem_alloc(plan->task_count, sizeof(*g.ready.items));
	g.running.items = mem_alloc(plan->task_count, sizeof(*g.running.items));
	if (g.ready.items && g.running.items && index_readers(&g) == 0)
		seconds = play(&g);
	mem_free(g.ready.items);
	mem_free(g.running.items);
	mem_free(g.missing);
	mem_free(g.start);
	mem_free(g.readers);
	return seconds;
}

/* --- efforts ------------------------------------------------------------------ */

/* Another effort may need more text than there is: then it has no time. */
static int forecast_effort(struct plan_forecast *f, const struct plan_request *request, enum effort effort,
			   struct err *err)
{
	struct recipe recipe = *request->recipe; /* its texts stay the request's */
	struct plan_request r = *request;
	struct problems problems = { 0 };
	struct err why = ERR_INIT;
	struct plan plan;
	int rc;

	recipe_apply_effort(&recipe, effort);
	r.recipe = &recipe;
	r.disk_free_bytes = UINT64_MAX;
	rc = plan_make(&plan, &r, &problems, &why);
	f->efforts[effort] = rc == 0 ? plan_seconds(&plan, &f->fleet) : -1;
	rc = (rc == 0 && f->efforts[effort] < 0) || why.code == ERR_NOMEM ? err_set_nomem(err, "the forecast") : 0;
	plan_deinit(&plan);
	problems_deinit(&problems);
	return rc;
}

int plan_forecast(struct plan_forecast *f, const struct plan *plan, const struct plan_request *request,
		  bool with_efforts, struct err *err)
{
	f->seconds = plan_seconds(plan, &f->fleet);
	if (f->seconds < 0)
		return err_set_nomem(err, "the forecast");
	for (int e = 0; e < EFFORTS; e++) {
		f->efforts[e] = -1;
		if (with_efforts && request->recipe->kind == RECIPE_QUANTIZE &&
		    forecast_effort(f, request, (enum effort)e, err) != 0)
			return -1;
	}
	return 0;
}
