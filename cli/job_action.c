#include "cli/job_action.h"

#include <stdio.h>

#include "cli/connect.h"
#include "cli/text.h"

enum exit_status job_action(const struct args *args, const char *action, struct err *err)
{
	char id[SERVER_ID], path[SERVER_ID + 32], safe[64];
	enum exit_status status;
	struct client *c;
	struct json *reply;

	if (job_argument(args, id, err) != 0)
		return EXIT_USAGE;
	c = connect_from_args(args, &status, err);
	if (!c)
		return status;
	snprintf(path, sizeof(path), "/v1/jobs/%s/%s", id, action);
	reply = client_post(c, path, NULL, err);
	client_free(c);
	if (!reply)
		return failed_status(err);
	printf("job %s is %s\n", id, text_safe(json_get_string(reply, "state", "?"), safe, sizeof(safe)));
	json_free(reply);
	return EXIT_OK;
}
