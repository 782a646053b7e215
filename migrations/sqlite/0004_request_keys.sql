-- The names that clients gave to their requests (Idempotency-Key), and the job that each one made. A
-- name is kept as long as its job.
CREATE TABLE request_keys (
    key        TEXT    NOT NULL PRIMARY KEY,
    digest     TEXT    NOT NULL,
    job_id     TEXT    NOT NULL REFERENCES jobs (id),
    created_at INTEGER NOT NULL
);
