/* stored.h - checkpoints that a command line names: where they lie, opened and looked through with progress. */
#ifndef QUARRY_CLI_STORED_H
#define QUARRY_CLI_STORED_H

#include <limits.h>

#include "cli/advance.h"
#include "formats/stored_folder.h"

/* Whether a path is a checkpoint folder or a file. */
bool stored_is_checkpoint(const char *path);
/* `path`, or its subfolder "packed" when it is the result of a job. */
int stored_place(const char *path, char out[PATH_MAX], struct err *err);
/* Opens; on failure prints every sentence but the first, which is in err. */
int stored_open(struct stored_folder *f, const char *path, struct err *err);
/* Opens and scans: a checkpoint that has a fault is not opened. */
int stored_open_whole(struct stored_folder *f, const char *path, struct err *err);
/* Prints the sentences after the first, each as an error; empties the list. */
void print_other_problems(struct problems *p);
/* Whether the checkpoint brings such a file ("tokenizer.json"). */
bool stored_has_text(struct stored_folder *f, const char *file);
/* report.json of the job, beside the folder of the format: the caller's, NULL when there is none that can be read. -1 when the
 * machine fails. */
struct json;
int stored_report(const struct stored_folder *f, struct json **out, struct err *err);
/* Whether its perplexity is that of these weights: the files of this format have the bytes that it says, and the tables are to be
 * written with the bits of the job. */
bool stored_reported(const struct stored_folder *f, const struct json *report);
/* The model's name for people, from the path: "fable-tiny", of .../fable-tiny/packed too. */
void stored_name(const struct stored_folder *f, char *out, size_t cap);

#endif
