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
#include "server/engine_internal.h"
#include "server/formats.h"

enum { FINISH_TEXT_MAX = 64 << 20 };

/* report.json as an object; NULL with err set. */
struct json *finish_report(struct engine *e, struct store *db, const struct job_ref *job, struct err *err);
/* The member "run": times, workers, memory, ids. */
struct json *finish_run(struct store *db, const struct job_ref *job, int64_t now_ms, struct err *err);

/* config.json for a format: every member of the source keeps its text; the dtype and quantization_config are
 * replaced. quantization: JSON text, or NULL to leave none. */
int finish_config(const char *source, const struct format *format, const char *quantization, struct buf *out,
		  struct err *err);
/* The quantization_config of a format that has one: settings of every module. NULL with err set. */
char *finish_quantization(struct store *db, const struct job_ref *job, const struct format *format,
			  const struct json *recipe, struct err *err);

/* model.safetensors.index.json of a format into `out`; *files = how many shards it has. */
int finish_index(struct store *db, const struct job_ref *job, const struct format *format, struct buf *out,
		 size_t *files, struct err *err);

/* README.md: the model card. */
int finish_card(const struct json *report, const struct format *format, struct buf *out, struct err *err);

#endif
