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
            "What happens to ticks missed while nothing ran; `latest` when absent.",
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
    doc: "Where the observations of a canary come from.",
    one_of: &[],
    keys: &[&[
        key("push", Shape::Boolean, "The app sends them to refit; always possible."),
        key("sql", Shape::Later, "A query over the app's own table.").later(),
        key("prometheus", Shape::Later, "Prometheus queries.").later(),
        key("http", Shape::Later, "An HTTP endpoint that returns JSON.").later(),
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
