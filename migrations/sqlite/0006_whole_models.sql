-- Models of their own beside adapters: a whole model has more files than its configuration and weights.

ALTER TABLE models RENAME COLUMN adapter_config_file TO config_file;
ALTER TABLE models RENAME COLUMN adapter_weights_file TO weights_file;
ALTER TABLE models ADD COLUMN is_whole INTEGER NOT NULL DEFAULT 0 CHECK (is_whole IN (0, 1));

CREATE TABLE model_files (
    model_name TEXT    NOT NULL REFERENCES models (id) ON DELETE CASCADE,
    position   INTEGER NOT NULL,
    -- A model's files cannot be deleted before the model.
    file_id    TEXT    NOT NULL REFERENCES files (id),
    PRIMARY KEY (model_name, position)
);

CREATE INDEX model_files_by_file ON model_files (file_id);
