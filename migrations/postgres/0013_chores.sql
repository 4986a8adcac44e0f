-- What some process does now and then, and when it is due next: taken by compare-and-set.
CREATE TABLE refit.chores (
    name text PRIMARY KEY,
    due_at timestamptz NOT NULL
);

CREATE INDEX evidence_batches_at ON refit.evidence_batches (at);
