-- What computes: the device of a worker, the backend of every lease, and how fast each worker is.

CREATE TABLE backends (
	pk       INTEGER PRIMARY KEY,
	backend  TEXT NOT NULL,
	identity TEXT NOT NULL,
	UNIQUE (backend, identity)
) STRICT;
INSERT INTO backends (backend, identity) SELECT DISTINCT backend, identity FROM workers;

ALTER TABLE workers ADD COLUMN device TEXT;            -- JSON; NULL: none
ALTER TABLE workers ADD COLUMN computes INTEGER;       -- backends.pk of its backend and identity
UPDATE workers SET computes = (SELECT b.pk FROM backends b WHERE b.backend = workers.backend AND b.identity = workers.identity);

ALTER TABLE tasks ADD COLUMN computes INTEGER;         -- backends.pk of the last lease
UPDATE tasks SET computes = (SELECT w.computes FROM workers w WHERE w.pk = tasks.worker) WHERE state = 3;

ALTER TABLE attempts ADD COLUMN computes INTEGER;      -- backends.pk
ALTER TABLE attempts ADD COLUMN counted INTEGER NOT NULL DEFAULT 1; -- 0: given back, of no consequence for the task

-- Of the latest tasks of a kind that the worker finished: recent ones weigh more.
CREATE TABLE worker_rates (
	worker  INTEGER NOT NULL REFERENCES workers (pk) ON DELETE CASCADE,
	kind    INTEGER NOT NULL,
	work    REAL NOT NULL,
	seconds REAL NOT NULL,
	PRIMARY KEY (worker, kind)
) STRICT, WITHOUT ROWID;
