-- The wish to pause a job. A job that waits is paused at once, so only a running one holds the wish,
-- until its executor has heard it or the job has ended.
ALTER TABLE jobs ADD COLUMN pause_requested_at INTEGER
    CHECK (status = 'running' OR pause_requested_at IS NULL);
