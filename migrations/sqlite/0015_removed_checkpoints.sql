-- Checkpoints that are gone, by a client or because later ones superseded them: a trainer that continues from
-- an earlier step announces them again, and they do not come back.
CREATE TABLE removed_checkpoints (
    job_id TEXT    NOT NULL REFERENCES jobs (id),
    step   INTEGER NOT NULL,
    PRIMARY KEY (job_id, step)
) WITHOUT ROWID;

CREATE TRIGGER checkpoint_deleted AFTER DELETE ON checkpoints BEGIN
    INSERT OR IGNORE INTO removed_checkpoints VALUES (old.job_id, old.step);
    INSERT INTO deleted_items VALUES (old.id, 'checkpoints', old.job_id, old.step, unixepoch());
END;
