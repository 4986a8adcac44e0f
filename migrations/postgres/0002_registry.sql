-- Where an adopted version's files are in its store; nothing for <model>/<version>.
ALTER TABLE refit.versions ADD COLUMN place text;

CREATE TABLE refit.version_pins (
    model text NOT NULL,
    name text NOT NULL,
    actor jsonb NOT NULL,
    reason text NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (model, name)
);

-- What became of versions; changes of releases are in release_audit.
CREATE TABLE refit.version_audit (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model text NOT NULL,
    name text NOT NULL,
    action text NOT NULL,
    actor jsonb NOT NULL,
    reason text NOT NULL,
    at timestamptz NOT NULL
);
CREATE INDEX version_audit_model ON refit.version_audit (model, seq);
