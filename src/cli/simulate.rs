//! `simulate`: which rules would have decided well in past weeks.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::NaiveTime;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Exit;
use super::args::{Simulate as Args, fraction};
use super::error::{CliError, Doing};
use super::output::{Output, is_interactive, plain, table};
use super::project::{Opened, shown};
use super::registry;
use super::signals::Interrupts;
use crate::domain::id::InstanceId;
use crate::domain::simulate::{Part, Policy, Setting, Tally, as_written, built_in};
use crate::domain::workflow::units;
use crate::simulate::{Progress, SimulateError, Simulated, Simulation};
use crate::steps::context::Services;

/// The rows at the end that nobody could choose.
const MEASURES: usize = 3;

/// `refit simulate`.
pub async fn simulate(opened: &Opened, args: &Args) -> Result<Exit, CliError> {
    let out = opened.out;
    let loaded = opened.workflow(&args.workflow)?;
    let inputs =
        crate::trigger::inputs(&loaded, &args.inputs).doing(|| format!("simulate `{}`", args.workflow))?;
    let (written, notes) = as_written(&loaded.workflow);
    let policies = match &args.policies {
        Some(file) => of_file(file, &written)?,
        None => built_in(&written),
    };
    let dir = opened.project.state().join("simulate").join(loaded.workflow.name.as_str());
    std::fs::create_dir_all(&dir)
        .map_err(|error| CliError::usage(format!("cannot make {}: {error}", dir.display())))?;
    let stop = CancellationToken::new();
    let mut interrupts = Interrupts::listen()?;
    let interrupted = stop.clone();
    tokio::spawn(async move {
        interrupts.next().await;
        interrupted.cancel();
    });
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let simulation = Simulation {
        workflow: Arc::clone(&loaded.workflow),
        definition: loaded.definition.clone(),
        inputs,
        services: Services {
            instance: InstanceId::generate(),
            stores: Arc::default(),
            targets: Arc::default(),
            secrets: opened.secrets.clone(),
            http: registry::http_client()?,
            guard: registry::guard()?,
        },
        project: opened.project.root.clone(),
        dir: dir.clone(),
        weeks: args.last,
        until: args.until.map(|day| day.and_time(NaiveTime::MIN).and_utc()),
        cuts: args.cuts.iter().cloned().collect(),
        jobs: args.jobs.unwrap_or(cores),
        stop,
    };
    let setting = Setting { horizon: args.horizon, worth: args.worth };
    let bar = Bar::new(out);
    let simulated = Arc::new(simulation).run(&policies, setting, |progress| bar.show(progress)).await;
    bar.close();
    let simulated = simulated.map_err(|error| failed(&error, &dir))?;
    for note in &notes {
        out.note(&format!("note: {note}"));
    }
    for (week, why) in &simulated.failed {
        let why = why.lines().next().unwrap_or_default();
        out.note(&format!("note: no model of {week}: {}", plain(why)));
    }
    let value = json!({
        "workflow": loaded.workflow.name, "weeks": simulated.weeks, "horizon": args.horizon, "worth": args.worth,
        "notes": notes, "failed": simulated.failed, "policies": simulated.tallies,
        "trained": simulated.trained.0, "found": simulated.trained.1,
    });
    out.result(&value, || text(&simulated, &setting));
    Ok(Exit::Ok)
}

fn failed(error: &SimulateError, dir: &Path) -> CliError {
    let told = CliError::usage(format!("cannot simulate: {error}"));
    match error {
        SimulateError::Setting(_) => told.hint("`refit simulate --help` shows what can be said"),
        SimulateError::Data(_) => {
            told.hint("the sources are read as they are today; `refit doctor` checks them")
        }
        SimulateError::Trained(_) => told.hint(format!("what is finished is kept in {}", shown(dir))),
        SimulateError::Disk { .. } => told.hint("is there space, and may you write there?"),
        SimulateError::Interrupted => CliError::new(Exit::Interrupted, error.to_string()),
    }
}

/// How many trainings are done, on a terminal.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new(out: Output) -> Self {
        let drawn = is_interactive() && !out.quiet;
        Self(drawn.then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) =
                ProgressStyle::with_template("{bar:30} {pos} of {len} trainings  {elapsed}  {msg}")
            {
                bar.set_style(style);
            }
            bar.set_message("reads the data");
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        }))
    }

    fn show(&self, progress: Progress) {
        let Some(bar) = &self.0 else { return };
        bar.set_message("");
        bar.set_length(progress.of as u64);
        bar.set_position(progress.done as u64);
    }

    fn close(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn text(simulated: &Simulated, setting: &Setting) -> String {
    let weeks = &simulated.weeks;
    let mut text = format!(
        "{} weeks, retrained from {} to {}; a promotion was good if errors were more than {} smaller over the {} weeks \
         that followed\n\n",
        weeks.len(),
        weeks.first().map_or("", String::as_str),
        weeks.last().map_or("", String::as_str),
        percent(setting.worth, false),
        setting.horizon,
    );
    text.push_str(&table(
        &[
            "POLICY",
            "GOOD",
            "BAD",
            "EVEN",
            "MISSED",
            "REFUSED",
            "ROLLED BACK",
            "HELD",
            "ERROR",
            "ALWAYS",
            "NEVER",
            "REGRET",
        ],
        simulated.tallies.iter().map(row),
    ));
    text.push_str(
        "\n\nGOOD, BAD, EVEN: versions promoted; MISSED: better ones that were not.\nERROR: mean error of all that was \
         served; ALWAYS, NEVER: against promoting every version, or none;\nREGRET: against promoting exactly the better \
         ones.",
    );
    let choices = simulated.tallies.len().saturating_sub(MEASURES);
    let best = simulated.tallies[..choices].iter().min_by(|a, b| a.regret.total_cmp(&b.regret));
    if let Some(best) = best {
        text.push_str(&format!("\n\nleast regret: {} ({})", best.policy, percent(best.regret, true)));
        let close = simulated.tallies[..choices]
            .iter()
            .filter(|tally| tally.policy != best.policy && tally.regret - best.regret < 0.002)
            .count();
        if close > 0 {
            text.push_str(&format!(
                "; {close} other{} within 0.2 points of it: these weeks do not tell them apart",
                if close == 1 { " is" } else { "s are" }
            ));
        }
    }
    text
}

fn row(tally: &Tally) -> Vec<String> {
    let counts =
        [tally.good, tally.bad, tally.even, tally.missed, tally.rejected, tally.rolled_back, tally.held];
    let mut row = vec![plain(&tally.policy)];
    row.extend(counts.map(|count| count.to_string()));
    row.push(format!("{:.3}", tally.error));
    row.extend([tally.vs_always, tally.vs_never, tally.regret].map(|against| percent(against, true)));
    row
}

fn percent(fraction: f64, signed: bool) -> String {
    // No minus in front of nothing.
    let percent = (1000.0 * fraction).round() / 10.0 + 0.0;
    if signed { format!("{percent:+.1} %") } else { format!("{percent} %") }
}

/// A file of policies.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    policy: Vec<PolicyTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyTable {
    name: String,
    worse_by_at_most: Option<String>,
    confidence: Option<String>,
    margin: Option<String>,
    alpha: Option<String>,
    at_most: Option<String>,
    gate: Option<bool>,
    canary: Option<bool>,
}

fn of_file(file: &Path, written: &Policy) -> Result<Vec<Policy>, CliError> {
    let wrong = |why: String| {
        CliError::usage(format!("cannot read {}: {why}", file.display()))
            .hint("`refit simulate --help` shows the form of policies")
    };
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let tables: PolicyFile = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let mut policies = vec![written.clone()];
    let mut names: BTreeSet<String> = policies.iter().map(|policy| policy.name.clone()).collect();
    for table in tables.policy {
        let of = |what: &str, why: String| wrong(format!("policy `{}`: {what}: {why}", table.name));
        let policy = policy(&table, written).map_err(|(what, why)| of(what, why))?;
        if !names.insert(table.name.clone()) {
            return Err(of("name", "there is another one of this name".to_owned()));
        }
        policies.push(policy);
    }
    Ok(policies)
}

fn policy(table: &PolicyTable, written: &Policy) -> Result<Policy, (&'static str, String)> {
    let mut policy = Policy { name: table.name.clone(), ..written.clone() };
    let within = |what, text: &str, low: f64, high: f64| {
        let value = fraction(text).map_err(|why| (what, why))?;
        if (low..high).contains(&value) {
            Ok(value)
        } else {
            Err((what, format!("`{text}` is not between {} % and {} %", 100.0 * low, 100.0 * high)))
        }
    };
    if let Some(text) = &table.worse_by_at_most {
        policy = policy.with_tolerance(within("worse_by_at_most", text, -1.0, 10.0)?);
    }
    if let Some(text) = &table.confidence {
        let confidence = if text == "none" { None } else { Some(within("confidence", text, 0.5, 1.0)?) };
        policy = policy.with_confidence(confidence);
    }
    if let Some(text) = &table.margin {
        policy = policy.with_margin(1.0 + within("margin", text, 0.001, 10.0)?);
    }
    if let Some(text) = &table.alpha {
        policy = policy.with_alpha(within("alpha", text, 1e-6, 0.5)?);
    }
    if let Some(text) = &table.at_most {
        let time = units::parse_duration(text).map_err(|why| ("at_most", why))?;
        policy = policy.with_time(time.as_secs_f64() / (7.0 * 86_400.0));
    }
    if table.gate == Some(false) {
        policy = policy.without(Part::Gate);
    }
    if table.canary == Some(false) {
        policy = policy.without(Part::Canary);
    }
    Ok(policy)
}
