-- Files that come in parts. Rows of parts go when their upload is completed, cancelled or has expired.
CREATE TABLE uploads (
    id            TEXT    NOT NULL PRIMARY KEY,
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    bytes         INTEGER NOT NULL CHECK (bytes >= 1),
    filename      TEXT    NOT NULL,
    purpose       TEXT    NOT NULL CHECK (purpose IN ('fine-tune', 'user_data', 'evals')),
    -- How long the file is kept, in seconds; for ever when it is null.
    file_lifetime INTEGER,
    status        TEXT    NOT NULL
                  CHECK (status IN ('pending', 'completed', 'cancelled', 'expired')),
    -- What it was completed with and to; the file may be deleted later.
    part_ids      TEXT,
    file_id       TEXT,

    CHECK ((status = 'completed') = (part_ids IS NOT NULL)),
    CHECK ((status = 'completed') = (file_id IS NOT NULL))
);

CREATE INDEX uploads_by_status ON uploads (status, expires_at);

CREATE TABLE upload_parts (
    id         TEXT    NOT NULL PRIMARY KEY,
    upload_id  TEXT    NOT NULL REFERENCES uploads (id),
    created_at INTEGER NOT NULL,
    bytes      INTEGER NOT NULL CHECK (bytes >= 0),
    blob_key   TEXT    NOT NULL UNIQUE
);

CREATE INDEX upload_parts_by_upload ON upload_parts (upload_id);
