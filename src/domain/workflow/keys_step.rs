//! The keys of steps, by kind.

use super::keys::{KEEP, OPEN_ROOTS, RECIPIENTS, STEP_ROOTS, WATCH_ROOTS, words};
use super::keys_command::{EVALUATE, RUN_STEP, SHADOW};
use super::shape::{Key, Object, Shape, key};

pub(super) const SECRET_TEXT: Shape = Shape::Template(STEP_ROOTS);
const OPEN_TEXT: Shape = Shape::Template(OPEN_ROOTS);

pub(super) const COMMON: &[Key] = &[
    key("id", Shape::Name, "Its name in `needs` and `steps.<id>`; its kind when absent."),
    key("name", Shape::Text, "What people read."),
    key(
        "needs",
        Shape::OneOrManyOrNone(&Shape::Name),
        "Steps that must have ended before; the step before it when absent.",
    ),
    key("if", Shape::Condition(OPEN_ROOTS), "A CEL condition; the step is skipped when it is false."),
    key("retry", Shape::Object(&RETRY), "When a transient failure is tried again."),
    key("runs_on", Shape::OneOrMany(&Shape::Name), "Labels a worker must have to run it."),
];
const USES: &[Key] = &[key(
    "uses",
    Shape::Words {
        now: &[
            "fetch", "evaluate", "gate", "publish", "canary", "wait", "shadow", "approve", "compare",
            "promote", "rollback", "notify", "http",
        ],
        later: LATER_KINDS,
    },
    "The kind of step.",
)];
pub(super) const TIMEOUT: &[Key] = &[key("timeout", Shape::Duration, "No attempt takes longer.")];

/// Kinds of steps that later versions know.
pub(super) const LATER_KINDS: &[&str] = &["dispatch", "load"];

/// Every kind of step, by the word after `uses:`; `run` has none.
pub(super) static STEPS: &[(&str, &Object)] = &[
    ("run", &RUN_STEP),
    ("fetch", &FETCH_STEP),
    ("evaluate", &EVALUATE_STEP),
    ("gate", &GATE_STEP),
    ("publish", &PUBLISH_STEP),
    ("canary", &CANARY_STEP),
    ("wait", &WAIT_STEP),
    ("shadow", &SHADOW_STEP),
    ("approve", &APPROVE_STEP),
    ("compare", &COMPARE_STEP),
    ("promote", &PROMOTE_STEP),
    ("rollback", &ROLLBACK_STEP),
    ("notify", &NOTIFY_STEP),
    ("http", &HTTP_STEP),
];

/// A step with `uses` and `with`.
macro_rules! step {
    ($name:ident, $kind:literal, $doc:literal, with: $with:expr $(, also: $also:expr)*) => {
        static $name: Object = Object {
            name: concat!($kind, "_step"),
            doc: $doc,
            one_of: &[],
            keys: &[COMMON, USES, &[$with], $($also),*],
        };
    };
}

pub(super) static RETRY: Object = Object {
    name: "retry",
    doc: "When a transient failure is tried again.",
    one_of: &[],
    keys: &[&[
        key("attempts", Shape::Integer(1, 100), "Attempts in all; 3 when absent, 1 for never again."),
        key("backoff", Shape::Duration, "Delay after the first failure; 10s when absent."),
        key("factor", Shape::Number, "What each further delay is multiplied by; 2 when absent."),
        key("max", Shape::Duration, "No delay is longer; 5m when absent."),
    ]],
};

step!(FETCH_STEP, "fetch", "Rows into a file, then checked.",
    with: key("with", Shape::Object(&FETCH), "What is fetched.").required(),
    also: TIMEOUT,
    also: &[key("expect", Shape::Object(&EXPECT), "What must be true of the rows; bad data stops the run.")]);

static FETCH: Object = Object {
    name: "fetch",
    doc: "What is fetched.",
    one_of: &[],
    keys: &[&[
        key("from", Shape::Object(&SOURCE), "Where the rows come from.").required(),
        key("to", Shape::RelativePath, "The file they are written to, below the run's data directory.")
            .required(),
    ]],
};

pub(super) static SOURCE: Object = Object {
    name: "source",
    doc: "Where rows come from; exactly one.",
    one_of: &["file", "http", "postgres", "sqlite"],
    keys: &[&[
        key("file", OPEN_TEXT, "A file, relative to the project."),
        key("http", Shape::Object(&SOURCE_HTTP), "A URL."),
        key("postgres", Shape::Object(&SOURCE_POSTGRES), "A query against Postgres."),
        key("sqlite", Shape::Object(&SOURCE_SQLITE), "A query against a SQLite file."),
    ]],
};

static SOURCE_HTTP: Object = Object {
    name: "source_http",
    doc: "A URL.",
    one_of: &[],
    keys: &[&[
        key("url", SECRET_TEXT, "The address.").required(),
        key("headers", Shape::MapOf(&SECRET_TEXT), "Request headers."),
    ]],
};

const QUERY: &[Key] = &[
    key("query", Shape::Sql, "The query."),
    key("query_file", Shape::RelativePath, "A file that holds the query, relative to the project."),
];

static SOURCE_POSTGRES: Object = Object {
    name: "source_postgres",
    doc: "A query against Postgres.",
    one_of: &["query", "query_file"],
    keys: &[&[key("url", SECRET_TEXT, "The connection string.").required()], QUERY],
};

static SOURCE_SQLITE: Object = Object {
    name: "source_sqlite",
    doc: "A query against a SQLite file.",
    one_of: &["query", "query_file"],
    keys: &[&[key("path", OPEN_TEXT, "The database file, relative to the project.").required()], QUERY],
};

static EXPECT: Object = Object {
    name: "expect",
    doc: "What must be true of the rows.",
    one_of: &[],
    keys: &[&[
        key(
            "columns",
            Shape::MapOf(&words(&["int", "float", "string", "bool", "date", "timestamp"])),
            "Columns that must be there, with their types.",
        ),
        key("rows", Shape::Object(&ROWS), "Bounds on the number of rows."),
        key("newest", Shape::Object(&NEWEST), "How old the newest row may be."),
        key("null_rate", Shape::MapOf(&Shape::Percent), "The largest share of empty cells, by column."),
        key("unique", Shape::OneOrMany(&Shape::Text), "Columns that together must not repeat."),
    ]],
};

static ROWS: Object = Object {
    name: "rows",
    doc: "Bounds on the number of rows.",
    one_of: &[],
    keys: &[&[
        key("min", Shape::Integer(0, i64::MAX), "At least this many."),
        key("max", Shape::Integer(0, i64::MAX), "At most this many."),
        key("vs_previous", Shape::Object(&VS_PREVIOUS), "Against the last successful fetch."),
    ]],
};

static VS_PREVIOUS: Object = Object {
    name: "vs_previous",
    doc: "Against the last successful fetch.",
    one_of: &[],
    keys: &[&[key("min", Shape::Percent, "At least this share of its rows.").required()]],
};

static NEWEST: Object = Object {
    name: "newest",
    doc: "How old the newest row may be.",
    one_of: &[],
    keys: &[&[
        key("column", Shape::Text, "A date or timestamp column.").required(),
        key("max_age", Shape::Duration, "The greatest age.").required(),
        key("on_stale", words(&["fail", "skip"]), "What a greater age means; `fail` when absent."),
    ]],
};

step!(EVALUATE_STEP, "evaluate", "Scores candidate and champion on the same rows.",
    with: key("with", Shape::Object(&EVALUATE), "How they are scored.").required(), also: TIMEOUT);

step!(GATE_STEP, "gate", "The offline check.", with: key("with", Shape::Object(&GATE), "Its rules.").required(), also: TIMEOUT);

static GATE: Object = Object {
    name: "gate",
    doc: "The rules of a gate; all must pass.",
    one_of: &[],
    keys: &[&[
        key(
            "first_version",
            words(&["require_approval", "accept"]),
            "What happens when there is no champion yet; `require_approval` when absent.",
        ),
        key(
            "inconclusive",
            words(&["reject", "approve", "continue"]),
            "What an inconclusive gate does; `reject` when absent.",
        ),
        key("rules", Shape::List(&Shape::Object(&GATE_RULE)), "The rules.").required(),
    ]],
};

pub(super) static GATE_RULE: Object = Object {
    name: "gate_rule",
    doc: "One rule of a gate.",
    one_of: &[],
    keys: &[&[
        key("metric", Shape::Name, "The metric.").required(),
        key("max", Shape::Number, "Not above this."),
        key("min", Shape::Number, "Not below this."),
        key("vs", words(&["champion"]), "What it is compared with."),
        key(
            "worse_by_at_most",
            Shape::Percent,
            "Worse by at most this share of the champion's value; negative: better by at least.",
        ),
        key(
            "confidence",
            Shape::Percent,
            "Confidence of a paired bootstrap over the time blocks of `$REFIT_ERRORS`.",
        ),
        key(
            "holdout",
            words(&["same", "stored"]),
            "`stored`: the champion's metric as stored counts; `same` when absent.",
        ),
        key("each", words(&["segment"]), "Every segment by itself."),
        key("min_rows", Shape::Integer(1, i64::MAX), "Fewer rows are inconclusive."),
    ]],
};

step!(PUBLISH_STEP, "publish", "Uploads a version and seals it.", with: key("with", Shape::Object(&PUBLISH), "Where to.").required(), also: TIMEOUT);

static PUBLISH: Object = Object {
    name: "publish",
    doc: "Where a version goes.",
    one_of: &[],
    keys: &[&[
        key("store", Shape::Name, "A store of `refit.toml`.").required(),
        key("version", words(&["date", "semver", "counter"]), "How versions are named; `date` when absent."),
        key("keep", Shape::Object(&KEEP), "Which old versions stay; all do when absent."),
        key(
            "from",
            Shape::Name,
            "The step whose files are published; the last one that has some when absent.",
        ),
    ]],
};

step!(CANARY_STEP, "canary", "Sends a share of traffic to the version.", with: key("with", Shape::Object(&CANARY), "How much, where.").required(), also: TIMEOUT);

static CANARY: Object = Object {
    name: "canary",
    doc: "A share of traffic for the version.",
    one_of: &[],
    keys: &[&[
        key("target", Shape::Name, "A target of `refit.toml`.").required(),
        key("stages", Shape::OneOrMany(&Shape::ShareOr(&STAGE)), "Shares of traffic, ascending.").required(),
        key("compare", Shape::Name, "The `compare` step whose rules decide; the only one when absent."),
        key(
            "max_look_gap",
            Shape::Duration,
            "The longest time between looks that is accepted without a live server.",
        ),
    ]],
};

static STAGE: Object = Object {
    name: "stage",
    doc: "One stage of a canary.",
    one_of: &[],
    keys: &[&[
        key("share", Shape::Share, "Share of traffic.").required(),
        key("min_time", Shape::Duration, "Stays at least this long."),
    ]],
};

step!(WAIT_STEP, "wait", "Waits, without holding a worker.", with: key("with", Shape::Object(&WAIT), "For what.").required());

static WAIT: Object = Object {
    name: "wait",
    doc: "At least `for`, then until `until`, at most `at_most`.",
    one_of: &[],
    keys: &[WAITS],
};

pub(super) const WAITS: &[Key] = &[
    key("for", Shape::Duration, "At least this long."),
    key("until", Shape::Condition(WATCH_ROOTS), "Then until this is true."),
    key("at_most", Shape::Duration, "At most this long in all."),
    key("abort_if", Shape::Condition(WATCH_ROOTS), "The run fails as soon as this is true."),
];

step!(SHADOW_STEP, "shadow", "Runs candidate and champion on rows as their truth arrives, whoever served them.",
    with: key("with", Shape::Object(&SHADOW), "How, and how long.").required(), also: TIMEOUT);

step!(APPROVE_STEP, "approve", "A human decides.", with: key("with", Shape::Object(&APPROVE), "What they read."));

static APPROVE: Object = Object {
    name: "approve",
    doc: "What a human decides on.",
    one_of: &[],
    keys: &[&[
        key("message", OPEN_TEXT, "What the human reads."),
        key("at_most", Shape::Duration, "How long it waits; for ever when absent."),
    ]],
};

step!(COMPARE_STEP, "compare", "The one set of rules the controller uses from the first look on.", with: key("with", Shape::Object(&COMPARE), "The rules.").required(), also: TIMEOUT);

static COMPARE: Object = Object {
    name: "compare",
    doc: "How a canary is compared with the champion.",
    one_of: &[],
    keys: &[&[
        key("rules", Shape::List(&Shape::Object(&COMPARE_RULE)), "The rules.").required(),
        key(
            "on_inconclusive",
            words(&["hold", "promote", "roll_back"]),
            "What happens when the deadline came and nothing is decided; `hold` when absent.",
        ),
        key(
            "when_underpowered",
            words(&["replay", "approve", "hold"]),
            "What happens before a canary that will probably not conclude. `hold`: it starts, and an inconclusive end follows `on_inconclusive`. `approve`: a human decides whether it starts. `replay`: the same, after the last 1,000 logged inputs went through both versions with the `shadow` command; a candidate that is worse on them is rejected. `replay` when absent beside a `shadow` step, else `hold`.",
        ),
        key("hold_for", Shape::Duration, "A held canary is rolled back after this; 6d when absent."),
        key(
            "hold_traffic",
            words(&["keep", "zero"]),
            "Whether a held canary keeps its traffic; `keep` when absent.",
        ),
        key(
            "alpha",
            Shape::Number,
            "P(rolling back a canary that is not worse) is at most this; 0.02 when absent.",
        ),
        key(
            "beta",
            Shape::Number,
            "P(promoting a canary that is worse by the margin) is at most this; 0.05 when absent.",
        ),
        key("weights", Shape::MapOf(&Shape::Number), "Shares of alpha by metric; together 1."),
    ]],
};

pub(super) const ONLINE_METRICS: &[&str] = &["error_rate", "latency_slow_share", "abs_error"];

static COMPARE_RULE: Object = Object {
    name: "compare_rule",
    doc: "One rule of a comparison.",
    one_of: &[],
    keys: &[&[
        key("metric", words(ONLINE_METRICS), "The online metric.").required(),
        key(
            "worse_by_at_most",
            Shape::Margin,
            "Margin: a percentage of the champion's value, or points of a rate (`0.2pp`); 50% for error_rate, 100% for \
             latency_slow_share, 10% for abs_error when absent.",
        ),
        key(
            "acceptable_below",
            Shape::Rate,
            "Below this the canary is acceptable whatever the champion does.",
        ),
        key("never_above", Shape::Rate, "Above this it is not, whatever the champion does."),
        key(
            "label_horizon",
            Shape::Duration,
            "Of `abs_error`: a request counts once it was served this long ago, so that truths that are quick to arrive do not speak for all; how many requests have none by then is watched. 0 when absent: every truth counts as it arrives.",
        ),
        key(
            "mode",
            words(&["gating", "observe"]),
            "Whether it decides or is only shown; `gating` when absent.",
        ),
    ]],
};

step!(PROMOTE_STEP, "promote", "The verdict decides: promote, roll back or hold.", with: key("with", Shape::Object(&PROMOTE), "How."), also: TIMEOUT);

static PROMOTE: Object = Object {
    name: "promote",
    doc: "How a version is promoted.",
    one_of: &[],
    keys: &[&[
        key("target", Shape::Name, "The target; the canary's when absent."),
        key("bake", Shape::Duration, "Watching goes on for this long after promotion."),
    ]],
};

step!(ROLLBACK_STEP, "rollback", "Goes back to a version.", with: key("with", Shape::Object(&ROLLBACK), "Where.").required(), also: TIMEOUT);

static ROLLBACK: Object = Object {
    name: "rollback",
    doc: "Where to go back, and to what.",
    one_of: &[],
    keys: &[&[
        key("target", Shape::Name, "The target.").required(),
        key("to", OPEN_TEXT, "The version; the newest good one when absent."),
    ]],
};

step!(NOTIFY_STEP, "notify", "Tells somebody.", with: key("with", Shape::Object(&NOTIFY), "Whom, what.").required(), also: TIMEOUT);

static NOTIFY: Object = Object {
    name: "notify",
    doc: "A message.",
    one_of: &[],
    keys: &[
        RECIPIENTS,
        &[
            key("subject", OPEN_TEXT, "The subject of a mail, the first line elsewhere.").required(),
            key("message", OPEN_TEXT, "The text.").required(),
        ],
    ],
};

step!(HTTP_STEP, "http", "One request.", with: key("with", Shape::Object(&HTTP), "The request.").required(), also: TIMEOUT);

static HTTP: Object = Object {
    name: "http",
    doc: "One request.",
    one_of: &[],
    keys: &[&[
        key(
            "method",
            words(&["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"]),
            "The method; `GET` when absent.",
        ),
        key("url", SECRET_TEXT, "The address.").required(),
        key("headers", Shape::MapOf(&SECRET_TEXT), "Request headers."),
        key("body", SECRET_TEXT, "The request's body."),
        key(
            "expect",
            Shape::OneOrMany(&Shape::Integer(100, 599)),
            "Statuses that count as success; all of 2xx when absent.",
        ),
    ]],
};
