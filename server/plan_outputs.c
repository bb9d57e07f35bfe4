/* The formats of a job: what each can hold, which zero-points they need, and an assemble task per file. Layout and
 * refusals are those of formats/output.h; the workers make the same plan again. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "formats/embedding.h"
#include "formats/output_spec.h"
#include "server/dtypes.h"
#include "server/plan_parts.h"

/* --- the model as formats see it -------------------------------------------------- */

static void add_table(struct plan *plan, const struct plan_request *r, const char *name, int64_t bits)
{
	struct codec_module *m = &plan->stored[plan->stored_count];

	if (bits == 16)
		return;
	*m = (struct codec_module){ .name = name, .layer = -1, .rows = r->config->vocab, .cols = r->config->hidden };
	embedding_settings((int)bits, &m->settings);
	plan->stored_count++;
}

static int fill_stored(struct plan *plan, const struct plan_request *r, struct err *err)
{
	plan->stored = mem_alloc(plan->module_count + 2, sizeof(*plan->stored));
	if (!plan->stored)
		return err_set_nomem(err, "the module table");
	for (size_t i = 0; i < plan->module_count; i++) {
		const struct plan_module *m = &plan->modules[i];

		const bool divides = recipe_check_group((size_t)m->cols, m->settings.group_size, m->name, NULL) == 0;

		plan->stored[i] = (struct codec_module){ .name = m->name, .layer = m->layer, .linear = m->linear,
							 .rows = m->rows, .cols = m->cols, .settings = m->settings };
		plan->stored[i].settings.skip |= !divides; /* is refused already: formats need not say it too */
	}
	plan->stored_count = plan->module_count;
	add_table(plan, r, "model.embed_tokens", r->recipe->embeddings);
	if (!r->config->tied_embeddings)
		add_table(plan, r, "lm_head", r->recipe->lm_head);
	return 0;
}

static bool wanted(const struct recipe *recipe, const struct output_format *f)
{
	bool found = f->always;

	for (size_t i = 0; i < recipe->format_count; i++)
		found |= strcmp(recipe->formats[i], f->name) == 0;
	return found;
}

const char *plan_halves_for(const struct recipe *recipe)
{
	for (const struct output_format *f = output_formats; f->name; f++)
		if (wanted(recipe, f) && output_in_halves(f))
			return f->name;
	return NULL;
}

/* --- zero-points ------------------------------------------------------------------ */

static bool has_free_zeros(const struct codec_module *m)
{
	return !m->settings.skip && !m->settings.symmetric && m->settings.zero_point == ZERO_FLOAT;
}

/* All formats are written from the same codes: zero-points are multiples of what the strictest one asks for. The parts are
 * powers of two, so the fewest suit all. */
static void choose_zero_parts(struct plan *plan, const struct recipe *recipe)
{
	for (size_t i = 0; i < plan->module_count; i++) {
		struct codec_module *m = &plan->stored[i];
		unsigned fewest = 0;

		for (const struct output_format *f = output_formats; f->name && has_free_zeros(m); f++) {
			const unsigned parts = wanted(recipe, f) ? output_zero_parts(f, m) : 0;

			fewest = parts > 0 && (fewest == 0 || parts < fewest) ? parts : fewest;
		}
		m->zero_parts = m->settings.zero_parts = plan->modules[i].settings.zero_parts = fewest;
	}
}

/* Modules whose zero-points are as coarse as `parts` because this format asks for it. */
static size_t count_coarse(const struct plan *plan, const struct output_format *f, unsigned parts)
{
	size_t count = 0;

	for (size_t i = 0; i < plan->module_count; i++)
		count += has_free_zeros(&plan->stored[i]) && plan->stored[i].zero_parts == parts &&
			 output_zero_parts(f, &plan->stored[i]) == parts;
	return count;
}

/* Said, because the other formats of the job could hold any. */
static int warn_zeros(struct plan *plan, const struct output_format *f)
{
	for (unsigned parts = 1; parts <= 128; parts *= 2) {
		const size_t count = count_coarse(plan, f, parts);
		int rc;

		if (count == 0)
			continue;
		if (parts == 1)
			rc = problems_add(&plan->warnings, "format %s holds integer zero-points: those of %zu modules are "
					  "chosen so, in every format of the job", f->name, count);
		else
			rc = problems_add(&plan->warnings, "format %s holds zero-points that are multiples of 1/%u: those "
					  "of %zu modules are chosen so, in every format of the job", f->name, parts, count);
		if (rc != 0)
			return -1;
	}
	return 0;
}

/* --- refusals --------------------------------------------------------------------- */

/* The blocks' modules; plan_embeddings.c speaks of the tables. */
static int check_format(struct plan *plan, const struct plan_request *r, const struct output_format *f,
			struct problems *problems)
{
	const struct output_model m = { .config = r->config, .modules = plan->stored, .count = plan->module_count };
	const size_t before = problems->count;

	if (output_check(f, &m, problems) != 0)
		return problems->count > before ? 0 : -1;
	return output_caution(f, &m, &plan->warnings);
}

int plan_check_outputs(struct plan *plan, const struct plan_request *r, struct problems *problems, struct err *err)
{
	int rc = 0;

	if (fill_stored(plan, r, err) != 0)
		return -1;
	choose_zero_parts(plan, r->recipe);
	for (const struct output_format *f = output_formats; rc == 0 && f->name; f++)
		if (wanted(r->recipe, f))
			rc = check_format(plan, r, f, problems) | warn_zeros(plan, f);
	return rc == 0 ? 0 : err_set_nomem(err, "the list of problems");
}

/* --- tasks ------------------------------------------------------------------------ */

struct outputs {
	struct plan *plan;
	const struct plan_request *request;
	const struct json *modules;
	struct err *err;
};

static struct json *file_spec(const struct outputs *o, const struct output_plan *p, size_t i)
{
	struct spec s = spec_new();

	spec_text(&s, "format", p->format->name);
	spec_int(&s, "file", (int64_t)i);
	spec_text(&s, "name", p->files[i].name);
	spec_int(&s, "max_shard_size", (int64_t)o->request->recipe->max_shard_size);
	s.rc |= json_set(s.object, "modules", json_copy(o->modules));
	return spec_done(&s);
}

struct inputs { struct outputs *o; int64_t task; };

static int add_layer(void *ctx, int64_t layer)
{
	const struct inputs *in = ctx;

	return plan_add_layer_input(in->o->plan, in->task, layer, in->o->err);
}

static int add_file(struct outputs *o, const struct output_plan *p, size_t i)
{
	struct inputs in = { .o = o };

	in.task = plan_add_task(o->plan, KIND_ASSEMBLE, -1, (int64_t)i + 1, plan_work_verify(p->files[i].bytes),
				file_spec(o, p, i), o->err);
	return in.task < 0 ? -1 : output_file_layers(p, i, add_layer, &in);
}

static int add_format(struct outputs *o, const struct output_model *m, const struct output_format *f)
{
	struct plan_output *out = &o->plan->outputs[o->plan->output_count];
	struct output_plan p;
	int rc;

	if (o->plan->output_count == PLAN_OUTPUTS_MAX)
		return err_set(o->err, ERR_INTERNAL, "a job has more than %d formats", PLAN_OUTPUTS_MAX);
	if (output_plan_make(&p, f, m, o->request->recipe->max_shard_size, o->err) != 0)
		return -1;
	*out = (struct plan_output){ .format = f, .bytes = p.bytes, .files = p.file_count };
	if (p.quantized_weights > 0)
		out->bits_per_weight = 8.0 * (double)p.quantized_bytes / (double)p.quantized_weights;
	o->plan->output_count++;
	rc = 0;
	for (size_t i = 0; rc == 0 && i < p.file_count; i++)
		rc = add_file(o, &p, i);
	output_plan_deinit(&p);
	return rc;
}

static int add_formats(struct outputs *o, struct dtypes *dtypes)
{
	const struct output_model m = { .config = o->request->config, .modules = o->plan->stored,
					.count = o->plan->stored_count, .dtype = dtypes_find, .ctx = dtypes };
	int rc = 0;

	for (const struct output_format *f = output_formats; rc == 0 && f->name; f++)
		if (wanted(o->request->recipe, f))
			rc = add_format(o, &m, f);
	return rc;
}

int plan_outputs(struct plan *plan, const struct plan_request *r, struct err *err)
{
	struct outputs o = { .plan = plan, .request = r, .err = err };
	struct json *modules;
	struct dtypes dtypes;
	int rc;

	if (r->recipe->kind != RECIPE_QUANTIZE)
		return 0;
	if (dtypes_init(&dtypes, r->dtypes, err) != 0)
		return -1;
	o.modules = modules = output_modules_json(plan->stored, plan->stored_count);
	rc = modules ? add_formats(&o, &dtypes) : err_set_nomem(err, "the modules of a spec");
	json_free(modules);
	dtypes_deinit(&dtypes);
	return rc;
}
