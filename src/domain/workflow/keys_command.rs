//! The keys of steps that run commands.

use super::keys::words;
use super::keys_step::{COMMON, SECRET_TEXT, SOURCE, TIMEOUT, WAITS};
use super::shape::{Key, Object, Shape, key};

/// What every command is told.
const COMMAND: &[Key] = &[
    key("run", Shape::Command, "The command line, given to `sh -c`. Values reach it through `env`.")
        .required(),
    key("working_dir", Shape::RelativePath, "Where it runs, relative to the project."),
    key("env", Shape::MapOf(&SECRET_TEXT), "What it sees beside a clean environment."),
    key("limits", Shape::Object(&LIMITS), "What it may use."),
    key("grace", Shape::Duration, "Time between SIGTERM and SIGKILL; 10s when absent."),
];
const METRICS: &[Key] = &[key("metrics", Shape::Object(&RUN_METRICS), "How its metrics are read.")];

pub(super) static RUN_STEP: Object = Object {
    name: "run_step",
    doc: "Any command; a trainer is one with `metrics` or `outputs`.",
    one_of: &[],
    keys: &[
        COMMON,
        TIMEOUT,
        COMMAND,
        METRICS,
        &[key("outputs", Shape::Object(&OUTPUTS), "Files it leaves outside `$REFIT_OUT`.")],
    ],
};

static LIMITS: Object = Object {
    name: "limits",
    doc: "What a command may use.",
    one_of: &[],
    keys: &[&[
        key("memory", Shape::Size, "Memory of the whole process tree."),
        key("log", Shape::Size, "Log that is kept; 64MiB when absent."),
        key("output", Shape::Size, "Files it may leave as artifacts."),
    ]],
};

static RUN_METRICS: Object = Object {
    name: "run_metrics",
    doc: "How the metrics of a command are read.",
    one_of: &[],
    keys: &[&[
        key("stdout", Shape::MapOf(&Shape::Object(&STDOUT_METRIC)), "Read from what it prints, by metric."),
        key("file", Shape::Boolean, "Whether it must write `$REFIT_METRICS`."),
    ]],
};

static STDOUT_METRIC: Object = Object {
    name: "stdout_metric",
    doc: "A metric read from what a command prints.",
    one_of: &[],
    keys: &[&[
        key("pattern", Shape::Pattern, "A regular expression with exactly one group, the number.").required(),
        key(
            "pick",
            words(&["first", "last", "max", "min", "mean"]),
            "Which of several matches counts; several without it are an error.",
        ),
    ]],
};

static OUTPUTS: Object = Object {
    name: "outputs",
    doc: "Files a command leaves outside `$REFIT_OUT`.",
    one_of: &[],
    keys: &[&[
        key("from", Shape::RelativePath, "The directory, relative to the project.").required(),
        key("files", Shape::Text, "A glob over file names; `*` when absent."),
        key("count", Shape::Integer(1, 100_000), "Exactly this many."),
        key("max_total", Shape::Size, "At most this much together."),
    ]],
};

pub(super) static EVALUATE: Object = Object {
    name: "evaluate",
    doc: "A scoring command, run on the candidate and on the champion.",
    one_of: &[],
    keys: &[
        COMMAND,
        METRICS,
        &[
            key(
                "holdout",
                Shape::RelativePath,
                "The file with the rows, `$REFIT_HOLDOUT`: one that a `fetch` step wrote, else one of the candidate's files.",
            ),
            key(
                "from",
                Shape::Name,
                "The step whose files are the candidate; the last one that has some when absent.",
            ),
        ],
    ],
};

pub(super) static SHADOW: Object = Object {
    name: "shadow",
    doc: "A predict command, run on the candidate and on the champion; at least `for`, then until `until`, at most `at_most`.",
    one_of: &[],
    keys: &[
        COMMAND,
        &[
            key(
                "from",
                Shape::Object(&SOURCE),
                "Where the rows come from, with the columns `id`, `at`, `actual` and perhaps `block`.",
            )
            .required(),
            key("every", Shape::Duration, "How often new rows are looked for; 1h when absent."),
        ],
        WAITS,
    ],
};
