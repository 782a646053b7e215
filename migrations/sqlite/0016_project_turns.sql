-- Whose turn it is: a job of the project that was claimed from longest ago is claimed next. A project without
-- a row has not been claimed from.
CREATE TABLE project_turns (
    project TEXT    NOT NULL PRIMARY KEY,
    turn    INTEGER NOT NULL
) WITHOUT ROWID;
