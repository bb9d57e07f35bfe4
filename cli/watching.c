#include "cli/watching.h"

#include <stdio.h>

#include "cli/follow.h"
#include "cli/interrupt.h"
#include "cli/text.h"

enum { REMOTE_PATIENCE_MS = 300000 };

int watch_to_end(struct client *c, const char *job, struct err *err)
{
	struct follow follow = { .client = c, .job = job, .patience_ms = REMOTE_PATIENCE_MS };
	struct json *last = NULL;
	int rc = follow_job(&follow, &last, err);

	if (rc == 0)
		rc = job_outcome(last, err);
	if (rc == 0)
		printf("job %s is DONE; 'quarry fetch %s -o OUT_DIR' copies the result\n", job, job);
	else if (last)
		print_attempts(last);
	else if (interrupted())
		print_note("the job goes on; 'quarry watch %s' follows it again", job);
	json_free(last);
	return rc;
}
