-- Evidence that refit fetches: how far it was read.
CREATE TABLE evidence_pulls (
    model TEXT NOT NULL,
    source TEXT NOT NULL,
    revision INTEGER NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (model, source)
) STRICT, WITHOUT ROWID;

-- Requests that are read again, and counted once.
CREATE TABLE evidence_seen (
    model TEXT NOT NULL,
    source TEXT NOT NULL,
    request_id TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (model, source, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX evidence_seen_at ON evidence_seen (model, source, at);
