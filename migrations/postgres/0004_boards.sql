-- One message a run at services whose messages can be rewritten: the run's board.
CREATE TABLE refit.boards (
    run uuid NOT NULL,
    notifier text NOT NULL,
    -- Raised whenever the run goes on.
    revision bigint NOT NULL,
    -- When it is brought up to date or tried again; nothing while it is up to date.
    due_at timestamptz,
    -- Where the message is, and the hash of what it says.
    place jsonb,
    shows text,
    attempts bigint NOT NULL DEFAULT 0,
    last_error text,
    PRIMARY KEY (run, notifier)
);
CREATE INDEX boards_due ON refit.boards (due_at) WHERE due_at IS NOT NULL;
