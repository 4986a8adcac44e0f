-- Windows without promotions. One that was lifted stays, with who did it.
CREATE TABLE refit.freezes (
    id uuid PRIMARY KEY,
    -- Every model when absent.
    model text,
    begins_at timestamptz NOT NULL,
    -- When it is over by itself; absent: when it is lifted.
    ends_at timestamptz,
    reason text NOT NULL,
    made_by text NOT NULL,
    made_at timestamptz NOT NULL,
    lifted_by text,
    lifted_at timestamptz
);
