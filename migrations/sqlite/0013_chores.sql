-- What some process does now and then, and when it is due next: taken by compare-and-set.
CREATE TABLE chores (
    name TEXT PRIMARY KEY,
    due_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX evidence_batches_at ON evidence_batches (at);
