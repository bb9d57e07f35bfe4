/* recipe.h - what a user asks for: the one table of options, used by CLI, server and workers.
 *
 * JSON spelling = option spelling with '_' for '-'. recipe_from_json() fills defaults, checks each
 * field and rejects unknown ones by name; recipe_to_json() writes every field (canonical: fixed
 * order, defaults included), so equal recipes print equal bytes.
 * "effort" is a bundle of defaults: it counts first, wherever it stands, and a field given beside it wins.
 * To add an option: a field here, a row in recipe.c's table, api.yaml, docs/recipe.md.
 */
#ifndef QUARRY_COMMON_RECIPE_H
#define QUARRY_COMMON_RECIPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/json.h"
#include "common/model_config.h"

enum recipe_kind { RECIPE_QUANTIZE, RECIPE_EVALUATE };
enum init_method { METHOD_NEUQI, METHOD_MINMAX };
enum zero_point { ZERO_FLOAT, ZERO_INTEGER };
enum rounding { ROUND_LDLQ, ROUND_NEAREST };
enum propagate { PROPAGATE_ORIGINAL, PROPAGATE_QUANTIZED };
enum effort { EFFORT_FAST, EFFORT_BALANCED, EFFORT_BEST, EFFORTS };
enum distill { DISTILL_NONE, DISTILL_BLOCK, DISTILL_END_TO_END, DISTILL_FULL }; /* full: block, then end-to-end */

enum { RECIPE_OVERRIDES_MAX = 64, RECIPE_EVALS_MAX = 8, RECIPE_NAME_MAX = 256 };

/* --override REGEX:skip  or  REGEX:bits=4,group_size=64,method=...,zero_point=...,symmetric=true */
struct recipe_override {
	char *regex;            /* POSIX extended, searched in the module name */
	bool skip;
	int bits;               /* 0 = keep */
	int64_t group_size;     /* 0 = keep */
	int method, zero_point, symmetric, rounding; /* -1 = keep */
};

struct recipe {
	enum recipe_kind kind;          /* "kind": "quantize" | "evaluate" */
	int bits;                       /* 1..8; default 4 */
	int64_t group_size;             /* -1 = one group per output channel; default 64 */
	enum init_method method;
	enum zero_point zero_point;
	bool symmetric;
	enum rounding rounding;
	enum effort effort;             /* sets the defaults of the next six: recipe_effort.c */
	int64_t refine;                 /* rounds, 0..32 */
	enum distill distill;
	int64_t distill_samples;        /* 0 = as many as `samples` */
	int64_t block_epochs, epochs;   /* 1..64: passes of block and of end-to-end distillation */
	bool train_codes;               /* distillation moves the codes too */
	enum propagate propagate;
	int64_t samples;                /* default 128 */
	int64_t seq_len;                /* default min(1024, max_position), stored 0 until resolved */
	uint64_t seed;                  /* default 0 */
	uint64_t max_shard_size;        /* bytes; default 5e9 */
	char *calibration;              /* dataset id, or "builtin" */
	char *evals[RECIPE_EVALS_MAX];  /* dataset ids, or one "builtin"; none = no evaluation */
	size_t eval_count;
	int64_t eval_windows;           /* at most so many windows per text, 0 = all; builtin: 16 */
	char *reference;                /* evaluate: the id of a model to compare with, or NULL */
	int64_t embeddings, lm_head;    /* bits of the tables outside the blocks: 16 = untouched, 8, 6, 4. lm_head 0: 16, or
					 * what `embeddings` says where the head is the embedding; see plan_resolve() */
	char **formats; size_t format_count; /* of recipe_format_words; packed is always written */
	struct recipe_override *overrides; size_t override_count;
};

void recipe_init(struct recipe *r);     /* the defaults */
void recipe_deinit(struct recipe *r);
int recipe_from_json(struct recipe *r, const struct json *object, struct problems *problems,
		     struct err *err);
struct json *recipe_to_json(const struct recipe *r);    /* NULL when out of memory */
/* Applies "--name value" (name without dashes); value NULL for a flag. Returns 0, -1 bad value,
 * 1 = not a recipe option. Writes into a JSON object, the form in which recipes are submitted. */
int recipe_option(struct json *object, const char *name, const char *value, struct err *err);

/* Settings of one module after overrides (the last matching override wins, field by field). */
struct module_settings {
	bool skip;
	int bits;
	int64_t group_size;     /* as asked: -1 or a divisor of cols */
	enum init_method method;
	enum zero_point zero_point;
	bool symmetric;
	enum rounding rounding;
	/* With float zero-points: every z is a multiple of 1/zero_parts, 0 = any number. No user's setting: the planner
	 * takes it from the formats that are wanted. */
	unsigned zero_parts;
};
int recipe_module(const struct recipe *r, const char *module, struct module_settings *out,
		  struct err *err);
/* 0 when groups of `group_size` (or -1) divide `cols`; else -1 and a sentence in `problems` (may be
 * NULL) that says which powers of two do. */
int recipe_check_group(size_t cols, int64_t group_size, const char *module, struct problems *problems);
/* Adds every setting to an object that has none; -1 when out of memory. All must be there to read but "zero_parts",
 * which is written when it is not 0. */
int module_settings_to_json(const struct module_settings *s, struct json *object);
int module_settings_from_json(struct module_settings *s, const struct json *object, struct err *err);

/* Sets `effort` and the fields it bundles. */
void recipe_apply_effort(struct recipe *r, enum effort effort);
bool recipe_distills_blocks(const struct recipe *r);    /* inside each quantize task */
bool recipe_distills_model(const struct recipe *r);     /* end-to-end, in a task of its own */
/* Sequences that distillation sees (0 = none), and those that the calibration text must give in all. */
int64_t recipe_distill_sequences(const struct recipe *r);
int64_t recipe_sequences(const struct recipe *r);

extern const char *const recipe_format_words[];         /* ends with NULL */
const char *effort_name(enum effort e);                 /* the wire words */
const char *distill_name(enum distill d);
const char *init_method_name(enum init_method m);
const char *zero_point_name(enum zero_point z);
const char *rounding_name(enum rounding r);
const char *propagate_name(enum propagate p);

#endif
