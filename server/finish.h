/* finish.h - the small files of a finished job, made from what its tasks reported. Private to finish_*.c and
 * finish.c; the engine calls finish_pending() (engine_internal.h).
 *
 * Everything here reads one snapshot of the database and returns text; nothing is stored before finish.c
 * puts all files into the blob store and all rows into one transaction. Running it twice gives the same bytes
 * but for the member "run" of the report.
 */
#ifndef QUARRY_SERVER_FINISH_H
#define QUARRY_SERVER_FINISH_H

#include "common/buf.h"
#include "formats/output.h"
#include "formats/output_spec.h"
#include "server/dtypes.h"
#include "server/engine_internal.h"
#include "server/plan.h"

enum { FINISH_TEXT_MAX = 64 << 20 };

/* The formats of a job and what they were made of. All zero before; deinit in any case. */
struct finish_output { const struct output_format *format; struct output_plan plan; };

struct finish_outputs {
	struct model_config config;
	struct json *config_json, *tensors;
	char *config_text, *path;       /* path: the model's folder, NULL when it was uploaded */
	struct dtypes dtypes;
	struct output_modules modules;
	struct output_model model;
	uint64_t max_shard_size;
	struct finish_output items[PLAN_OUTPUTS_MAX];
	size_t count;                   /* 0 in an evaluate job */
};
int finish_outputs_read(struct finish_outputs *o, struct store *db, const struct job_ref *job, struct err *err);
void finish_outputs_deinit(struct finish_outputs *o);
/* {"<format>": {"bytes","files","bits_per_weight","types"}}, to which finish.c adds "sha256"; `bytes`: {"<format>": bytes of its files}. NULL without
 * memory. */
struct json *finish_outputs_json(const struct finish_outputs *o, const struct json *bytes);

/* report.json as an object; NULL with err set. */
struct json *finish_report(struct engine *e, struct store *db, const struct job_ref *job,
			   const struct finish_outputs *outputs, struct err *err);
/* The member "run": times, workers, memory, ids. */
struct json *finish_run(struct store *db, const struct job_ref *job, int64_t now_ms, struct err *err);

/* README.md: the model card. */
int finish_card(const struct json *report, const struct output_format *format, struct buf *out, struct err *err);

#endif
