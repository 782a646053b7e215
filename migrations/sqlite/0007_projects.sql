-- Who is let in, and to which project. Everything that was there before is in the project `default`.

CREATE TABLE api_keys (
    position   INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    project    TEXT    NOT NULL,
    name       TEXT,
    -- SHA-256 of the key, which itself is kept nowhere.
    digest     TEXT    NOT NULL UNIQUE,
    last_four  TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
);

ALTER TABLE files ADD COLUMN project TEXT NOT NULL DEFAULT 'default';
ALTER TABLE jobs ADD COLUMN project TEXT NOT NULL DEFAULT 'default';
ALTER TABLE models ADD COLUMN project TEXT NOT NULL DEFAULT 'default';
ALTER TABLE uploads ADD COLUMN project TEXT NOT NULL DEFAULT 'default';

CREATE INDEX files_by_project ON files (project, position);
CREATE INDEX jobs_by_project ON jobs (project, position);
CREATE INDEX models_by_project ON models (project, position);

-- Names of requests are each project's own.
CREATE TABLE project_request_keys (
    project    TEXT    NOT NULL DEFAULT 'default',
    key        TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    job_id     TEXT    NOT NULL REFERENCES jobs (id),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (project, key)
);

INSERT INTO project_request_keys (project, key, digest, job_id, created_at)
SELECT 'default', key, digest, job_id, created_at FROM request_keys;
DROP TABLE request_keys;
ALTER TABLE project_request_keys RENAME TO request_keys;
