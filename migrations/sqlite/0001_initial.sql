-- Times are RFC 3339 text in UTC, ids 16-byte blobs, documents JSON text.
CREATE TABLE instance (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    id BLOB NOT NULL
) STRICT;

CREATE TABLE events (
    id BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    data TEXT NOT NULL,
    source TEXT NOT NULL,
    dedup_key TEXT UNIQUE,
    received_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What a checkpoint changes; what never changes is in run_docs, so that a checkpoint does not rewrite it.
CREATE TABLE runs (
    id BLOB PRIMARY KEY,
    workflow TEXT NOT NULL,
    model TEXT NOT NULL,
    event_id BLOB NOT NULL,
    event_name TEXT NOT NULL,
    status TEXT NOT NULL,
    outcome TEXT,
    reason TEXT,
    epoch INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    -- Whether the last holder left a checkpoint, or gave the run back.
    progressed INTEGER NOT NULL,
    cancel TEXT,
    committed INTEGER NOT NULL,
    concurrency_key TEXT NOT NULL,
    dedup_key TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL,
    finished_at TEXT,
    lease_owner BLOB,
    lease_until TEXT,
    -- When it is due by time alone.
    wake_at TEXT,
    -- When somebody pushes a wake-up: at wake_at, and later again in case it was lost.
    poke_at TEXT,
    signal_seq INTEGER NOT NULL DEFAULT 0,
    signal_seen INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX runs_workflow ON runs (workflow, id);
CREATE INDEX runs_model ON runs (model, id);
CREATE INDEX runs_status ON runs (status, id);
CREATE INDEX runs_event ON runs (event_id);
CREATE INDEX runs_poke ON runs (poke_at) WHERE poke_at IS NOT NULL;
CREATE INDEX runs_leased ON runs (lease_owner) WHERE lease_owner IS NOT NULL;
CREATE INDEX runs_queued ON runs (concurrency_key, id) WHERE status = 'queued';

CREATE TABLE run_docs (
    run BLOB PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
    definition TEXT NOT NULL,
    cause TEXT NOT NULL
) STRICT;

CREATE TABLE attempts (
    seq INTEGER PRIMARY KEY,
    run BLOB NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    step TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    started_at TEXT NOT NULL,
    finished_at TEXT,
    -- The checkpoint that wrote it last: recognises a checkpoint that is sent again.
    changed_at TEXT NOT NULL,
    output TEXT,
    error TEXT,
    resume TEXT,
    wake_at TEXT,
    UNIQUE (run, step, attempt)
) STRICT;

CREATE TABLE intents (
    seq INTEGER PRIMARY KEY,
    run BLOB NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    step TEXT NOT NULL,
    key TEXT NOT NULL UNIQUE,
    detail TEXT NOT NULL,
    undo TEXT,
    result TEXT,
    state TEXT NOT NULL
) STRICT;
CREATE INDEX intents_run ON intents (run, seq);

CREATE TABLE signals (
    run BLOB NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    id INTEGER NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT,
    at TEXT NOT NULL,
    PRIMARY KEY (run, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE concurrency (
    key TEXT PRIMARY KEY,
    run BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Not `workers`: on SQLite the queue has a table of that name.
CREATE TABLE processes (
    id BLOB PRIMARY KEY,
    labels TEXT NOT NULL,
    -- The directory its lock file is in, as seen on one machine.
    machine TEXT,
    -- The session-level advisory lock it holds.
    lock_key INTEGER NOT NULL,
    registered_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE schedules (
    id TEXT PRIMARY KEY,
    workflow TEXT NOT NULL,
    expression TEXT NOT NULL,
    next_fire_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    run BLOB,
    notice TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    queued_at TEXT NOT NULL,
    -- When it is sent or tried again; nothing once it was sent or given up.
    due_at TEXT,
    sent_at TEXT,
    dead INTEGER NOT NULL DEFAULT FALSE,
    last_error TEXT
) STRICT;
CREATE INDEX outbox_due ON outbox (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX outbox_run ON outbox (run, id);

CREATE TABLE versions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    name TEXT NOT NULL,
    store TEXT NOT NULL,
    state TEXT NOT NULL,
    run BLOB,
    step TEXT,
    base_url TEXT NOT NULL,
    manifest_sha256 TEXT NOT NULL,
    manifest TEXT,
    created_at TEXT NOT NULL,
    UNIQUE (model, name)
) STRICT;
CREATE UNIQUE INDEX versions_reserved ON versions (run, step) WHERE state <> 'abandoned' AND step IS NOT NULL;

CREATE TABLE releases (
    model TEXT NOT NULL,
    target TEXT NOT NULL,
    generation INTEGER NOT NULL,
    desired TEXT NOT NULL,
    applied INTEGER,
    owner BLOB,
    updated_at TEXT NOT NULL,
    PRIMARY KEY (model, target)
) STRICT, WITHOUT ROWID;

CREATE TABLE release_audit (
    model TEXT NOT NULL,
    target TEXT NOT NULL,
    generation INTEGER NOT NULL,
    assignment TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (model, target, generation)
) STRICT, WITHOUT ROWID;

-- The record is the whole canary; the columns beside it are what is compared and searched, and win over it.
CREATE TABLE canaries (
    id BLOB PRIMARY KEY,
    run BLOB NOT NULL,
    state TEXT NOT NULL,
    stage INTEGER NOT NULL,
    next_look_at TEXT NOT NULL,
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX canaries_run ON canaries (run, id);
CREATE INDEX canaries_live ON canaries (next_look_at) WHERE state IN ('watching', 'baking');

-- One row a model: taking it makes the batches of a model follow one another, so that numbers appear in order.
CREATE TABLE evidence_clock (
    model TEXT PRIMARY KEY,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE evidence_batches (
    model TEXT NOT NULL,
    kind TEXT NOT NULL,
    batch_id TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (model, kind, batch_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE evidence_minutes (
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    minute TEXT NOT NULL,
    seq INTEGER NOT NULL,
    n INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    timed INTEGER NOT NULL,
    latency TEXT NOT NULL,
    PRIMARY KEY (model, version, minute)
) STRICT, WITHOUT ROWID;
CREATE INDEX evidence_minutes_seq ON evidence_minutes (model, seq);

CREATE TABLE predictions (
    model TEXT NOT NULL,
    request_id TEXT NOT NULL,
    version TEXT NOT NULL,
    value REAL NOT NULL,
    shadow TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (model, request_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE truths (
    model TEXT NOT NULL,
    request_id TEXT NOT NULL,
    value REAL NOT NULL,
    block TEXT,
    at TEXT NOT NULL,
    PRIMARY KEY (model, request_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE paired_errors (
    model TEXT NOT NULL,
    seq INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    block TEXT,
    served TEXT NOT NULL,
    served_error REAL NOT NULL,
    shadow TEXT NOT NULL,
    shadow_error REAL NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (model, seq)
) STRICT, WITHOUT ROWID;
