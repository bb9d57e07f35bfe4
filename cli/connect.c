#include "cli/connect.h"

#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"

enum { TOKEN_FILE_MAX = 4096 };

enum exit_status failed_status(const struct err *err)
{
	return err->code == ERR_CANCELLED && strcmp(err->text, "interrupted") == 0 ? EXIT_INTERRUPTED
										   : EXIT_FAILED;
}

static const char *option_or_env(const struct args *args, const char *option, const char *variable)
{
	const char *value = args_get(args, option, NULL);

	if (!value)
		value = getenv(variable);
	return value && *value ? value : NULL;
}

/* The first line of the file without white space around it. */
static char *read_token_file(const char *path, struct err *err)
{
	size_t len = 0, begin;
	char *text = file_read_all(path, TOKEN_FILE_MAX, &len, err), *token;

	if (!text) {
		err_prefix(err, "--token-file");
		return NULL;
	}
	begin = strspn(text, " \t\r\n");
	token = mem_strndup(text + begin, strcspn(text + begin, " \t\r\n"));
	mem_free(text);
	if (!token)
		err_set_nomem(err, "the token");
	return token;
}

struct client *connect_from_args(const struct args *args, enum exit_status *status, struct err *err)
{
	const char *server = option_or_env(args, "server", "QUARRY_SERVER");
	const char *token_file = option_or_env(args, "token-file", "QUARRY_TOKEN_FILE");
	char *token = NULL;
	struct client *client = NULL;

	*status = EXIT_USAGE;
	if (!server) {
		err_set(err, ERR_INVALID, "no coordinator named; give --server URL or set QUARRY_SERVER");
		return NULL;
	}
	if (token_file && !(token = read_token_file(token_file, err)))
		return NULL;
	client = client_new(server, token, err);
	if (!client && token && err->text[0] && strstr(err->text, "token"))
		err_prefix(err, "%s", token_file);
	*status = client ? EXIT_OK : err->code == ERR_NOMEM ? EXIT_FAILED : EXIT_USAGE;
	mem_free(token);
	return client;
}

int job_argument(const struct args *args, char id[SERVER_ID], struct err *err)
{
	return copy_id(args->positional[0], "job", id, err);
}
