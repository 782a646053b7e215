-- Where deleted items stood in their lists, for a day: who deletes while going through pages asks for
-- what comes after an item that is gone.
CREATE TABLE deleted_items (
    id         TEXT    NOT NULL PRIMARY KEY,
    -- The table that it was in.
    list       TEXT    NOT NULL,
    -- The project or the model whose list it was in.
    owner      TEXT    NOT NULL,
    position   INTEGER NOT NULL,
    deleted_at INTEGER NOT NULL
);

CREATE INDEX deleted_items_by_time ON deleted_items (deleted_at);

CREATE TRIGGER file_deleted AFTER DELETE ON files BEGIN
    INSERT INTO deleted_items VALUES (old.id, 'files', old.project, old.position, unixepoch());
END;

CREATE TRIGGER checkpoint_permission_deleted AFTER DELETE ON checkpoint_permissions BEGIN
    INSERT INTO deleted_items
    VALUES (old.id, 'checkpoint_permissions', old.checkpoint, old.position, unixepoch());
END;

CREATE TRIGGER webhook_endpoint_deleted AFTER DELETE ON webhook_endpoints BEGIN
    INSERT INTO deleted_items
    VALUES (old.id, 'webhook_endpoints', old.project, old.position, unixepoch());
END;

CREATE TRIGGER item_deleted AFTER INSERT ON deleted_items BEGIN
    DELETE FROM deleted_items WHERE deleted_at < unixepoch() - 86400;
END;
