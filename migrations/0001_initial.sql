-- Everything the coordinator remembers. Append-only: a change of schema is a new file.
-- State, kind and role numbers are those of server/states.h and server/engine.h and never change.

CREATE TABLE meta (
	key   TEXT PRIMARY KEY,
	value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
	subject    TEXT PRIMARY KEY,
	role       INTEGER NOT NULL,
	sha256     TEXT NOT NULL UNIQUE,       -- of the token; the token itself is never stored
	created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A row means: the file is stored, verified and flushed.
CREATE TABLE blobs (
	sha256     TEXT PRIMARY KEY,
	bytes      INTEGER NOT NULL,
	created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE models (
	pk         INTEGER PRIMARY KEY,
	id         TEXT NOT NULL UNIQUE,
	name       TEXT NOT NULL,
	path       TEXT,                       -- NULL: made of uploaded blobs
	digest     TEXT NOT NULL UNIQUE,       -- of path and files: the same folder is the same model
	subject    TEXT NOT NULL,
	created_ms INTEGER NOT NULL,
	bytes      INTEGER NOT NULL,
	config     TEXT NOT NULL,              -- config.json as read
	tensors    TEXT NOT NULL               -- JSON {"<name>":"<dtype>"}
) STRICT;

CREATE TABLE model_files (
	model         INTEGER NOT NULL REFERENCES models (pk) ON DELETE CASCADE,
	name          TEXT NOT NULL,
	role          INTEGER NOT NULL,        -- 1 config, 2 index, 3 shard, 4 carried over
	bytes         INTEGER NOT NULL,
	sha256        TEXT,                    -- of the whole file, when known
	header_sha256 TEXT NOT NULL,
	PRIMARY KEY (model, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX model_files_sha256 ON model_files (sha256);

CREATE TABLE datasets (
	pk         INTEGER PRIMARY KEY,
	id         TEXT NOT NULL UNIQUE,
	name       TEXT NOT NULL,
	sha256     TEXT NOT NULL REFERENCES blobs (sha256),
	bytes      INTEGER NOT NULL,
	format     TEXT NOT NULL,              -- "jsonl" or "text"
	subject    TEXT NOT NULL,
	created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX datasets_sha256 ON datasets (sha256);

-- Narrow: every move of a task changes this row. What does not change is in job_details.
CREATE TABLE jobs (
	pk              INTEGER PRIMARY KEY,
	id              TEXT NOT NULL UNIQUE,
	subject         TEXT NOT NULL,         -- the tenant
	kind            INTEGER NOT NULL,      -- enum recipe_kind
	state           INTEGER NOT NULL,
	change          INTEGER NOT NULL,      -- grows with every visible change
	first_task      INTEGER NOT NULL,      -- tasks.pk first_task .. first_task + task_count - 1
	task_count      INTEGER NOT NULL,
	first_quantize  INTEGER NOT NULL,      -- tasks.pk of quantize(0), quantize(1) ... follow; or 0
	unfinished      INTEGER NOT NULL,      -- tasks that are not DONE
	unfinished_main INTEGER NOT NULL,      -- the same without assemble tasks
	leased          INTEGER NOT NULL,
	created_ms      INTEGER NOT NULL,
	started_ms      INTEGER,
	finished_ms     INTEGER
) STRICT;
CREATE INDEX jobs_state ON jobs (state, pk);
CREATE INDEX jobs_subject ON jobs (subject) WHERE leased > 0;

CREATE TABLE job_details (
	job      INTEGER PRIMARY KEY REFERENCES jobs (pk) ON DELETE CASCADE,
	name     TEXT NOT NULL,
	model    INTEGER REFERENCES models (pk) ON DELETE SET NULL,
	summary  TEXT NOT NULL,                -- of the model, JSON
	recipe   TEXT NOT NULL,                -- canonical JSON
	plan     TEXT NOT NULL,                -- what planning found, JSON
	failure  TEXT,
	failed_task INTEGER,
	report   TEXT                          -- digest of report.json when DONE
) STRICT;
CREATE INDEX job_details_model ON job_details (model);

CREATE TABLE job_datasets (
	job     INTEGER NOT NULL REFERENCES jobs (pk) ON DELETE CASCADE,
	ord     INTEGER NOT NULL,              -- 0 = calibration, then the evaluation texts
	role    TEXT NOT NULL,
	dataset INTEGER REFERENCES datasets (pk) ON DELETE SET NULL,
	name    TEXT NOT NULL,
	sha256  TEXT NOT NULL,
	bytes   INTEGER NOT NULL,
	PRIMARY KEY (job, ord)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_datasets_dataset ON job_datasets (dataset);

CREATE TABLE job_modules (
	job     INTEGER NOT NULL REFERENCES jobs (pk) ON DELETE CASCADE,
	layer   INTEGER NOT NULL,
	ord     INTEGER NOT NULL,
	name    TEXT NOT NULL,
	skip    INTEGER NOT NULL,
	bits    INTEGER NOT NULL,
	group_size INTEGER NOT NULL,
	task    INTEGER NOT NULL,              -- tasks.pk of its quantize task
	loss    REAL,
	energy  REAL,
	result  TEXT,                          -- what the worker reported, JSON
	PRIMARY KEY (job, layer, ord)
) STRICT, WITHOUT ROWID;

CREATE TABLE job_files (
	job    INTEGER NOT NULL REFERENCES jobs (pk) ON DELETE CASCADE,
	path   TEXT NOT NULL,
	sha256 TEXT NOT NULL,
	bytes  INTEGER NOT NULL,
	PRIMARY KEY (job, path)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_files_sha256 ON job_files (sha256);

CREATE TABLE idempotency (
	subject TEXT NOT NULL,
	key     TEXT NOT NULL,
	body    TEXT NOT NULL,                 -- digest of the request body
	job     INTEGER NOT NULL REFERENCES jobs (pk) ON DELETE CASCADE,
	PRIMARY KEY (subject, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_job ON idempotency (job);

CREATE TABLE events (
	job   INTEGER NOT NULL REFERENCES jobs (pk) ON DELETE CASCADE,
	seq   INTEGER NOT NULL,
	at_ms INTEGER NOT NULL,
	kind  TEXT NOT NULL,
	text  TEXT NOT NULL,
	PRIMARY KEY (job, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE workers (
	pk            INTEGER PRIMARY KEY,
	id            TEXT NOT NULL UNIQUE,
	subject       TEXT NOT NULL,
	name          TEXT NOT NULL,
	backend       TEXT NOT NULL,
	identity      TEXT NOT NULL,
	version       TEXT NOT NULL,
	threads       INTEGER NOT NULL,
	memory_bytes  INTEGER NOT NULL,
	sees_paths    INTEGER NOT NULL,
	draining      INTEGER NOT NULL,
	registered_ms INTEGER NOT NULL,
	last_seen_ms  INTEGER NOT NULL,
	done          INTEGER NOT NULL,
	failed        INTEGER NOT NULL,
	UNIQUE (subject, name)
) STRICT;
CREATE INDEX workers_seen ON workers (last_seen_ms);

-- Narrow: scanned for counts, changed by every lease and heartbeat.
CREATE TABLE tasks (
	pk          INTEGER PRIMARY KEY,
	job         INTEGER NOT NULL REFERENCES jobs (pk),
	kind        INTEGER NOT NULL,
	state       INTEGER NOT NULL,
	rank        INTEGER NOT NULL,          -- order of preference, smallest first
	layer       INTEGER NOT NULL,          -- -1: none
	shard       INTEGER NOT NULL,          -- -1: none
	epoch       INTEGER NOT NULL,
	attempts    INTEGER NOT NULL,
	deps_left   INTEGER NOT NULL,          -- producers that are not DONE
	work        INTEGER NOT NULL,          -- estimate, million operations
	worker      INTEGER,                   -- holder, or who finished it
	deadline_ms INTEGER,
	accepted    INTEGER NOT NULL,
	progress    REAL NOT NULL,
	leased_ms   INTEGER,
	wall_ms     INTEGER,
	note        TEXT
) STRICT;
CREATE INDEX tasks_job ON tasks (job);
CREATE INDEX tasks_ready ON tasks (rank, job, pk) WHERE state = 2;
CREATE INDEX tasks_deadline ON tasks (deadline_ms) WHERE state = 3;
CREATE INDEX tasks_held ON tasks (worker) WHERE state = 3;

CREATE TABLE task_specs (
	task INTEGER PRIMARY KEY REFERENCES tasks (pk) ON DELETE CASCADE,
	spec TEXT NOT NULL
) STRICT;

-- Either an output of another task or a blob.
CREATE TABLE task_inputs (
	task      INTEGER NOT NULL REFERENCES tasks (pk) ON DELETE CASCADE,
	ord       INTEGER NOT NULL,
	name      TEXT NOT NULL,
	from_task INTEGER,
	output    TEXT,
	sha256    TEXT,
	bytes     INTEGER,
	PRIMARY KEY (task, ord)
) STRICT, WITHOUT ROWID;
CREATE INDEX task_inputs_from ON task_inputs (from_task, task) WHERE from_task IS NOT NULL;

-- Made by `complete`, removed when the last reader is done.
CREATE TABLE task_outputs (
	task    INTEGER NOT NULL REFERENCES tasks (pk) ON DELETE CASCADE,
	name    TEXT NOT NULL,
	sha256  TEXT NOT NULL,
	bytes   INTEGER NOT NULL,
	readers INTEGER NOT NULL,              -- tasks that still need it
	PRIMARY KEY (task, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX task_outputs_sha256 ON task_outputs (sha256);

CREATE TABLE task_results (
	task   INTEGER PRIMARY KEY REFERENCES tasks (pk) ON DELETE CASCADE,
	digest TEXT NOT NULL,                  -- of outputs and result: tells a repeated complete
	result TEXT NOT NULL,
	stats  TEXT NOT NULL,
	worker TEXT NOT NULL                   -- its name
) STRICT;

CREATE TABLE attempts (
	task        INTEGER NOT NULL REFERENCES tasks (pk) ON DELETE CASCADE,
	epoch       INTEGER NOT NULL,
	worker      INTEGER NOT NULL,
	worker_name TEXT NOT NULL,
	ended_ms    INTEGER NOT NULL,
	error       TEXT NOT NULL,
	detail      TEXT NOT NULL,
	log         TEXT NOT NULL,
	PRIMARY KEY (task, epoch)
) STRICT, WITHOUT ROWID;
