/* Schema versions.
 *
 * Invariants:
 *  1. user_version is the number of the last migration applied; numbers are 1, 2, 3 ... without gaps.
 *  2. A migration and its number become visible together or not at all.
 * Files are never edited after a release: a change is a new file.
 */
#include "server/migrate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sqlite3.h>

#include "common/log.h"
#include "server/embedded.h"

static const char migrations_prefix[] = "migrations/";

/* Number of an embedded migration, or 0 when the file is something else. */
static long migration_number(const struct embedded_file *f)
{
	size_t len = sizeof(migrations_prefix) - 1;

	return strncmp(f->path, migrations_prefix, len) == 0 ? strtol(f->path + len, NULL, 10) : 0;
}

static const struct embedded_file *find_migration(long number)
{
	for (const struct embedded_file *f = embedded_files; f->path; f++)
		if (migration_number(f) == number)
			return f;
	return NULL;
}

static int read_version(sqlite3 *db, long *version)
{
	sqlite3_stmt *stmt = NULL;
	int rc = sqlite3_prepare_v2(db, "PRAGMA user_version", -1, &stmt, NULL);

	if (rc == SQLITE_OK && (rc = sqlite3_step(stmt)) == SQLITE_ROW) {
		*version = (long)sqlite3_column_int64(stmt, 0);
		rc = SQLITE_OK;
	}
	sqlite3_finalize(stmt);
	return rc;
}

static int apply(sqlite3 *db, const struct embedded_file *f, long number)
{
	char version[48];
	int rc;

	snprintf(version, sizeof(version), "PRAGMA user_version = %ld", number);
	rc = sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
	if (rc == SQLITE_OK)
		rc = sqlite3_exec(db, (const char *)f->bytes, NULL, NULL, NULL);
	if (rc == SQLITE_OK)
		rc = sqlite3_exec(db, version, NULL, NULL, NULL);
	if (rc == SQLITE_OK)
		rc = sqlite3_exec(db, "COMMIT", NULL, NULL, NULL);
	return rc;
}

int migrate(sqlite3 *db, const char *path, struct err *err)
{
	const struct embedded_file *f;
	long version = 0;

	if (read_version(db, &version) != SQLITE_OK)
		return err_set(err, ERR_IO, "%s is not a readable database: %s", path, sqlite3_errmsg(db));
	if (version != 0 && !find_migration(version))
		return err_set(err, ERR_UNSUPPORTED,
			       "%s has schema version %ld, made by a newer quarry-server; use that version or another data folder",
			       path, version);
	while ((f = find_migration(version + 1))) {
		version++;
		if (apply(db, f, version) != SQLITE_OK) {
			err_set(err, ERR_IO, "cannot bring %s to schema version %ld (%s): %s", path, version,
				f->path, sqlite3_errmsg(db));
			sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
			return -1;
		}
		log_info("database: schema version %ld (%s)", version, f->path);
	}
	if (version == 0)
		return err_set(err, ERR_INTERNAL, "this program carries no migrations; build it again");
	return 0;
}
