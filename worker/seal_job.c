#include "worker/seal_job.h"

#include "common/alloc.h"

struct seal_job {
	const char *work;
	struct spool_entry *entry;
	struct json *result, *stats;
	void (*sealed)(void *ctx, struct spool_entry *entry, const struct err *err); /* NULL: abandoned */
	void *ctx;
	bool drop;
	struct err err;
};

static void seal(void *ctx)
{
	struct seal_job *job = ctx;

	spool_seal(job->entry, job->work, job->result, job->stats, &job->err);
}

static void done(void *ctx)
{
	struct seal_job *job = ctx;

	json_free(job->result);
	json_free(job->stats);
	if (job->sealed) {
		job->sealed(job->ctx, job->entry, &job->err);
	} else {
		if (job->drop)
			spool_drop(job->entry);
		spool_entry_free(job->entry);
	}
	mem_free(job);
}

struct seal_job *seal_start(struct loop *loop, const char *work, struct spool_entry *entry, struct json *result,
			    struct json *stats,
			    void (*sealed)(void *ctx, struct spool_entry *entry, const struct err *err), void *ctx)
{
	struct seal_job *job = mem_alloc(1, sizeof(*job));

	if (!job)
		return NULL;
	*job = (struct seal_job){ .work = work, .entry = entry, .result = result, .stats = stats, .sealed = sealed,
				  .ctx = ctx };
	if (loop_background(loop, seal, done, job) == 0)
		return job;
	mem_free(job);
	return NULL;
}

void seal_abandon(struct seal_job *job, bool drop)
{
	if (!job)
		return;
	job->sealed = NULL;
	job->drop = drop;
}
