/* upload.h - local files as blobs, data sets and models of a coordinator.
 *
 * Uploads continue where they stopped: the server says which parts it has (docs/protocol.md). What is
 * stored already is not sent.
 */
#ifndef QUARRY_CLI_UPLOAD_H
#define QUARRY_CLI_UPLOAD_H

#include "cli/client.h"
#include "common/digest.h"
#include "common/err.h"

/* Stores a file's bytes; its digest in `sha256`. Shows progress for large files. */
int upload_file(struct client *c, const char *path, char sha256[DIGEST_HEX], struct err *err);

enum { SERVER_ID = 128 };
/* Copies an id after a look at its form (it goes into URLs): letters, digits, '_' and '-'. */
int copy_id(const char *text, const char *what, char id[SERVER_ID], struct err *err);

/* A text file (.jsonl or plain) as a data set: its id. An empty file is refused. */
int upload_dataset(struct client *c, const char *path, char id[SERVER_ID], struct err *err);
/* Every file of a checkpoint folder, then the model. `problems` (owned by the caller, may be set to NULL)
 * gets what the server refused. */
int upload_model(struct client *c, const char *dir, const char *name, char id[SERVER_ID],
		 struct json **problems, struct err *err);
/* A folder the server itself can read. */
int register_model_path(struct client *c, const char *path, const char *name, char id[SERVER_ID],
			struct json **problems, struct err *err);
/* The last component of a path, as a name for people; `otherwise` when there is none. */
void name_of_path(const char *path, const char *otherwise, char *out, size_t cap);

#endif
