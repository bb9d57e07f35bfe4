#include "cli/scores.h"

#include <stdio.h>

static bool is_number(const struct json *object, const char *key)
{
	return json_type(json_get(object, key)) == JSON_NUMBER;
}

bool score_comparison(const struct json *text, char out[SCORE_MAX])
{
	if (!is_number(text, "kl") || !is_number(text, "top1"))
		return false;
	snprintf(out, SCORE_MAX, "KL divergence %.4f, top-1 agreement %.2f %%", json_get_number(text, "kl", 0),
		 100 * json_get_number(text, "top1", 0));
	return true;
}

bool score_blocks(const struct json *job, char out[SCORE_MAX])
{
	double before = 0, after = 0;
	int blocks = 0;

	for (const struct json *l = json_first(json_get(job, "layers")); l; l = json_next(l)) {
		const struct json *d = json_get(l, "distill");

		if (!is_number(d, "before") || !is_number(d, "after"))
			continue;
		before += json_get_number(d, "before", 0);
		after += json_get_number(d, "after", 0);
		blocks++;
	}
	if (blocks == 0)
		return false;
	snprintf(out, SCORE_MAX, "%d block%s, relative loss %.4f -> %.4f on average", blocks, blocks == 1 ? "" : "s",
		 before / blocks, after / blocks);
	return true;
}

bool score_end_to_end(const struct json *job, char out[SCORE_MAX])
{
	const struct json *end = json_get(job, "distillation");
	const struct json *before = json_get(end, "before"), *after = json_get(end, "after");

	if (!is_number(before, "kl") || !is_number(after, "kl"))
		return false;
	snprintf(out, SCORE_MAX, "end to end, KL divergence %.4f -> %.4f on calibration text",
		 json_get_number(before, "kl", 0), json_get_number(after, "kl", 0));
	return true;
}

bool score_steps(const struct json *report, char out[SCORE_MAX])
{
	const struct json *summary = json_get(report, "summary");

	if (!is_number(summary, "relative_loss_rounded") || !is_number(summary, "relative_loss"))
		return false;
	snprintf(out, SCORE_MAX, "%.2f %% of the output energy after rounding, %.2f %% after refinement",
		 100 * json_get_number(summary, "relative_loss_rounded", 0),
		 100 * json_get_number(summary, "relative_loss", 0));
	return true;
}
