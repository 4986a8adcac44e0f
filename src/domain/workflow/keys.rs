//! Every key of a workflow file, once: what the check of unknown and missing
//! keys, the check of types and the JSON Schema are all made from.

use super::keys_step::RETRY;
use super::shape::{Key, Object, Shape, key};

/// Roots of an expression of a step.
pub(super) const STEP_ROOTS: &[&str] = &["model", "inputs", "event", "secrets", "steps"];
/// Roots where the result is stored or shown: no secrets.
pub(super) const OPEN_ROOTS: &[&str] = &["model", "inputs", "event", "steps"];
/// Roots of `until` and `abort_if`.
pub(super) const WATCH_ROOTS: &[&str] = &["model", "inputs", "event", "steps", "canary"];
/// Roots before a run exists.
const EVENT_ROOTS: &[&str] = &["model", "event"];
const KEY_ROOTS: &[&str] = &["model", "inputs", "event"];
/// All roots, for "not here" messages.
pub(super) const ALL_ROOTS: &[&str] = &["model", "inputs", "event", "secrets", "steps", "canary"];

pub(super) const fn words(now: &'static [&'static str]) -> Shape {
    Shape::Words { now, later: &[] }
}

pub(super) static WORKFLOW: Object = Object {
    name: "workflow",
    doc: "A refit workflow: what retrains a model, checks it and brings it to its users.",
    one_of: &[],
    keys: &[&[
        key("name", Shape::Name, "What `refit trigger` takes.").required(),
        key("model", Shape::Name, "The model that versions, releases and evidence belong to.").required(),
        key("mode", words(&["observe", "advise", "act"]), "How far refit may go; `act` when absent."),
        key("on", Shape::Object(&ON), "What starts a run; `refit trigger` always does."),
        key(
            "concurrency",
            Shape::Object(&CONCURRENCY),
            "What happens when a run is started while another is at work.",
        ),
        key("defaults", Shape::Object(&DEFAULTS), "What holds for steps that do not say otherwise."),
        key(
            "metrics",
            Shape::MapOf(&Shape::Object(&METRIC)),
            "Offline metrics, and which direction is better.",
        ),
        key(
            "evidence",
            Shape::Object(&EVIDENCE),
            "Where the observations of a canary come from; pushed when absent.",
        ),
        key("steps", Shape::List(&Shape::Step), "What a run does, in order.").required(),
        key(
            "on_failure",
            Shape::List(&Shape::Step),
            "Steps that run when the run failed, after its effects were undone.",
        ),
        key("notify", Shape::List(&Shape::Object(&NOTIFY_RULE)), "Who hears of which outcome."),
    ]],
};

static ON: Object = Object {
    name: "on",
    doc: "What starts a run.",
    one_of: &[],
    keys: &[&[
        key("schedule", Shape::OneOrMany(&Shape::Object(&SCHEDULE)), "Times."),
        key("event", Shape::OneOrMany(&Shape::Object(&EVENT)), "Events by name."),
        key("manual", Shape::Object(&MANUAL), "Inputs of `refit trigger`."),
        key("data", Shape::Later, "New rows in a source.").later(),
        key("drift", Shape::Later, "Columns that moved away from the training data.").later(),
        key("decay", Shape::Later, "An online metric that became worse.").later(),
    ]],
};

static SCHEDULE: Object = Object {
    name: "schedule",
    doc: "A cron expression in a time zone.",
    one_of: &[],
    keys: &[&[
        key("cron", Shape::Cron, "Five fields: minute, hour, day of month, month, day of week.").required(),
        key("timezone", Shape::Timezone, "An IANA time zone such as `Europe/Berlin`; UTC when absent."),
        key(
            "catch_up",
            words(&["latest", "all", "none"]),
            "What happens to ticks missed while nothing ran; `latest` when absent. `all` starts a run for each of the last 100.",
        ),
    ]],
};

static EVENT: Object = Object {
    name: "event",
    doc: "An event by name.",
    one_of: &[],
    keys: &[&[
        key("name", Shape::EventName, "The event's name, such as `ml/retrain.requested`.").required(),
        key("if", Shape::Condition(EVENT_ROOTS), "A CEL condition over `event`."),
        key("debounce", Shape::Duration, "Events within this time of the last one make one run."),
    ]],
};

static MANUAL: Object = Object {
    name: "manual",
    doc: "What `refit trigger` may be given.",
    one_of: &[],
    keys: &[&[key(
        "inputs",
        Shape::MapOf(&Shape::Object(&INPUT)),
        "Inputs by name; expressions read them as `inputs.<name>`.",
    )]],
};

static INPUT: Object = Object {
    name: "input",
    doc: "One input.",
    one_of: &[],
    keys: &[&[
        key("type", words(&["string", "number", "boolean"]), "Its type; `string` when absent."),
        key("required", Shape::Boolean, "Whether it must be given; `false` when absent."),
        key("default", Shape::Scalar, "Its value when it is not given."),
    ]],
};

static CONCURRENCY: Object = Object {
    name: "concurrency",
    doc: "Runs with one key do not run at once.",
    one_of: &[],
    keys: &[&[
        key("key", Shape::Template(KEY_ROOTS), "The key; `${{ model }}` when absent."),
        key(
            "policy",
            words(&["queue", "queue-latest", "skip", "cancel-running"]),
            "What happens to a run whose key is taken; `queue` when absent.",
        ),
    ]],
};

static DEFAULTS: Object = Object {
    name: "defaults",
    doc: "What holds for steps that do not say otherwise.",
    one_of: &[],
    keys: &[&[
        key("timeout", Shape::Duration, "No attempt of a step takes longer; 1h when absent."),
        key("retry", Shape::Object(&RETRY), "When a transient failure is tried again."),
    ]],
};

static METRIC: Object = Object {
    name: "metric",
    doc: "An offline metric.",
    one_of: &[],
    keys: &[&[key("better", words(&["lower", "higher"]), "Which direction is an improvement.").required()]],
};

static EVIDENCE: Object = Object {
    name: "evidence",
    doc: "Where the observations of a canary come from. One of `sql`, `prometheus` and `http` is read before every look.",
    one_of: &[],
    keys: &[&[
        key("push", Shape::Boolean, "The app sends them to refit; always possible."),
        key("sql", Shape::Object(&EVIDENCE_SQL), "A query over the app's own table."),
        key("prometheus", Shape::Object(&EVIDENCE_PROMETHEUS), "Counters in Prometheus."),
        key("http", Shape::Object(&EVIDENCE_HTTP), "An HTTP endpoint that returns JSON."),
    ]],
};

/// What a row of evidence may have beside what `error_if` looks at.
pub(super) const ROW_FIELDS: &[&str] =
    &["at", "request_id", "unit", "version", "ok", "latency_ms", "prediction", "cold"];
/// The root of a row of evidence.
const ROW_ROOTS: &[&str] = &["row"];
/// Roots of where rows of evidence are asked for, secrets beside them.
pub(super) const HTTP_ROOTS: &[&str] = &["since", "cursor"];
const EVIDENCE_ROOTS: &[&str] = &["secrets"];
const EVIDENCE_URL_ROOTS: &[&str] = &["secrets", "since", "cursor"];

const ERROR_IF: Key = key(
    "error_if",
    Shape::Condition(ROW_ROOTS),
    "What counts as an error: a CEL condition over `row`; that `row.ok` is false when absent.",
);
const OVERLAP: Key = key(
    "overlap",
    Shape::Duration,
    "How much is read again at every look, for rows that arrive late or out of order; 5m when absent, at most 24h.",
);
const HEADERS: Key = key("headers", Shape::MapOf(&Shape::Template(EVIDENCE_ROOTS)), "Request headers.");

static EVIDENCE_SQL: Object = Object {
    name: "evidence_sql",
    doc: "Rows of a query with the columns `at`, `request_id`, `version`, `ok`, and perhaps `latency_ms`, `prediction`, \
          `cold`; a role that may only read suffices. Exactly one of `query` and `query_file`.",
    one_of: &["query", "query_file"],
    keys: &[&[
        key(
            "url",
            Shape::Template(EVIDENCE_ROOTS),
            "`postgres://…`, or `sqlite:` and a path in the project; usually a secret.",
        )
        .required(),
        key("query", Shape::Sql, "One SELECT without a window of time: refit adds it."),
        key("query_file", Shape::RelativePath, "A file with it, relative to the project."),
        ERROR_IF,
        OVERLAP,
    ]],
};

static EVIDENCE_PROMETHEUS: Object = Object {
    name: "evidence_prometheus",
    doc: "Counters with a label for the version. Exactly one of `errors` and `error_if`.",
    one_of: &["errors", "error_if"],
    keys: &[&[
        key("url", Shape::Template(EVIDENCE_ROOTS), "The server, such as `https://prometheus.example.com`.")
            .required(),
        HEADERS,
        key("requests", Shape::Text, "Selects the counter of requests: `predictions_total{job=\"app\"}`.")
            .required(),
        key("errors", Shape::Text, "Selects a counter of errors, which has to exist while it is 0."),
        key(
            "error_if",
            Shape::Condition(ROW_ROOTS),
            "Which series of `requests` are errors: a CEL condition over their labels, such as `row.status >= '500'`.",
        ),
        key(
            "latency",
            Shape::Text,
            "Selects the buckets of a histogram: `prediction_seconds_bucket{job=\"app\"}`.",
        ),
        key("latency_unit", words(&["s", "ms"]), "The unit of its `le`; `s` when absent."),
        key("version", Shape::Text, "The label that holds the version; `version` when absent."),
        key(
            "delay",
            Shape::Duration,
            "How long after its end a minute is read; 30s when absent, at most 10m.",
        ),
    ]],
};

static EVIDENCE_HTTP: Object = Object {
    name: "evidence_http",
    doc: "Rows of JSON answers to GET.",
    one_of: &[],
    keys: &[&[
        key(
            "url",
            Shape::Template(EVIDENCE_URL_ROOTS),
            "The address. `${{ since }}` is the time from which rows are wanted, `${{ cursor }}` what the last answer \
             had at `next`.",
        )
        .required(),
        HEADERS,
        key("rows", Shape::Text, "Where in the answer the list is, such as `data.items`; the answer when absent."),
        key("next", Shape::Text, "Where in the answer the next cursor is; nothing there ends the list."),
        key(
            "fields",
            Shape::MapOf(&Shape::Text),
            "Where in a row `at`, `request_id`, `version`, `ok`, `latency_ms` … are; by their own name when absent.",
        ),
        ERROR_IF,
        OVERLAP,
    ]],
};

pub(super) const RECIPIENTS: &[Key] = &[
    key("slack", Shape::Name, "A Slack notifier of `refit.toml`."),
    key(
        "email",
        Shape::OneOrMany(&Shape::Email),
        "Mail addresses, through the mail notifier of `refit.toml`.",
    ),
    key("webhook", Shape::Name, "A webhook notifier of `refit.toml`."),
    key("console", Shape::Boolean, "The log of the process."),
];

pub(super) static NOTIFY_RULE: Object = Object {
    name: "notify_rule",
    doc: "Who hears of which moments.",
    one_of: &[],
    keys: &[
        &[key(
            "on",
            Shape::OneOrMany(&words(&[
                "started",
                "canary_started",
                "promoted",
                "rejected",
                "rolled_back",
                "held",
                "frozen",
                "needs_approval",
                "skipped",
                "failed",
                "cancelled",
                "succeeded",
                "alert",
            ])),
            "The moments.",
        )
        .required()],
        RECIPIENTS,
    ],
};

pub(super) static KEEP: Object = Object {
    name: "keep",
    doc: "Old versions that stay. What serves, served, is pinned or is needed by a run stays besides.",
    one_of: &[],
    keys: &[&[key("latest", Shape::Integer(1, 1000), "How many of the newest good versions.").required()]],
};
