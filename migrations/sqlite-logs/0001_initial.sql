-- Step logs, in a file of their own: writing them never waits for a checkpoint, nor holds one up.
CREATE TABLE step_logs (
    run BLOB NOT NULL,
    seq INTEGER NOT NULL,
    step TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    at TEXT NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (run, seq)
) STRICT;
