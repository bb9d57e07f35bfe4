-- The newest checkpoint of a task that is not over; the model that an evaluate job compares with.

CREATE TABLE task_checkpoints (
	task   INTEGER PRIMARY KEY REFERENCES tasks (pk) ON DELETE CASCADE,
	sha256 TEXT NOT NULL,
	bytes  INTEGER NOT NULL
) STRICT;
CREATE INDEX task_checkpoints_sha256 ON task_checkpoints (sha256);

ALTER TABLE job_details ADD COLUMN reference INTEGER REFERENCES models (pk) ON DELETE SET NULL;
CREATE INDEX job_details_reference ON job_details (reference);
