-- One message a run at services whose messages can be rewritten: the run's board.
CREATE TABLE boards (
    run BLOB NOT NULL,
    notifier TEXT NOT NULL,
    -- Raised whenever the run goes on.
    revision INTEGER NOT NULL,
    -- When it is brought up to date or tried again; nothing while it is up to date.
    due_at TEXT,
    -- Where the message is, and the hash of what it says.
    place TEXT,
    shows TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    last_error TEXT,
    PRIMARY KEY (run, notifier)
) STRICT;
CREATE INDEX boards_due ON boards (due_at) WHERE due_at IS NOT NULL;
