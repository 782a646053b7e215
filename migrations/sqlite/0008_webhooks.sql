-- Who is told when a job ends, and what has become of telling them.

CREATE TABLE webhook_endpoints (
    position              INTEGER PRIMARY KEY AUTOINCREMENT,
    id                    TEXT    NOT NULL UNIQUE,
    project               TEXT    NOT NULL DEFAULT 'default',
    created_at            INTEGER NOT NULL,
    updated_at            INTEGER NOT NULL,
    name                  TEXT    NOT NULL,
    url                   TEXT    NOT NULL,
    event_types           TEXT    NOT NULL,
    -- Legible, because deliveries are signed with it.
    secret                TEXT    NOT NULL,
    -- The secret before the last rotation, for as long as it signs beside the new one.
    previous_secret       TEXT,
    previous_secret_until INTEGER,

    CHECK ((previous_secret IS NULL) = (previous_secret_until IS NULL))
);

CREATE INDEX webhook_endpoints_by_project ON webhook_endpoints (project, position);

-- The outbox: rows are written in the transaction that ends a job, one for each endpoint that asks for
-- the event, and stay until they are delivered or given up, and as a log for a while after that.
CREATE TABLE webhook_deliveries (
    position        INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT    NOT NULL UNIQUE,
    endpoint_id     TEXT    NOT NULL REFERENCES webhook_endpoints (id) ON DELETE CASCADE,
    event_id        TEXT    NOT NULL,
    event_type      TEXT    NOT NULL,
    -- What the event is about: the id of a job.
    subject_id      TEXT    NOT NULL,
    created_at      INTEGER NOT NULL,
    status          TEXT    NOT NULL CHECK (status IN ('pending', 'delivered', 'failed')),
    attempts        TEXT    NOT NULL,
    next_attempt_at INTEGER,

    CHECK ((status = 'pending') = (next_attempt_at IS NOT NULL))
);

CREATE INDEX webhook_deliveries_by_endpoint ON webhook_deliveries (endpoint_id, position);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (next_attempt_at)
    WHERE next_attempt_at IS NOT NULL;
