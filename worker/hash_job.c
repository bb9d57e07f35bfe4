#include "worker/hash_job.h"

#include "common/alloc.h"
#include "common/digest.h"

struct hash_job {
	char *path;
	void (*hashed)(void *ctx, const char *sha256, const struct err *err); /* NULL: cancelled */
	void *ctx;
	char sha256[DIGEST_HEX];
	struct err err;
};

static void job_free(struct hash_job *job)
{
	mem_free(job->path);
	mem_free(job);
}

static void work(void *ctx)
{
	struct hash_job *job = ctx;

	digest_file(job->path, job->sha256, NULL, &job->err);
}

static void done(void *ctx)
{
	struct hash_job *job = ctx;

	if (job->hashed)
		job->hashed(job->ctx, job->sha256, &job->err);
	job_free(job);
}

struct hash_job *hash_start(struct loop *loop, const char *path,
			    void (*hashed)(void *ctx, const char *sha256, const struct err *err), void *ctx)
{
	struct hash_job *job = mem_alloc(1, sizeof(*job));

	if (!job)
		return NULL;
	job->path = mem_strdup(path);
	job->hashed = hashed;
	job->ctx = ctx;
	if (job->path && loop_background(loop, work, done, job) == 0)
		return job;
	job_free(job);
	return NULL;
}

void hash_cancel(struct hash_job *job)
{
	if (job)
		job->hashed = NULL;
}
