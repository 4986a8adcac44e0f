-- Evidence that refit fetches: how far it was read.
CREATE TABLE refit.evidence_pulls (
    model text NOT NULL,
    source text NOT NULL,
    revision bigint NOT NULL,
    state jsonb NOT NULL,
    PRIMARY KEY (model, source)
);

-- Requests that are read again, and counted once.
CREATE TABLE refit.evidence_seen (
    model text NOT NULL,
    source text NOT NULL,
    request_id text NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (model, source, request_id)
);
CREATE INDEX evidence_seen_at ON refit.evidence_seen (model, source, at);
