/* finish_report.h - what finish_report.c and finish_inputs.c share. */
#ifndef QUARRY_SERVER_FINISH_REPORT_H
#define QUARRY_SERVER_FINISH_REPORT_H

#include "server/finish.h"

struct report {
	struct store *db;
	const struct job_ref *job;
	const struct finish_outputs *outputs;
	struct json *body;
	struct err *err;
};

static inline int64_t report_last_task(const struct job_ref *job)
{
	return job->first_task + job->task_count - 1;
}

/* Takes `value`; NULL is a failure. */
int report_add(struct report *r, const char *key, struct json *value);
/* "model", "recipe", "datasets", "warnings", "shards". */
int report_add_inputs(struct report *r);

#endif
