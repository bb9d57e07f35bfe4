/* SQL about connections and tokens. Parameters and columns: store_sql.h. */
#include "server/store_sql.h"

#include <stddef.h>

const struct sql_text store_sql_base[] = {
	{ SQL_BEGIN,
	  "BEGIN IMMEDIATE" },
	{ SQL_BEGIN_READ,
	  "BEGIN" },
	{ SQL_COMMIT,
	  "COMMIT" },
	{ SQL_ROLLBACK,
	  "ROLLBACK" },
	{ SQL_SAVEPOINT,
	  "SAVEPOINT one" },
	{ SQL_RELEASE,
	  "RELEASE one" },
	{ SQL_ROLLBACK_TO,
	  "ROLLBACK TO one" },
	{ SQL_META_SET,
	  "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2" },
	{ SQL_TOKEN_ADD,
	  "INSERT INTO tokens (subject, role, sha256, created_ms) VALUES (?1, ?2, ?3, ?4) ON CONFLICT "
	  "DO NOTHING" },
	{ SQL_TOKEN_COUNT,
	  "SELECT count(*) FROM tokens" },
	{ SQL_TOKEN_LIST,
	  "SELECT subject, role, sha256 FROM tokens" },
	{ SQL_COUNT, NULL },
};
