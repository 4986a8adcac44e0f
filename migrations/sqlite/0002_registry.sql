-- Where an adopted version's files are in its store; nothing for <model>/<version>.
ALTER TABLE versions ADD COLUMN place TEXT;

CREATE TABLE version_pins (
    model TEXT NOT NULL,
    name TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (model, name)
) STRICT, WITHOUT ROWID;

-- What became of versions; changes of releases are in release_audit.
CREATE TABLE version_audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    name TEXT NOT NULL,
    action TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    at TEXT NOT NULL
) STRICT;
CREATE INDEX version_audit_model ON version_audit (model, seq);
