#include "cli/grid.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "cli/text.h"

enum { GRID_COLUMNS = 14 };

/* "self_attn.q_proj" -> "q_proj" */
static const char *short_name(const struct json *module)
{
	const char *name = json_get_string(module, "name", "?"), *dot = strrchr(name, '.');

	return dot ? dot + 1 : name;
}

static size_t module_columns(const struct json *layers)
{
	size_t most = 0;

	for (const struct json *l = json_first(layers); l; l = json_next(l))
		if (json_size(json_get(l, "modules")) > most)
			most = json_size(json_get(l, "modules"));
	return most < GRID_COLUMNS ? most : GRID_COLUMNS;
}

static struct table *new_grid(const struct json *layers, size_t modules)
{
	const char *titles[GRID_COLUMNS + 2] = { "LAYER", "STATE" };

	for (size_t i = 0; i < modules; i++)
		titles[i + 2] = short_name(json_at(json_get(json_first(layers), "modules"), i));
	return table_new(titles, modules + 2);
}

static void loss_cell(struct table *t, const struct json *module)
{
	double loss = json_get_number(module, "relative_loss", -1);
	char cell[32] = "-";

	if (json_get_bool(module, "skip", false))
		snprintf(cell, sizeof(cell), "kept");
	else if (module && loss >= 0)
		snprintf(cell, sizeof(cell), "%.2f %%", loss * 100);
	table_cell(t, cell);
}

static void state_cell(struct table *t, const struct json *layer)
{
	double progress = json_get_number(layer, "progress", 0);
	const char *state = json_get_string(layer, "state", "?");
	char cell[64];

	if (strcmp(state, "LEASED") == 0)
		snprintf(cell, sizeof(cell), "%.0f %%", progress * 100);
	else
		snprintf(cell, sizeof(cell), "%s", state);
	table_cell(t, cell);
}

int grid_print(const struct json *job)
{
	const struct json *layers = json_get(job, "layers");
	size_t modules = module_columns(layers);
	struct table *t;
	int rc;

	if (json_size(layers) == 0)
		return 0;
	t = new_grid(layers, modules);
	for (const struct json *l = json_first(layers); t && l; l = json_next(l)) {
		const struct json *m = json_first(json_get(l, "modules"));
		char number[24];

		snprintf(number, sizeof(number), "%lld", (long long)json_get_int(l, "layer", 0));
		table_cell(t, number);
		state_cell(t, l);
		for (size_t i = 0; i < modules; i++, m = m ? json_next(m) : NULL)
			loss_cell(t, m);
	}
	rc = t ? table_print(t) : -1;
	table_free(t);
	return rc;
}
