-- What a check of readiness writes: whether a database takes writes is only known by writing.
CREATE TABLE write_checks (
    id         INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    checked_at INTEGER NOT NULL
);
