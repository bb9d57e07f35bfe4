/* place.h - folders that appear whole or not at all, and folders that are gone afterwards.
 *
 * A place is made under a temporary name beside its own and renamed at the end. What was made for it and is not kept is
 * removed: the temporary folder, and parents that did not exist before.
 */
#ifndef QUARRY_CLI_PLACE_H
#define QUARRY_CLI_PLACE_H

#include <limits.h>

#include "common/err.h"

struct place {
	char final[PATH_MAX];
	char staging[PATH_MAX];         /* "" when there is nothing to remove */
	char kept[PATH_MAX];            /* the deepest parent that was there before */
};

/* `path` must not exist, or be an empty folder. */
int place_make(struct place *p, const char *path, struct err *err);
/* The folder takes its name. */
int place_keep(struct place *p, struct err *err);
/* Removes what place_make() made, unless it was kept. */
void place_drop(struct place *p);

/* A new folder for data that is not to stay: in $TMPDIR, else /var/tmp (meant for large files), else /tmp. */
int temporary_folder(char out[PATH_MAX], struct err *err);

#endif
