//! What a step does: one function per kind, and the checks that one step shows.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use super::decode::recipients;
use super::diagnostic::Diagnostic;
use super::node::Node;
use super::shape;
use super::step::{
    Approve, Canary, Compare, CompareRule, Evaluate, Expectations, Fetch, Gate, GateRule, Http, Limits,
    Margin, Newest, Notify, OnlineMetric, Outputs, Promote, Publish, Rollback, RowBounds, Run, Shadow,
    Source, Stage, StdoutMetric, StepKind, VsChampion, Wait, WhenUnderpowered,
};
use super::units::{self, BasisPoints, format_duration};
use crate::domain::id::MetricName;

const GRACE: Duration = Duration::from_secs(10);
const HOLD_FOR: Duration = Duration::from_secs(6 * 86_400);
/// How often a shadow step looks for new rows, and how often it may.
const EVERY: Duration = Duration::from_secs(3600);
const LOOK: Duration = Duration::from_secs(60);
const ALPHA: f64 = 0.02;
const BETA: f64 = 0.05;

/// `run`, or the word after `uses:`.
pub(super) fn kind_word(node: &Node) -> Option<&str> {
    if node.get("run").is_some() { Some("run") } else { node.get("uses")?.text() }
}

/// What a step does. What its shapes do not allow was reported and reads as
/// absent here, so a check asks whether a key was given, never whether it was
/// understood. `None` when something required cannot be read.
pub(super) fn kind(
    node: &Node,
    files: &BTreeMap<String, String>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<StepKind> {
    let empty = Node { at: node.at, content: super::node::Content::Null };
    let with = node.get("with").unwrap_or(&empty);
    Some(match kind_word(node)? {
        "run" => StepKind::Run(run(node, diagnostics)?),
        "fetch" => StepKind::Fetch(Fetch {
            from: source(with.get("from")?, files, diagnostics)?,
            to: with.text_of("to")?,
            expect: node.get("expect").map(|expect| expectations(expect, diagnostics)).unwrap_or_default(),
        }),
        "evaluate" => StepKind::Evaluate(Evaluate {
            command: run(with, diagnostics)?,
            from: with.parsed("from"),
            holdout: with.text_of("holdout"),
        }),
        "gate" => StepKind::Gate(Gate {
            first_version: with.word_or_default("first_version"),
            inconclusive: with.word_or_default("inconclusive"),
            rules: with.items("rules").iter().filter_map(|rule| gate_rule(rule, diagnostics)).collect(),
        }),
        "publish" => StepKind::Publish(Publish {
            store: with.parsed("store")?,
            version: with.word_or_default("version"),
            from: with.parsed("from"),
            keep_latest: with.get("keep").and_then(|keep| keep.parsed("latest")),
        }),
        "canary" => StepKind::Canary(canary(with, diagnostics)?),
        "wait" => StepKind::Wait(wait(with, diagnostics)),
        "shadow" => StepKind::Shadow(Shadow {
            command: run(with, diagnostics)?,
            rows: source(with.get("from")?, files, diagnostics)?,
            every: every(with, diagnostics),
            wait: wait(with, diagnostics),
        }),
        "approve" => StepKind::Approve(Approve {
            message: with.template("message"),
            at_most: with.duration("at_most"),
        }),
        "compare" => StepKind::Compare(compare(with, diagnostics)?),
        "promote" => {
            StepKind::Promote(Promote { target: with.parsed("target"), bake: with.duration("bake") })
        }
        "rollback" => {
            StepKind::Rollback(Rollback { target: with.parsed("target")?, to: with.template("to") })
        }
        "notify" => StepKind::Notify(Notify {
            to: recipients(with, diagnostics),
            subject: with.template("subject")?,
            message: with.template("message")?,
        }),
        "http" => StepKind::Http(Http {
            method: with.text_of("method").unwrap_or_else(|| "GET".to_owned()),
            url: with.template("url")?,
            headers: with.templates("headers"),
            body: with.template("body"),
            expect: with.items("expect").iter().filter_map(Node::parse).collect(),
        }),
        _ => return None,
    })
}

fn source(
    node: &Node,
    files: &BTreeMap<String, String>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<Source> {
    if let Some(file) = node.template("file") {
        return Some(Source::File { path: file });
    }
    if let Some(http) = node.get("http") {
        return Some(Source::Http { url: http.template("url")?, headers: http.templates("headers") });
    }
    if let Some(postgres) = node.get("postgres") {
        return Some(Source::Postgres {
            url: postgres.template("url")?,
            query: query(postgres, files, diagnostics)?,
        });
    }
    let sqlite = node.get("sqlite")?;
    Some(Source::Sqlite { path: sqlite.template("path")?, query: query(sqlite, files, diagnostics)? })
}

pub(super) fn query(
    node: &Node,
    files: &BTreeMap<String, String>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<String> {
    let Some(file) = node.get("query_file") else { return node.text_of("query") };
    let path = file.text()?;
    match files.get(path) {
        Some(text) if !text.trim().is_empty() => Some(text.clone()),
        Some(_) => {
            diagnostics.push(Diagnostic::error(file.at, format!("`{path}` is empty")));
            None
        }
        None if shape::relative(path).is_err() => None,
        None => {
            let diagnostic = Diagnostic::error(file.at, format!("`{path}` cannot be read"));
            diagnostics.push(diagnostic.hint("paths are relative to the project, not to this file"));
            None
        }
    }
}

fn expectations(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Expectations {
    let rows = node.get("rows");
    let share = |rows: &Node| rows.get("vs_previous")?.percent("min");
    let bounds = RowBounds {
        min: rows.and_then(|rows| rows.parsed("min")),
        max: rows.and_then(|rows| rows.parsed("max")),
        min_vs_previous: rows.and_then(share),
    };
    if let (Some(rows), Some(min), Some(max)) = (rows, bounds.min, bounds.max)
        && min > max
    {
        diagnostics.push(Diagnostic::error(rows.at, "`min` rows are more than `max` rows"));
    }
    for (column, rate) in node.pairs("null_rate") {
        if rate.as_percent().is_some_and(|rate| !(0.0..=1.0).contains(&rate)) {
            diagnostics
                .push(Diagnostic::error(rate.at, format!("the null rate of `{column}` is from 0% to 100%")));
        }
    }
    let newest = node.get("newest").and_then(|newest| {
        let (column, max_age) = (newest.text_of("column")?, newest.duration("max_age")?);
        Some(Newest { column, max_age, on_stale: newest.word_or_default("on_stale") })
    });
    let columns = node.pairs("columns").filter_map(|(name, kind)| Some((name.to_owned(), kind.as_word()?)));
    let null_rate =
        node.pairs("null_rate").filter_map(|(name, rate)| Some((name.to_owned(), rate.as_percent()?)));
    Expectations {
        columns: columns.collect(),
        rows: bounds,
        newest,
        null_rate: null_rate.collect(),
        unique: node.items("unique").iter().filter_map(|column| column.text().map(str::to_owned)).collect(),
    }
}

fn run(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Option<Run> {
    for (name, value) in node.pairs("env") {
        let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !valid {
            diagnostics
                .push(Diagnostic::error(value.at, format!("`{name}` cannot be an environment variable")));
        } else if name.starts_with("REFIT_") {
            let diagnostic = Diagnostic::error(value.at, format!("`{name}` is refit's own"));
            diagnostics.push(diagnostic.hint("names that begin with `REFIT_` are set by refit"));
        }
    }
    let metrics = node.get("metrics");
    let mut stdout_metrics = BTreeMap::new();
    for (name, metric) in metrics.into_iter().flat_map(|metrics| metrics.pairs("stdout")) {
        match MetricName::from_str(name) {
            Ok(name) => {
                let pattern = metric.get("pattern").and_then(Node::text);
                if let Some(pattern) = pattern.and_then(|text| shape::pattern(text).ok()) {
                    stdout_metrics.insert(name, StdoutMetric { pattern, pick: metric.word("pick") });
                }
            }
            Err(error) => diagnostics.push(Diagnostic::error(metric.at, error.to_string())),
        }
    }
    let limits = node.get("limits").map(|limits| Limits {
        memory: limits.size_of("memory"),
        log: limits.size_of("log"),
        output: limits.size_of("output"),
    });
    if let (Some(place), Some(limits)) = (node.get("limits"), limits) {
        const LEAST: u64 = 16 << 20;
        if limits.memory.is_some_and(|memory| memory < LEAST) {
            diagnostics.push(Diagnostic::error(place.at, "no command runs in less than 16MiB of memory"));
        }
    }
    let outputs = node.get("outputs").and_then(|outputs| {
        let files = outputs.text_of("files").unwrap_or_else(|| "*".to_owned());
        if files.contains('/') {
            let diagnostic = Diagnostic::error(outputs.at, "`files` is a glob over file names, without `/`");
            diagnostics.push(diagnostic.hint("put the directory into `from`"));
        }
        let (count, max_total) = (outputs.parsed("count"), outputs.size_of("max_total"));
        Some(Outputs { from: outputs.text_of("from")?, files, count, max_total })
    });
    Some(Run {
        command: node.text_of("run")?,
        working_dir: node.text_of("working_dir"),
        env: node.templates("env"),
        limits: limits.unwrap_or_default(),
        grace: node.duration("grace").unwrap_or(GRACE),
        stdout_metrics,
        metrics_file: metrics.is_some_and(|metrics| metrics.flag("file")),
        outputs,
    })
}

fn gate_rule(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Option<GateRule> {
    let rule = GateRule {
        at: node.at,
        metric: node.parsed("metric")?,
        max: node.number("max"),
        min: node.number("min"),
        vs_champion: node.get("vs").and(node.percent("worse_by_at_most")).map(|worse_by_at_most| {
            VsChampion {
                worse_by_at_most,
                confidence: node.percent("confidence"),
                stored_holdout: node.get("holdout").and_then(Node::text) == Some("stored"),
            }
        }),
        each_segment: node.get("each").is_some(),
        min_rows: node.parsed("min_rows"),
    };
    let metric = &rule.metric;
    let mut refuse =
        |message: String, hint: &str| diagnostics.push(Diagnostic::error(node.at, message).hint(hint));
    match (node.get("vs"), node.get("worse_by_at_most")) {
        (Some(_), None) => refuse(
            format!("the rule on `{metric}` does not say how much worse than the champion it may be"),
            "add `worse_by_at_most: 2%`",
        ),
        (None, Some(_)) => {
            refuse(format!("the rule on `{metric}` does not say worse than what"), "add `vs: champion`")
        }
        (None, None) if node.get("max").is_none() && node.get("min").is_none() => refuse(
            format!("the rule on `{metric}` has no limit"),
            "add `max`, `min`, or `vs: champion` with `worse_by_at_most`",
        ),
        (Some(_), Some(_)) | (None, None) => {}
    }
    if node.get("holdout").is_some() && node.get("vs").is_none() {
        refuse(
            format!("`holdout` of the rule on `{metric}` has no effect"),
            "add `vs: champion` or remove `holdout`",
        );
    }
    if let (Some(min), Some(max)) = (rule.min, rule.max)
        && min > max
    {
        refuse(format!("no `{metric}` is at least {min} and at most {max}"), "swap `min` and `max`");
    }
    Some(rule)
}

/// All the traffic: nothing is left to compare a canary with, and no freeze keeps a stage back.
const EVERYBODY: BasisPoints = BasisPoints(10_000);

fn canary(with: &Node, diagnostics: &mut Vec<Diagnostic>) -> Option<Canary> {
    let mut stages: Vec<Stage> = Vec::new();
    for node in with.items("stages") {
        let share = node.get("share").unwrap_or(node).text();
        let Some(share) = share.and_then(|text| units::parse_share(text).ok()) else { continue };
        let stage = Stage { share, min_time: node.duration("min_time").unwrap_or_default() };
        if let Some(last) = stages.last()
            && last.share >= stage.share
        {
            let written = |share: BasisPoints| format!("`{}%`", f64::from(share.0) / 100.0);
            let message = format!("a stage of {} after one of {}", written(stage.share), written(last.share));
            diagnostics
                .push(Diagnostic::error(node.at, message).hint("stages ascend, such as `[10%, 25%, 50%]`"));
        }
        if stage.share == EVERYBODY {
            diagnostics.push(
                Diagnostic::error(node.at, "a canary that gets all the traffic is no canary")
                    .hint("remove the stage; `promote` gives everybody the version"),
            );
        }
        stages.push(stage);
    }
    let (compare, max_look_gap) = (with.parsed("compare"), with.duration("max_look_gap"));
    Some(Canary { target: with.parsed("target")?, stages, compare, max_look_gap })
}

fn wait(with: &Node, diagnostics: &mut Vec<Diagnostic>) -> Wait {
    let wait = Wait {
        at_least: with.duration("for").unwrap_or_default(),
        until: with.condition("until"),
        at_most: with.duration("at_most"),
        abort_if: with.condition("abort_if"),
    };
    let mut report = |diagnostic: Diagnostic, hint: &str| diagnostics.push(diagnostic.hint(hint));
    let until = with.get("until");
    if with.get("for").is_none() && until.is_none() {
        let hint = "add `for: 24h`, or `until:` with a condition and `at_most`";
        report(Diagnostic::error(with.at, "this step waits for nothing"), hint);
    }
    match (until, wait.at_most) {
        (Some(_), None) if with.get("at_most").is_none() => {
            let message = "this step may wait for ever: `until` has no `at_most`";
            report(
                Diagnostic::warning(with.at, message),
                "add `at_most: 72h`; what is undecided then follows `on_inconclusive`",
            );
        }
        (None, Some(_)) => {
            let diagnostic = Diagnostic::warning(with.at, "`at_most` has no effect without `until`");
            report(diagnostic, "remove it, or add `until`");
        }
        (Some(_), Some(at_most)) if at_most < wait.at_least => {
            let least = format_duration(wait.at_least);
            let message = format!("`at_most: {}` is shorter than `for: {least}`", format_duration(at_most));
            report(Diagnostic::error(with.at, message), "raise `at_most`");
        }
        (Some(_), Some(_) | None) | (None, None) => {}
    }
    wait
}

fn every(with: &Node, diagnostics: &mut Vec<Diagnostic>) -> Duration {
    let every = with.duration("every").unwrap_or(EVERY);
    if let Some(place) = with.get("every").filter(|_| every < LOOK) {
        let diagnostic = Diagnostic::error(place.at, "`every` is at least a minute");
        diagnostics
            .push(diagnostic.hint("canaries are looked at every minute; what comes oftener is not seen"));
    }
    every
}

fn compare(with: &Node, diagnostics: &mut Vec<Diagnostic>) -> Option<Compare> {
    let mut rules: Vec<CompareRule> = Vec::new();
    for node in with.items("rules") {
        let Some(rule) = compare_rule(node, with, diagnostics) else { continue };
        if rules.iter().any(|other| other.metric == rule.metric) {
            let word = node.get("metric").and_then(Node::text).unwrap_or_default();
            let diagnostic = Diagnostic::error(node.at, format!("a second rule on `{word}`"));
            diagnostics.push(diagnostic.hint("one metric has one rule; make one of the two"));
        }
        rules.push(rule);
    }
    weights(with, &rules, diagnostics);
    let mut chance = |key: &str, default: f64| {
        let value = with.number(key).unwrap_or(default);
        if !(value > 0.0 && value < 0.5) {
            let place = with.get(key).map_or(with.at, |node| node.at);
            diagnostics
                .push(Diagnostic::error(place, format!("`{key}` is a probability above 0 and below 0.5")));
        }
        value
    };
    Some(Compare {
        alpha: chance("alpha", ALPHA),
        beta: chance("beta", BETA),
        rules,
        on_inconclusive: with.word_or_default("on_inconclusive"),
        when_underpowered: with.word("when_underpowered").unwrap_or(WhenUnderpowered::Hold),
        hold_for: with.duration("hold_for").unwrap_or(HOLD_FOR),
        hold_traffic: with.word_or_default("hold_traffic"),
    })
}

fn compare_rule(node: &Node, with: &Node, diagnostics: &mut Vec<Diagnostic>) -> Option<CompareRule> {
    let metric: OnlineMetric = node.word("metric")?;
    let word = node.get("metric")?.text()?;
    let margin = margin(node, metric, word, diagnostics);
    let mut bound = |key: &str| {
        let place = node.get(key)?;
        let percent = place.text()?.contains('%');
        let value = if percent { place.as_percent() } else { place.as_number() }?;
        let rate = match metric {
            OnlineMetric::ErrorRate | OnlineMetric::LatencySlowShare => true,
            OnlineMetric::AbsError => false,
        };
        if rate != percent {
            let hint =
                if rate { "write a percentage, such as `5%`" } else { "write a number in the metric's unit" };
            diagnostics
                .push(Diagnostic::error(place.at, format!("`{key}` does not fit `{word}`")).hint(hint));
        } else if value < 0.0 || (rate && value > 1.0) {
            diagnostics.push(Diagnostic::error(place.at, format!("`{key}` of `{word}` is out of range")));
        }
        Some(value)
    };
    let (acceptable_below, never_above) = (bound("acceptable_below"), bound("never_above"));
    if let (Some(floor), Some(ceiling)) = (acceptable_below, never_above)
        && floor > ceiling
    {
        let message = format!("`acceptable_below` of `{word}` is higher than its `never_above`");
        diagnostics.push(Diagnostic::error(node.at, message));
    }
    let label_horizon = node.duration("label_horizon").unwrap_or_default();
    if let Some(place) = node.get("label_horizon").filter(|_| metric != OnlineMetric::AbsError) {
        let message = format!("`label_horizon` does not fit `{word}`");
        let hint = "only `abs_error` waits for truth; a request that fails or is slow says so at once";
        diagnostics.push(Diagnostic::error(place.at, message).hint(hint));
    }
    let weight = with.get("weights").and_then(|weights| weights.number(word));
    let role = node.word_or_default("mode");
    Some(CompareRule {
        at: node.at,
        metric,
        margin,
        acceptable_below,
        never_above,
        label_horizon,
        weight,
        role,
    })
}

fn margin(node: &Node, metric: OnlineMetric, word: &str, diagnostics: &mut Vec<Diagnostic>) -> Margin {
    let usual = Margin::Ratio(Margin::usual(metric));
    let Some(place) = node.get("worse_by_at_most") else { return usual };
    if let Some(points) = place.text().and_then(|text| units::parse_points(text).ok()) {
        if metric == OnlineMetric::AbsError {
            let message = format!("`worse_by_at_most` of `{word}` is a percentage");
            let hint = "points are of rates; a prediction error has none: write one such as `10%`";
            diagnostics.push(Diagnostic::error(place.at, message).hint(hint));
        }
        return Margin::Points { points };
    }
    let Some(worse) = place.as_percent() else { return usual };
    if worse <= 0.0 {
        let message = format!("`worse_by_at_most` of `{word}` is above 0%");
        let hint = "that two versions are exactly equal can never be shown; allow a margin such as `10%`";
        diagnostics.push(Diagnostic::error(node.at, message).hint(hint));
    }
    Margin::Ratio(1.0 + worse)
}

/// `weights:` names metrics that have a rule, and shares out the whole of alpha.
fn weights(with: &Node, rules: &[CompareRule], diagnostics: &mut Vec<Diagnostic>) {
    let Some(place) = with.get("weights") else { return };
    let words: Vec<&str> =
        with.items("rules").iter().filter_map(|rule| rule.get("metric").and_then(Node::text)).collect();
    let mut sum = 0.0;
    for (name, weight) in with.pairs("weights") {
        if !words.contains(&name) {
            let diagnostic = Diagnostic::error(weight.at, format!("`{name}` has a weight but no rule"));
            diagnostics.push(diagnostic.hint(format!("rules are on: {}", words.join(", "))));
        }
        let value = weight.as_number().unwrap_or_default();
        if value <= 0.0 {
            diagnostics.push(Diagnostic::error(weight.at, format!("the weight of `{name}` is above 0")));
        }
        sum += value;
    }
    if with.pairs("weights").any(|(_, weight)| weight.as_number().is_none()) {
        return;
    }
    if rules.iter().any(|rule| rule.weight.is_none()) {
        let diagnostic = Diagnostic::error(place.at, "some rules have a weight and some have none");
        diagnostics.push(diagnostic.hint("give every metric with a rule a weight, or none"));
    } else if (sum - 1.0).abs() > 1e-6 {
        diagnostics.push(Diagnostic::error(place.at, format!("the weights add up to {sum}, not to 1")));
    }
}
