-- The first schema. Ids are TEXT, times are whole Unix seconds, structured values are JSON as text.
--
-- `position` gives lists and the queue their order: it rises with every row that is added, so a
-- page never misses or repeats a row while others are being added.

CREATE TABLE files (
    position    INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    bytes       INTEGER NOT NULL CHECK (bytes >= 0),
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER,
    filename    TEXT    NOT NULL,
    purpose     TEXT    NOT NULL
                CHECK (purpose IN ('fine-tune', 'fine-tune-results', 'user_data', 'evals')),
    sha256      TEXT    NOT NULL,
    blob_key    TEXT    NOT NULL UNIQUE,
    verdict     TEXT
);

CREATE INDEX files_by_purpose ON files (purpose, position);

CREATE TABLE jobs (
    position            INTEGER PRIMARY KEY AUTOINCREMENT,
    id                  TEXT    NOT NULL UNIQUE,
    created_at          INTEGER NOT NULL,
    finished_at         INTEGER,
    model               TEXT    NOT NULL,
    fine_tuned_model    TEXT,
    status              TEXT    NOT NULL
                        CHECK (status IN ('validating_files', 'queued', 'running', 'paused',
                                          'succeeded', 'failed', 'cancelled')),
    -- No foreign keys: the files of a job that has ended may be deleted, the job stays.
    training_file       TEXT    NOT NULL,
    validation_file     TEXT,
    result_files        TEXT    NOT NULL,
    trained_tokens      INTEGER,
    hyperparameters     TEXT    NOT NULL,
    resolved            TEXT,
    error               TEXT,
    seed                INTEGER NOT NULL CHECK (seed BETWEEN 0 AND 2147483647),
    suffix              TEXT,
    metadata            TEXT,
    trained_steps       INTEGER NOT NULL CHECK (trained_steps >= 0),
    total_steps         INTEGER,
    estimated_finish    INTEGER,
    attempt             INTEGER NOT NULL CHECK (attempt >= 0),
    cancel_requested_at INTEGER,
    -- Number of events so far; the next one gets the number after it.
    event_count         INTEGER NOT NULL DEFAULT 0,
    -- The claim: who works on the job, which take-over this is, and until when it holds.
    lease_owner         TEXT,
    lease_epoch         INTEGER NOT NULL DEFAULT 0,
    lease_expires_at    INTEGER,

    CHECK ((status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CHECK ((status = 'succeeded') = (fine_tuned_model IS NOT NULL)),
    CHECK ((status = 'failed') = (error IS NOT NULL)),
    CHECK ((status = 'running') = (lease_owner IS NOT NULL)),
    CHECK ((status = 'running') = (lease_expires_at IS NOT NULL)),
    CHECK (status = 'running' OR estimated_finish IS NULL),
    -- A job that waits is cancelled at once: the wish never has to wait with it.
    CHECK (status <> 'queued' OR cancel_requested_at IS NULL)
);

CREATE INDEX jobs_by_status ON jobs (status, position);

CREATE TABLE events (
    id          TEXT    NOT NULL UNIQUE,
    job_id      TEXT    NOT NULL REFERENCES jobs (id),
    sequence    INTEGER NOT NULL CHECK (sequence >= 1),
    created_at  INTEGER NOT NULL,
    level       TEXT    NOT NULL CHECK (level IN ('info', 'warn', 'error')),
    kind        TEXT    NOT NULL CHECK (kind IN ('message', 'metrics')),
    message     TEXT    NOT NULL,
    data        TEXT,
    PRIMARY KEY (job_id, sequence)
);

CREATE TABLE models (
    position             INTEGER PRIMARY KEY AUTOINCREMENT,
    id                   TEXT    NOT NULL UNIQUE,
    created_at           INTEGER NOT NULL,
    base_model           TEXT    NOT NULL,
    job_id               TEXT    NOT NULL REFERENCES jobs (id),
    -- A model's files cannot be deleted before the model.
    adapter_config_file  TEXT    NOT NULL REFERENCES files (id),
    adapter_weights_file TEXT    NOT NULL REFERENCES files (id),
    is_checkpoint        INTEGER NOT NULL CHECK (is_checkpoint IN (0, 1))
);

CREATE INDEX models_by_job ON models (job_id);
CREATE INDEX models_by_config_file ON models (adapter_config_file);
CREATE INDEX models_by_weights_file ON models (adapter_weights_file);

CREATE TABLE checkpoints (
    id           TEXT    NOT NULL UNIQUE,
    job_id       TEXT    NOT NULL REFERENCES jobs (id),
    created_at   INTEGER NOT NULL,
    model_name   TEXT    NOT NULL REFERENCES models (id) ON DELETE CASCADE,
    step         INTEGER NOT NULL CHECK (step >= 1),
    metrics      TEXT    NOT NULL,
    result_files TEXT    NOT NULL,
    PRIMARY KEY (job_id, step)
);

CREATE INDEX checkpoints_by_model ON checkpoints (model_name);
