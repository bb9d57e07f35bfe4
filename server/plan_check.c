/* What can be refused before a job exists: settings against shapes, formats, texts and lengths. */
#include <inttypes.h>
#include <regex.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "server/plan_parts.h"

enum { TASKS_MAX = 200000, DIVISORS_SHOWN = 12 };

/* --- modules ------------------------------------------------------------------ */

static int fill_module(struct plan_module *m, const struct plan_request *r, size_t layer, int linear,
		       struct err *err)
{
	struct linear_shape shape = model_linear(r->config, (enum block_linear)linear);

	model_linear_name(m->name, r->config, layer, (enum block_linear)linear);
	m->suffix = shape.suffix;
	m->layer = (int64_t)layer;
	m->linear = (enum block_linear)linear;
	m->rows = shape.rows;
	m->cols = shape.cols;
	return recipe_module(r->recipe, m->name, &m->settings, err);
}

static int fill_modules(struct plan *plan, const struct plan_request *r, struct err *err)
{
	size_t count;

	if (!size_mul(r->config->layers, LIN_COUNT, &count) ||
	    !(plan->modules = mem_alloc(count, sizeof(*plan->modules))))
		return err_set_nomem(err, "the module table");
	plan->module_count = count;
	for (size_t i = 0; i < count; i++)
		if (fill_module(&plan->modules[i], r, i / LIN_COUNT, (int)(i % LIN_COUNT), err) != 0)
			return -1;
	return 0;
}

/* "8, 16, 32 and 64": group sizes that divide `cols`. */
static void list_divisors(uint64_t cols, char *out, size_t cap)
{
	uint64_t found[DIVISORS_SHOWN];
	size_t count = 0, used = 0;

	for (uint64_t d = cols; d >= 8 && count < DIVISORS_SHOWN; d--)
		if (cols % d == 0 && d <= 4096)
			found[count++] = d;
	out[0] = '\0';
	while (count-- > 0)
		used += (size_t)snprintf(out + used, cap - used, "%" PRIu64 "%s", found[count],
					 count == 0 ? "" : count == 1 ? " and " : ", ");
}

static bool group_divides(const struct plan_module *m)
{
	int64_t group = m->settings.group_size;

	return m->settings.skip || group == -1 || (group > 0 && m->cols % (uint64_t)group == 0);
}

/* true when an earlier module already gave the same sentence. */
static bool group_reported(const struct plan *plan, size_t index)
{
	const struct plan_module *m = &plan->modules[index];

	for (size_t i = 0; i < index; i++)
		if (!group_divides(&plan->modules[i]) && plan->modules[i].cols == m->cols &&
		    plan->modules[i].settings.group_size == m->settings.group_size)
			return true;
	return false;
}

static int check_groups(const struct plan *plan, struct problems *problems)
{
	for (size_t i = 0; i < plan->module_count; i++) {
		const struct plan_module *m = &plan->modules[i];
		char divisors[256];

		if (group_divides(m) || group_reported(plan, i))
			continue;
		list_divisors(m->cols, divisors, sizeof(divisors));
		if (problems_add(problems,
				 "group_size %" PRId64 " does not divide the %" PRIu64
				 " input columns of %s; %s do, or -1 for one group per output channel",
				 m->settings.group_size, m->cols, m->name, divisors) != 0)
			return -1;
	}
	return 0;
}

/* An override that matches nothing is most likely a slip of the pen. */
static int warn_overrides(struct plan *plan, const struct plan_request *r)
{
	for (size_t i = 0; i < r->recipe->override_count; i++) {
		const char *text = r->recipe->overrides[i].regex;
		bool matched = false;
		regex_t regex;

		if (regcomp(&regex, text, REG_EXTENDED | REG_NOSUB) != 0)
			continue; /* recipe_module() has refused it by now */
		for (size_t m = 0; m < plan->module_count && !matched; m++)
			matched = regexec(&regex, plan->modules[m].name, 0, NULL, 0) == 0;
		regfree(&regex);
		if (!matched && problems_add(&plan->warnings, "override '%s' matches no module", text) != 0)
			return -1;
	}
	return 0;
}

/* --- texts and lengths -------------------------------------------------------- */

static int check_lengths(const struct plan_request *r, struct problems *problems)
{
	const struct recipe *recipe = r->recipe;
	uint64_t seq_len = (uint64_t)recipe->seq_len;

	if (seq_len > r->config->max_position &&
	    problems_add(problems, "seq_len %" PRIu64 " exceeds the model's max_position_embeddings %zu", seq_len,
			 r->config->max_position) != 0)
		return -1;
	if (recipe->kind == RECIPE_QUANTIZE &&
	    r->calibration.bytes / seq_len < (uint64_t)recipe_sequences(recipe) &&
	    problems_add(problems,
			 "calibration text %s has %" PRIu64 " bytes, too few for %" PRId64 " samples of %" PRIu64
			 " tokens; give a longer text, fewer samples or a smaller seq_len",
			 r->calibration.name, r->calibration.bytes, recipe_sequences(recipe), seq_len) != 0)
		return -1;
	for (size_t i = 0; i < recipe->eval_count; i++)
		if (r->evals[i].bytes < seq_len &&
		    problems_add(problems,
				 "evaluation text %s has %" PRIu64 " bytes, too few for one window of %" PRIu64 " tokens",
				 r->evals[i].name, r->evals[i].bytes, seq_len) != 0)
			return -1;
	if (recipe->kind == RECIPE_EVALUATE && recipe->eval_count == 0)
		return problems_add(problems, "an evaluate job needs at least one text in \"eval\"");
	return 0;
}

static int check_size(const struct plan_request *r, struct problems *problems)
{
	uint64_t tasks;

	if (u64_mul((uint64_t)recipe_sequences(r->recipe), r->config->layers, &tasks) && tasks / 16 <= TASKS_MAX)
		return 0;
	return problems_add(problems, "%" PRId64 " samples through %zu layers are more than a job may have",
			    recipe_sequences(r->recipe), r->config->layers);
}

int plan_check(struct plan *plan, const struct plan_request *r, struct problems *problems, struct err *err)
{
	bool quantize = r->recipe->kind == RECIPE_QUANTIZE;

	if (quantize && fill_modules(plan, r, err) != 0)
		return -1;
	if (check_lengths(r, problems) != 0 || plan_check_reference(r, problems) != 0 ||
	    plan_check_embeddings(r, problems) != 0 ||
	    (quantize && (check_groups(plan, problems) != 0 || check_size(r, problems) != 0 ||
			  warn_overrides(plan, r) != 0)))
		return err_set_nomem(err, "the list of problems");
	return quantize ? plan_check_outputs(plan, r, problems, err) : 0;
}
