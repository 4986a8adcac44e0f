-- Everything of refit is in this schema; the queue's tables are in `apalis`.
CREATE TABLE refit.instance (
    singleton bigint PRIMARY KEY CHECK (singleton = 1),
    id uuid NOT NULL
);

CREATE TABLE refit.events (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    data jsonb NOT NULL,
    source text NOT NULL,
    dedup_key text UNIQUE,
    received_at timestamptz NOT NULL
);

-- What a checkpoint changes; what never changes is in run_docs, so that a checkpoint does not rewrite it.
CREATE TABLE refit.runs (
    id uuid PRIMARY KEY,
    workflow text NOT NULL,
    model text NOT NULL,
    event_id uuid NOT NULL,
    event_name text NOT NULL,
    status text NOT NULL,
    outcome text,
    reason text,
    epoch bigint NOT NULL,
    crashes bigint NOT NULL,
    -- Whether the last holder left a checkpoint, or gave the run back.
    progressed boolean NOT NULL,
    cancel jsonb,
    committed boolean NOT NULL,
    concurrency_key text NOT NULL,
    dedup_key text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL,
    finished_at timestamptz,
    lease_owner uuid,
    lease_until timestamptz,
    -- When it is due by time alone.
    wake_at timestamptz,
    -- When somebody pushes a wake-up: at wake_at, and later again in case it was lost.
    poke_at timestamptz,
    signal_seq bigint NOT NULL DEFAULT 0,
    signal_seen bigint NOT NULL DEFAULT 0
    -- Room on each page, so that a checkpoint touches no index.
) WITH (fillfactor = 70);
CREATE INDEX runs_workflow ON refit.runs (workflow, id);
CREATE INDEX runs_model ON refit.runs (model, id);
CREATE INDEX runs_status ON refit.runs (status, id);
CREATE INDEX runs_event ON refit.runs (event_id);
CREATE INDEX runs_poke ON refit.runs (poke_at) WHERE poke_at IS NOT NULL;
CREATE INDEX runs_leased ON refit.runs (lease_owner) WHERE lease_owner IS NOT NULL;
CREATE INDEX runs_queued ON refit.runs (concurrency_key, id) WHERE status = 'queued';

CREATE TABLE refit.run_docs (
    run uuid PRIMARY KEY REFERENCES refit.runs (id) ON DELETE CASCADE,
    definition jsonb NOT NULL,
    cause jsonb NOT NULL
);

CREATE TABLE refit.attempts (
    -- Orders the attempts of a run, which are few: no index of its own, which each checkpoint would pay for.
    seq bigint GENERATED ALWAYS AS IDENTITY,
    run uuid NOT NULL REFERENCES refit.runs (id) ON DELETE CASCADE,
    step text NOT NULL,
    attempt bigint NOT NULL,
    state text NOT NULL,
    epoch bigint NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    -- The checkpoint that wrote it last: recognises a checkpoint that is sent again.
    changed_at timestamptz NOT NULL,
    output jsonb,
    error jsonb,
    resume jsonb,
    wake_at timestamptz,
    PRIMARY KEY (run, step, attempt)
);

CREATE TABLE refit.intents (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run uuid NOT NULL REFERENCES refit.runs (id) ON DELETE CASCADE,
    step text NOT NULL,
    key text NOT NULL UNIQUE,
    detail jsonb NOT NULL,
    undo jsonb,
    result jsonb,
    state text NOT NULL
);
CREATE INDEX intents_run ON refit.intents (run, seq);

CREATE TABLE refit.signals (
    run uuid NOT NULL REFERENCES refit.runs (id) ON DELETE CASCADE,
    id bigint NOT NULL,
    kind jsonb NOT NULL,
    actor text NOT NULL,
    reason text,
    at timestamptz NOT NULL,
    PRIMARY KEY (run, id)
);

CREATE TABLE refit.concurrency (
    key text PRIMARY KEY,
    run uuid NOT NULL
);

CREATE TABLE refit.processes (
    id uuid PRIMARY KEY,
    labels jsonb NOT NULL,
    -- The directory its lock file is in, as seen on one machine.
    machine text,
    -- The session-level advisory lock it holds.
    lock_key bigint NOT NULL,
    registered_at timestamptz NOT NULL
);

CREATE TABLE refit.schedules (
    id text PRIMARY KEY,
    workflow text NOT NULL,
    expression text NOT NULL,
    next_fire_at timestamptz NOT NULL
);

CREATE TABLE refit.outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key text NOT NULL UNIQUE,
    run uuid,
    notice jsonb NOT NULL,
    attempts bigint NOT NULL DEFAULT 0,
    queued_at timestamptz NOT NULL,
    -- When it is sent or tried again; nothing once it was sent or given up.
    due_at timestamptz,
    sent_at timestamptz,
    dead boolean NOT NULL DEFAULT FALSE,
    last_error text
);
CREATE INDEX outbox_due ON refit.outbox (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX outbox_run ON refit.outbox (run, id);

CREATE TABLE refit.versions (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model text NOT NULL,
    name text NOT NULL,
    store text NOT NULL,
    state text NOT NULL,
    run uuid,
    step text,
    base_url text NOT NULL,
    manifest_sha256 text NOT NULL,
    manifest jsonb,
    created_at timestamptz NOT NULL,
    UNIQUE (model, name)
);
CREATE UNIQUE INDEX versions_reserved ON refit.versions (run, step) WHERE state <> 'abandoned' AND step IS NOT NULL;

CREATE TABLE refit.releases (
    model text NOT NULL,
    target text NOT NULL,
    generation bigint NOT NULL,
    desired jsonb NOT NULL,
    applied bigint,
    owner uuid,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (model, target)
);

CREATE TABLE refit.release_audit (
    model text NOT NULL,
    target text NOT NULL,
    generation bigint NOT NULL,
    assignment jsonb NOT NULL,
    actor jsonb NOT NULL,
    reason text NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (model, target, generation)
);

-- The record is the whole canary; the columns beside it are what is compared and searched, and win over it.
CREATE TABLE refit.canaries (
    id uuid PRIMARY KEY,
    run uuid NOT NULL,
    state text NOT NULL,
    stage bigint NOT NULL,
    next_look_at timestamptz NOT NULL,
    record jsonb NOT NULL
);
CREATE INDEX canaries_run ON refit.canaries (run, id);
CREATE INDEX canaries_live ON refit.canaries (next_look_at) WHERE state IN ('watching', 'baking');

-- One row a model: taking it makes the batches of a model follow one another, so that numbers appear in order.
CREATE TABLE refit.evidence_clock (
    model text PRIMARY KEY,
    seq bigint NOT NULL
);

CREATE TABLE refit.evidence_batches (
    model text NOT NULL,
    kind text NOT NULL,
    batch_id text NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (model, kind, batch_id)
);

CREATE TABLE refit.evidence_minutes (
    model text NOT NULL,
    version text NOT NULL,
    minute timestamptz NOT NULL,
    seq bigint NOT NULL,
    n bigint NOT NULL,
    errors bigint NOT NULL,
    timed bigint NOT NULL,
    latency jsonb NOT NULL,
    PRIMARY KEY (model, version, minute)
);
CREATE INDEX evidence_minutes_seq ON refit.evidence_minutes (model, seq);

CREATE TABLE refit.predictions (
    model text NOT NULL,
    request_id text NOT NULL,
    version text NOT NULL,
    value double precision NOT NULL,
    shadow jsonb NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (model, request_id)
);

CREATE TABLE refit.truths (
    model text NOT NULL,
    request_id text NOT NULL,
    value double precision NOT NULL,
    block text,
    at timestamptz NOT NULL,
    PRIMARY KEY (model, request_id)
);

CREATE TABLE refit.paired_errors (
    model text NOT NULL,
    seq bigint NOT NULL,
    request_id text NOT NULL,
    block text,
    served text NOT NULL,
    served_error double precision NOT NULL,
    shadow text NOT NULL,
    shadow_error double precision NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (model, seq)
);
CREATE TABLE refit.step_logs (
    run uuid NOT NULL,
    seq bigint NOT NULL,
    step text NOT NULL,
    attempt bigint NOT NULL,
    at timestamptz NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (run, seq)
);
