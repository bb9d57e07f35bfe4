/* plan_parts.h - what the plan_*.c files share; nobody else includes it. */
#ifndef QUARRY_SERVER_PLAN_PARTS_H
#define QUARRY_SERVER_PLAN_PARTS_H

#include "server/plan.h"

/* plan_check.c: settings of every module, and every sentence against them. 0, or -1 without memory. */
int plan_check(struct plan *plan, const struct plan_request *request, struct problems *problems,
	       struct err *err);

/* plan_reference.c: what the reference and the model must share. 0, or -1 without memory. */
int plan_check_reference(const struct plan_request *request, struct problems *problems);

/* plan_embeddings.c: every sentence against the bits of embedding and output head. 0, or -1 without memory. */
int plan_check_embeddings(const struct plan_request *request, struct problems *problems);

/* plan_graph.c: all tasks but assemble. */
int plan_graph(struct plan *plan, const struct plan_request *request, struct err *err);
/* A new task at the end; its index, or -1. Takes `spec` (NULL: out of memory). */
int64_t plan_add_task(struct plan *plan, enum task_kind kind, int64_t layer, int64_t shard, int64_t work,
		      struct json *spec, struct err *err);
/* The next input of task `index`. name is copied (at most 31 bytes). from = -1: the text's blob. */
int plan_add_input(struct plan *plan, int64_t index, const char *name, int64_t from,
		   const struct plan_text *text, struct err *err);
/* The same for one of several blobs that task `from` makes. */
int plan_add_output_input(struct plan *plan, int64_t index, const char *name, int64_t from, const char *output,
			  struct err *err);
/* Input "layer-<l>": the layer as the job will deliver it, distilled if it is distilled. */
int plan_add_layer_input(struct plan *plan, int64_t index, int64_t layer, struct err *err);

/* A spec being filled: `rc` collects failures, spec_done() gives the object or NULL. */
struct spec { struct json *object; int rc; };
struct spec spec_new(void);
void spec_int(struct spec *s, const char *key, int64_t value);
void spec_text(struct spec *s, const char *key, const char *value);
void spec_bool(struct spec *s, const char *key, bool value);
struct json *spec_done(struct spec *s);
/* plan_embeddings.c: members "embeddings" and "lm_head" where they are not 16, for tasks that compute with the tables as the
 * checkpoint stores them. */
void spec_embeddings(struct spec *s, const struct recipe *recipe);

/* role: "calibration" or "eval". Index of the task, or -1. */
int64_t plan_add_tokenize(struct plan *plan, const struct plan_request *request, const struct plan_text *text,
			  const char *role, int64_t shard, struct err *err);
/* plan_layers.c: tokenize the calibration text, embed, capture, quantize, distill. */
int plan_add_layers(struct plan *plan, const struct plan_request *request, struct err *err);

/* plan_outputs.c: fills plan->stored and the zero_parts of every module's settings; every sentence against the formats.
 * 0, or -1 without memory. */
int plan_check_outputs(struct plan *plan, const struct plan_request *request, struct problems *problems, struct err *err);
/* One assemble task per file of each format; fills plan->outputs. */
int plan_outputs(struct plan *plan, const struct plan_request *request, struct err *err);
/* The first of the recipe's formats that stores 16-bit floats, or NULL. */
const char *plan_halves_for(const struct recipe *recipe);

/* plan_distill.c: what quantize and distill tasks are told of training. */
/* Member "distill" of a quantize task's spec: null, or how its block is trained. */
void spec_distill_block(struct spec *s, const struct plan *plan, const struct plan_request *request, int64_t layer);
/* true when the job has a distill task: it is asked for, and something is quantized. */
bool plan_distills_model(const struct plan *plan, const struct plan_request *request);
/* Adds the task; targets[i]: who makes X(L, i), `count` of them. 0 or -1. */
int plan_add_distill(struct plan *plan, const struct plan_request *request, int64_t tokens,
		     const int64_t *targets, int64_t count, struct err *err);

/* plan_cost.c */
uint64_t plan_hidden_shard_bytes(const struct plan_request *request, int64_t sequences);
int64_t plan_work_tokenize(uint64_t bytes);
int64_t plan_work_verify(uint64_t bytes);
int64_t plan_work_embed(const struct plan_request *request, int64_t sequences);
int64_t plan_work_capture(const struct plan_request *request, int64_t sequences);
int64_t plan_work_quantize(const struct plan *plan, const struct plan_request *request, int64_t layer);
int64_t plan_work_evaluate(const struct plan_request *request, int64_t windows, bool compared);
int64_t plan_work_distill(const struct plan_request *request);
/* Windows that a text of so many bytes is likely to have (4 bytes a token). */
int64_t plan_windows(const struct plan_request *request, const struct plan_text *text);
/* Fills plan->disk_bytes and memory_bytes; the outputs must be planned. */
void plan_estimate(struct plan *plan, const struct plan_request *request);

#endif
