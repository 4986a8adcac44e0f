//! `canary`: what a canary can show, and what minutes decide under these or other limits.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::time::Duration;

use chrono::TimeDelta;
use serde_json::{Value, json};

use super::Exit;
use super::args::{CanaryCommand, CanaryPlan, Extend, Levels, Replay as ReplayArgs};
use super::canary_past;
use super::error::{CliError, Doing};
use super::output::{Output, plain, table, time};
use super::pick::{self, short};
use super::project::{Opened, actor};
use crate::domain::canary::{Expected, Forecast, MoreTime, Replay, limit_not_worse};
use crate::domain::verdict::Verdict;
use crate::domain::words::count;
use crate::domain::workflow::StepKind;
use crate::domain::workflow::step::{Compare, CompareRule, OnlineMetric, Role, Stage};
use crate::domain::workflow::units::{self, BasisPoints};
use crate::evidence::{BYTE_ORDER_MARK, Measured, begins_past, read_minutes};
use crate::steps::canary::compare_rules;
use crate::store::Extended;

/// Bytes that are read to see what a file holds.
const FIRST_LINE: usize = 1 << 20;

/// `refit canary …`.
pub async fn canary(
    command: &CanaryCommand,
    open: impl FnOnce() -> Result<Opened, CliError>,
    out: Output,
) -> Result<Exit, CliError> {
    match command {
        CanaryCommand::Plan(args) => plan(args, open, out),
        CanaryCommand::Extend(args) => extend(&open()?, args).await,
        CanaryCommand::Minutes(args) => canary_past::minutes(&open()?, args).await,
        CanaryCommand::Replay(args) => replay(args, out),
    }
}

/// `refit canary extend`.
async fn extend(opened: &Opened, args: &Extend) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let run = pick::run(&store, &args.run).await?;
    let asked = MoreTime {
        more: TimeDelta::from_std(args.by).unwrap_or(TimeDelta::MAX),
        by: actor(),
        reason: args.reason.clone(),
    };
    let id = short(run.id);
    let doing = || format!("give the canary of run {id} more time");
    let canary = match store.extend_canary(run.id, &asked, opened.clock.now()).await.doing(doing)? {
        Extended::Made(canary) => canary,
        Extended::Refused(why) => {
            return Err(CliError::usage(format!("cannot give the canary of run {id} more time: {why}"))
                .hint("`refit status` shows what is on canary"));
        }
        Extended::Unknown => {
            return Err(CliError::usage(format!("run {id} has no canary"))
                .hint("`refit run ls` lists the runs, `refit run show RUN` their steps"));
        }
    };
    opened.poke().await;
    let value = json!({
        "run": run.id, "canary": canary.id, "version": canary.version, "deadline": canary.deadline,
        "extension": canary.extensions.last(),
    });
    opened.out.result(&value, || {
        let until = canary.deadline.map(|at| format!(": decided at the latest {}", time(at)));
        format!(
            "the canary {} of {} has {} more{}",
            canary.version,
            canary.model,
            units::format_duration(args.by),
            until.unwrap_or_default()
        )
    });
    super::trigger::say_who_runs(opened, &store, Some(run.id)).await?;
    Ok(Exit::Ok)
}

fn open_file(file: &Path) -> Result<Box<dyn BufRead>, CliError> {
    if file.as_os_str() == "-" {
        return Ok(Box::new(BufReader::new(std::io::stdin())));
    }
    let opened = File::open(file)
        .map_err(|error| CliError::usage(format!("cannot read {}: {error}", file.display())))?;
    Ok(Box::new(BufReader::new(opened)))
}

/// One rule a metric, as a workflow that says nothing else has them; the margin and what is acceptable are those of
/// errors.
fn rules(levels: &Levels, acceptable_below: Option<f64>, measured: Measured) -> Compare {
    let metrics = [
        (true, OnlineMetric::ErrorRate),
        (measured.latency, OnlineMetric::LatencySlowShare),
        (measured.pairs, OnlineMetric::AbsError),
    ];
    let rules = metrics.into_iter().filter(|(there, _)| *there).map(|(_, metric)| {
        let rule = CompareRule::of(metric);
        let margin = levels.margin.filter(|_| metric == OnlineMetric::ErrorRate);
        let acceptable_below = acceptable_below.filter(|_| metric == OnlineMetric::ErrorRate);
        CompareRule { margin: margin.unwrap_or(rule.margin), acceptable_below, ..rule }
    });
    let defaults = Compare::without_rules();
    Compare {
        rules: rules.collect(),
        alpha: levels.alpha.unwrap_or(defaults.alpha),
        beta: levels.beta.unwrap_or(defaults.beta),
        ..defaults
    }
}

/// `refit canary replay`: the evidence is printed as it comes, the decision once every line made sense.
fn replay(args: &ReplayArgs, out: Output) -> Result<Exit, CliError> {
    let name =
        if args.file.as_os_str() == "-" { "stdin".to_owned() } else { args.file.display().to_string() };
    let mut input = open_file(&args.file)?;
    let begin =
        first_line(&mut input).map_err(|error| CliError::usage(format!("cannot read {name}: {error}")))?;
    let is_past = begins_past(&begin);
    let input = Cursor::new(begin).chain(input);
    if is_past {
        return canary_past::replay(input, args, &name, out);
    }
    let mut replay: Option<Replay> = None;
    let (mut decided_at, mut warned, mut last) = (Value::Null, false, Value::Null);
    let minutes = read_minutes(input, |line| {
        let current = match &mut replay {
            Some(replay) => replay,
            None => {
                let rules = rules(&args.levels, args.acceptable_below, line.measured);
                let min_table = args.levels.min_table.unwrap_or_default();
                replay.insert(Replay::new(rules, min_table, args.phi).map_err(|error| error.to_string())?)
            }
        };
        if let Some(field) = line.unknown.filter(|_| !std::mem::replace(&mut warned, true)) {
            out.note(&format!("note: nothing reads the field `{}`", plain(&field)));
        }
        let before = current.verdict();
        let verdict = current.minute(&line.minute).map_err(|error| error.to_string())?;
        if verdict != before {
            decided_at = line.t.clone();
        }
        let evidence = serde_json::to_value(current.evidence()).map_err(|error| error.to_string())?;
        let mut shown = json!({"t": line.t});
        if let (Some(shown), Value::Object(evidence)) = (shown.as_object_mut(), &evidence) {
            shown.extend(evidence.clone());
        }
        out.line(&shown.to_string());
        last = evidence;
        Ok(())
    });
    let minutes = minutes.map_err(|error| {
        CliError::usage(format!("cannot replay {name}: line {}: {}", error.line, error.error))
            .hint("nothing is decided; mend the line and replay the whole file")
    })?;
    let Some(replay) = replay else {
        return Err(CliError::usage("cannot replay: there are no minutes")
            .hint("`refit canary replay --help` shows their form"));
    };
    let (decision, words) = decision(replay.verdict());
    let rules = replay.rules();
    out.line(
        &json!({
            "decision": decision, "verdict": replay.verdict(), "decided_at": decided_at, "minutes": minutes,
            "reason": replay.reason(), "alpha": rules.alpha, "beta": rules.beta,
            "limit_worse": -rules.alpha.ln(), "limit_ni": rules.rules.first().map(|rule| limit_not_worse(rule, rules.beta)),
            "margin": rules.rules.first().map(|rule| rule.margin),
            "log_e_worse": last["log_e_worse"], "log_e_ni": last["log_e_ni"], "interval": last["interval"],
        })
        .to_string(),
    );
    out.note(&format!("{words}: {}", replay.reason()));
    Ok(Exit::Ok)
}

/// What follows from a verdict, as a key and in words.
pub(super) fn decision(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Fail => ("roll_back", "roll back"),
        Verdict::Pass => ("promote", "promote"),
        Verdict::Inconclusive | Verdict::Error => ("inconclusive", "inconclusive"),
    }
}

/// The first line that says something, with the empty ones before it and without a byte order mark; a part of one that
/// is too long.
fn first_line(input: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let mut text = vec![];
    while text.trim_ascii().is_empty() && text.len() < FIRST_LINE {
        let left = (FIRST_LINE - text.len()) as u64;
        if input.by_ref().take(left).read_until(b'\n', &mut text)? == 0 {
            break;
        }
        if text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len());
        }
    }
    Ok(text)
}

/// `refit canary plan`.
fn plan(
    args: &CanaryPlan,
    open: impl FnOnce() -> Result<Opened, CliError>,
    out: Output,
) -> Result<Exit, CliError> {
    let (mut rules, mut stages, mut time) = match &args.workflow {
        Some(name) => of_workflow(&open()?, name)?,
        None => (rules(&args.levels, args.acceptable_below, Measured::default()), vec![], None),
    };
    override_rules(&mut rules, args);
    if let Some(share) = args.share.or(stages.is_empty().then_some(BasisPoints(1000))) {
        let min_time = stages.first().map_or(Duration::ZERO, |stage| stage.min_time);
        stages = vec![Stage { share, min_time }];
    }
    if stages.iter().any(|stage| stage.share == BasisPoints::ALL) {
        return Err(CliError::usage(
            "cannot plan: a canary with all traffic has nothing to be compared with",
        )
        .hint("give it a smaller share"));
    }
    time = args.time.or(time);
    let hours = time.unwrap_or(Duration::from_secs(24 * 3600)).as_secs_f64() / 3600.0;
    let expected = Expected {
        requests_per_day: args.traffic,
        error_rate: args.base_rate,
        slow_share: args.slow_share,
        dispersion: args.phi.max(1.0),
    };
    let min_table = args.levels.min_table.unwrap_or_default();
    let forecast = Forecast::new(&rules, &stages, hours, expected, min_table)
        .map_err(|error| CliError::usage(format!("cannot plan: {error}")))?;
    let mut value = serde_json::to_value(&forecast).unwrap_or_default();
    if let Some(value) = value.as_object_mut() {
        value.insert("alpha".to_owned(), json!(rules.alpha));
        value.insert("beta".to_owned(), json!(rules.beta));
        value.insert("underpowered".to_owned(), json!(forecast.is_underpowered()));
        value.insert("advice".to_owned(), json!(forecast.advice()));
    }
    out.result(&value, || shown(&forecast, &rules));
    Ok(Exit::Ok)
}

/// Rules, stages and the time to decide of a workflow.
fn of_workflow(opened: &Opened, name: &str) -> Result<(Compare, Vec<Stage>, Option<Duration>), CliError> {
    let workflow = opened.workflow(name)?.workflow;
    let step = workflow.steps.iter().find_map(|step| match &step.kind {
        StepKind::Canary(canary) => Some((&step.id, canary)),
        _ => None,
    });
    let (id, canary) = step.ok_or_else(|| {
        CliError::usage(format!("cannot plan: `{name}` has no canary step"))
            .hint("leave the workflow out to plan one that is not written yet")
    })?;
    let rules = compare_rules(canary, &workflow).ok_or_else(|| {
        CliError::usage(format!(
            "cannot plan: the canary of `{name}` has no `compare` step: nothing is tested"
        ))
    })?;
    Ok((rules, canary.stages.clone(), workflow.longest_watch(id)))
}

fn override_rules(rules: &mut Compare, args: &CanaryPlan) {
    rules.alpha = args.levels.alpha.unwrap_or(rules.alpha);
    rules.beta = args.levels.beta.unwrap_or(rules.beta);
    for rule in rules.rules.iter_mut().filter(|rule| rule.metric == OnlineMetric::ErrorRate) {
        rule.margin = args.levels.margin.unwrap_or(rule.margin);
        rule.acceptable_below = args.acceptable_below.or(rule.acceptable_below);
    }
}

/// The forecast as people read it.
fn shown(forecast: &Forecast, rules: &Compare) -> String {
    let expected = &forecast.expected;
    let mut text = format!(
        "{} requests a day, {} of them errors; {} of the requests go to the canary, {} in {}\n",
        count(expected.requests_per_day.round() as u64),
        percent(expected.error_rate),
        percent(forecast.share),
        count(forecast.canary_requests.round() as u64),
        hours(forecast.hours),
    );
    if forecast.table_minutes > 1.0 {
        text.push_str(&format!(
            "a table of evidence waits for its requests for about {}\n",
            hours(forecast.table_minutes / 60.0),
        ));
    }
    if let (Some(runs), Some(precision)) = (forecast.runs, forecast.precision) {
        text.push_str(&format!(
            "played through {runs} times with such tables: chances are right to {:.0} points\n",
            100.0 * precision
        ));
    }
    text.push('\n');
    let rows = forecast.rules.iter().map(|rule| {
        let metric = match rule.metric {
            OnlineMetric::ErrorRate => "errors",
            OnlineMetric::LatencySlowShare => "slow requests",
            OnlineMetric::AbsError => "prediction error",
        };
        let detects = match (rule.role, rule.detectable_ratio) {
            (Role::Observe, _) => "-".to_owned(),
            (Role::Gating, Some(ratio)) => format!("{ratio:.2}x and more"),
            (Role::Gating, None) => "nothing".to_owned(),
        };
        let proof = rule.to_prove.map_or("never".to_owned(), |time| {
            format!("about {} requests, {}", count(time.requests.round() as u64), hours(time.minutes / 60.0))
        });
        let observes = if rule.role == Role::Observe { " (observed)" } else { "" };
        vec![
            format!("{metric}{observes}"),
            percent(rule.base_rate),
            detects,
            format!("{}: {proof}", rule.margin),
            percent(rule.chance_to_prove),
        ]
    });
    text.push_str(&table(&["METRIC", "STABLE", "ROLLED BACK WHEN", "SHOWN NOT WORSE BY", "IN TIME"], rows));
    text.push_str("\n\n");
    let within =
        |time: Option<f64>| time.map_or(String::new(), |time| format!(", 8 of 10 within {}", hours(time)));
    let equal = &forecast.equal;
    let mut rows = vec![vec![
        "is no worse".to_owned(),
        format!("passes {}{}", percent(equal.promoted), within(equal.hours)),
        format!(
            "inconclusive {}, rolled back {}{}",
            percent(equal.inconclusive),
            if forecast.simulated { "" } else { "at most " },
            percent(equal.rolled_back)
        ),
    ]];
    rows.extend(forecast.worse.iter().map(|worse| {
        let name = if worse.fails_everything {
            "fails everything".to_owned()
        } else {
            format!("has {}x the errors", worse.ratio)
        };
        vec![
            name,
            format!("rolled back {}{}", percent(worse.rolled_back), within(worse.hours)),
            String::new(),
        ]
    }));
    if forecast.rates_decide() {
        text.push_str(&table(&["A CANARY THAT", "", ""], rows));
    } else {
        text.push_str("no rule on these decides");
    }
    if forecast.needs_truth {
        text.push_str(
            "\n\nprediction errors are judged as their truth arrives, which this plan does not know",
        );
    }
    if rules.rules.is_empty() {
        text.push_str("\n\nnothing is compared, so nothing is decided");
    }
    if let Some(advice) = forecast.advice() {
        text.push_str(&format!("\n\n{advice}"));
    }
    text
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    let digits = if percent == 0.0 || percent >= 9.95 {
        0
    } else if percent >= 0.095 {
        1
    } else {
        3
    };
    format!("{percent:.digits$} %")
}

fn hours(hours: f64) -> String {
    match hours {
        ..1.0 => format!("{:.0} min", (60.0 * hours).max(1.0)),
        1.0..48.0 => format!("{hours:.1} h"),
        _ => format!("{:.1} days", hours / 24.0),
    }
}
