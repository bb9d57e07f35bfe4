/* plan_case.h - a plan without a database: fable-tiny's shape, a recipe, and what to ask of the graph. Everything
 * asserts. */
#ifndef QUARRY_TESTS_PLAN_CASE_H
#define QUARRY_TESTS_PLAN_CASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "server/plan.h"

/* fable-tiny's shape: 4 layers, hidden 192, intermediate 512. Texts: calibration of 1,131,770 bytes, evaluation of
 * 130,755. Change request or config before plan_case_make(). */
struct plan_case {
	struct model_config config;
	struct recipe recipe;
	struct json *dtypes;
	const char *shards[2];
	uint64_t shard_bytes[2];
	struct plan_request request;
	struct plan plan;
	struct problems problems;
	struct err err;
};

/* recipe: JSON text, quotes may be written as '. */
void plan_case_init(struct plan_case *c, const char *recipe);
int plan_case_make(struct plan_case *c); /* plan_make()'s */
void plan_case_deinit(struct plan_case *c);

size_t plan_case_count(const struct plan_case *c, enum task_kind kind);
/* The nth (from 0) task of this kind, layer and shard (-1: none). */
const struct plan_task *plan_case_nth(const struct plan_case *c, enum task_kind kind, int64_t layer, int64_t shard,
				      size_t nth);
const struct plan_task *plan_case_task(const struct plan_case *c, enum task_kind kind, int64_t layer, int64_t shard);
/* The input of this name, or NULL. */
const struct plan_input *plan_case_input(const struct plan_task *t, const char *name);
/* The task that makes the input of this name, which must be there and be its output `output`. */
const struct plan_task *plan_case_maker(const struct plan_case *c, const struct plan_task *t, const char *name,
					const char *output);

#endif
