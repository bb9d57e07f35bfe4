/* A few read-only connections, each with a snapshot for one request at a time; opened when first needed. */
#include "server/engine_internal.h"

static struct store *take_free(struct engine *e)
{
	while (e->reader_count == 0 && e->readers_open >= ENGINE_READERS)
		pthread_cond_wait(&e->reader_freed, &e->reader_lock);
	if (e->reader_count > 0)
		return e->readers[--e->reader_count];
	e->readers_open++; /* room for one more, which the caller opens */
	return NULL;
}

static void put_back(struct engine *e, struct store *db)
{
	pthread_mutex_lock(&e->reader_lock);
	if (db)
		e->readers[e->reader_count++] = db;
	else
		e->readers_open--;
	pthread_cond_signal(&e->reader_freed);
	pthread_mutex_unlock(&e->reader_lock);
}

struct store *reader_take(struct engine *e, struct err *err)
{
	struct store *db;

	pthread_mutex_lock(&e->reader_lock);
	db = take_free(e);
	pthread_mutex_unlock(&e->reader_lock);
	if (!db)
		db = store_open_reader(e->db_path, err);
	if (db && store_begin_read(db, err) == 0)
		return db;
	put_back(e, db);
	return NULL;
}

void reader_give(struct engine *e, struct store *db)
{
	store_rollback(db); /* nothing was written */
	put_back(e, db);
}

void readers_close(struct engine *e)
{
	while (e->reader_count > 0)
		store_close(e->readers[--e->reader_count]);
	e->readers_open = 0;
}
