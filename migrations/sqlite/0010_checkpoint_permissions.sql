-- Which projects, beside its own, may use a fine-tuned model or checkpoint.
CREATE TABLE checkpoint_permissions (
    position   INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    -- With the model goes what was allowed of it.
    checkpoint TEXT    NOT NULL REFERENCES models (id) ON DELETE CASCADE,
    project_id TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (checkpoint, project_id)
);
