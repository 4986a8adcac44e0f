-- Windows without promotions. One that was lifted stays, with who did it.
CREATE TABLE freezes (
    id BLOB PRIMARY KEY,
    -- Every model when absent.
    model TEXT,
    begins_at TEXT NOT NULL,
    -- When it is over by itself; absent: when it is lifted.
    ends_at TEXT,
    reason TEXT NOT NULL,
    made_by TEXT NOT NULL,
    made_at TEXT NOT NULL,
    lifted_by TEXT,
    lifted_at TEXT
) STRICT, WITHOUT ROWID;
