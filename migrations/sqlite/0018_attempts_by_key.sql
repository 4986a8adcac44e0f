-- A checkpoint writes one row into one tree: each more would be one more page with every commit. (Runs are never deleted,
-- so an attempt needs no reference to its own.)
CREATE TABLE attempts_by_key (
    run BLOB NOT NULL,
    step TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    started_at TEXT NOT NULL,
    finished_at TEXT,
    -- The checkpoint that wrote it last: recognises a checkpoint that is sent again.
    changed_at TEXT NOT NULL,
    output TEXT,
    error TEXT,
    resume TEXT,
    wake_at TEXT,
    -- The order in which the attempts of a run began, from 0.
    place INTEGER NOT NULL DEFAULT 0,
    -- What began in the checkpoint that ended this attempt, and has no row of its own until it ends, sleeps or is lost.
    next_step TEXT,
    next_attempt INTEGER,
    next_place INTEGER,
    PRIMARY KEY (run, step, attempt)
) STRICT, WITHOUT ROWID;
INSERT INTO attempts_by_key
SELECT run, step, attempt, state, epoch, started_at, finished_at, changed_at, output, error, resume, wake_at, place,
    next_step, next_attempt, next_place
FROM attempts;
DROP TABLE attempts;
ALTER TABLE attempts_by_key RENAME TO attempts;
