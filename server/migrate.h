/* migrate.h - brings a database to the newest schema, or refuses a newer one. */
#ifndef QUARRY_SERVER_MIGRATE_H
#define QUARRY_SERVER_MIGRATE_H

#include "common/err.h"

struct sqlite3;

/* Applies the embedded migrations/NNNN_name.sql that the database lacks, each in one transaction that
 * also sets user_version to NNNN. A user_version above the newest known is ERR_UNSUPPORTED. */
int migrate(struct sqlite3 *db, const char *path, struct err *err);

#endif
