//! `canary minutes` writes everything a run's canary was decided on; `canary
//! replay` makes that decision again, under the same limits or others.

use std::io::BufRead;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Exit;
use super::args::{CanaryMinutes, Replay as ReplayArgs};
use super::error::{CliError, Doing};
use super::output::{Output, plain};
use super::pick::{self, short};
use super::project::Opened;
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, ERROR_HISTORY, HISTORY, Past, Ripening, Watched, limit_not_worse};
use crate::domain::evidence::{EvidenceMinute, LabelMinute, PairedError};
use crate::domain::id::VersionName;
use crate::domain::verdict::Verdict;
use crate::domain::words::counted;
use crate::domain::workflow::step::{CompareRule, OnlineMetric};
use crate::domain::workflow::units::BasisPoints;
use crate::evidence::{read_past, write_past};
use crate::store::{ReleaseAudit, Store, StoreError};

/// Rows of one page.
const PAGE: u32 = 2000;
/// Changes of a release that are read to find those of one canary.
const CHANGES: u32 = 20_000;

/// `refit canary minutes`.
pub async fn minutes(opened: &Opened, args: &CanaryMinutes) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let run = pick::run(&store, &args.run).await?;
    let reading = || format!("read the canary of run {}", run.id);
    let record = store.canary_of(run.id).await.doing(reading)?.ok_or_else(|| {
        CliError::usage(format!("run {} had no canary", short(run.id)))
            .hint("`refit run ls` lists the runs, `refit run show RUN` their steps")
    })?;
    let past = past(&store, &record).await.doing(reading)?.ok_or_else(|| {
        CliError::usage(format!("nobody looked at the canary of run {} so far", short(run.id)))
            .hint("a server looks once a minute, `refit tick` whenever it is started")
    })?;
    let mut text = vec![];
    write_past(&past, &mut text)
        .map_err(|error| CliError::new(Exit::StepFailed, format!("cannot write the canary: {error}")))?;
    opened.out.raw(&text);
    opened.out.note(&format!(
        "{} of {} beside {}; to decide over them again: refit canary minutes {} | refit canary replay -",
        counted(past.minutes.len() as u64, "minute"),
        record.version,
        record.champion,
        short(run.id),
    ));
    Ok(Exit::Ok)
}

/// Everything that looks at a canary read; none when there was no look.
async fn past(store: &Arc<dyn Store>, record: &CanaryRecord) -> Result<Option<Past>, StoreError> {
    let changes = store.release_history(&record.model, &record.target, CHANGES).await?;
    let (shares, promoted_at) = traffic(record, &changes);
    let Some(watched) = Watched::of(record, shares, promoted_at) else { return Ok(None) };
    let is_in = |at: Timestamp| record.ended_at.is_none_or(|end| at <= end);
    let versions = [record.version.clone(), record.champion.clone()];
    let (mut minutes, mut cursor) = (vec![], 0);
    loop {
        let page: Vec<EvidenceMinute> = store.evidence(&record.model, &versions, cursor, PAGE).await?;
        let Some(last) = page.last() else { break };
        cursor = last.seq;
        let wanted =
            page.into_iter().filter(|it| it.minute >= record.started_at - HISTORY && is_in(it.minute));
        minutes.extend(wanted);
    }
    minutes.sort_by_key(|minute| minute.minute);
    let needs_truth = record.rules.rules.iter().any(|rule| rule.metric == OnlineMetric::AbsError);
    let (mut pairs, mut stable_errors, mut labels) = (vec![], vec![], vec![]);
    if needs_truth {
        pairs = pairs_of(store, record, &record.version, is_in).await?;
        let before = |at| at >= record.started_at - ERROR_HISTORY && at < record.started_at;
        stable_errors = pairs_of(store, record, &record.champion, before).await?;
        labels = labels_of(store, record).await?;
    }
    Ok(Some(Past { watched, minutes, pairs, stable_errors, labels }))
}

/// Errors of `version` beside those of the champion.
async fn pairs_of(
    store: &Arc<dyn Store>,
    record: &CanaryRecord,
    version: &VersionName,
    is_wanted: impl Fn(Timestamp) -> bool,
) -> Result<Vec<PairedError>, StoreError> {
    let (mut pairs, mut cursor) = (vec![], 0);
    loop {
        let page = store.paired_errors(&record.model, version, &record.champion, cursor, PAGE).await?;
        let Some(last) = page.last() else { return Ok(pairs) };
        cursor = last.seq;
        pairs.extend(page.into_iter().filter(|pair| is_wanted(pair.at)));
    }
}

async fn labels_of(store: &Arc<dyn Store>, record: &CanaryRecord) -> Result<Vec<LabelMinute>, StoreError> {
    let wanted = Ripening {
        read: 0,
        after: None,
        until: Timestamp::MIN_UTC,
        minutes: (record.started_at, record.ended_at.unwrap_or(record.next_look_at)),
    };
    Ok(store.ripe(&record.model, &record.version, &record.champion, &wanted, 1).await?.minutes)
}

/// Shares that the canary was given after its first one, and when everybody was; `changes` of its release, newest first.
fn traffic(
    record: &CanaryRecord,
    changes: &[ReleaseAudit],
) -> (Vec<(Timestamp, BasisPoints)>, Option<Timestamp>) {
    let share = |change: &ReleaseAudit| {
        let canary = change.assignment.canary.as_ref()?;
        (canary.served.version == record.version).then_some(canary.basis_points)
    };
    let changes: Vec<&ReleaseAudit> = changes.iter().rev().collect();
    let Some(known) = changes.iter().position(|change| change.generation == record.generation) else {
        return (vec![], None);
    };
    let first = changes[..=known].iter().rposition(|change| share(change).is_none()).map_or(0, |at| at + 1);
    let (mut shares, mut current) = (vec![], None);
    for change in &changes[first..] {
        let Some(share) = share(change) else {
            let serves = change.assignment.champion.as_ref().map(|served| &served.version);
            let promoted = change.assignment.canary.is_none() && serves == Some(&record.version);
            return (shares, promoted.then_some(change.at));
        };
        if current.replace(share).is_some_and(|before| before != share) {
            shares.push((change.at, share));
        }
    }
    (shares, None)
}

/// The decision over a canary that was recorded, made again.
pub fn replay(input: impl BufRead, args: &ReplayArgs, name: &str, out: Output) -> Result<Exit, CliError> {
    let mut past = read_past(input).map_err(|error| {
        CliError::usage(format!("cannot replay {name}: line {}: {}", error.line, error.error))
            .hint("nothing is decided; `refit canary minutes RUN` writes the lines")
    })?;
    if args.phi.is_some() || args.levels.min_table.is_some() {
        return Err(CliError::usage(
            "cannot replay: --phi and --min-table are for minutes of your own: a recorded canary has what it learnt",
        )
        .hint("--alpha, --beta, --margin and --acceptable-below are other limits for it"));
    }
    let limits = &mut past.watched.canary.rules;
    limits.alpha = args.levels.alpha.unwrap_or(limits.alpha);
    limits.beta = args.levels.beta.unwrap_or(limits.beta);
    let is_of_errors = |rule: &&mut CompareRule| rule.metric == OnlineMetric::ErrorRate;
    let asked = args.levels.margin.is_some() || args.acceptable_below.is_some();
    if asked && limits.rules.iter().all(|rule| rule.metric != OnlineMetric::ErrorRate) {
        return Err(CliError::usage("cannot replay: this canary had no rule on the error rate")
            .hint("--margin and --acceptable-below are of that rule; --alpha and --beta are of all"));
    }
    for rule in limits.rules.iter_mut().filter(is_of_errors) {
        rule.margin = args.levels.margin.unwrap_or(rule.margin);
        rule.acceptable_below = args.acceptable_below.or(rule.acceptable_below);
    }
    let (mut decided_at, mut verdict, mut shown) = (Value::Null, Verdict::Inconclusive, 0_u64);
    let last = past.look_again(|again| {
        if again.canary.verdict != verdict {
            verdict = again.canary.verdict;
            decided_at = json!(again.at);
        }
        if let Some(evidence) = again.evidence().filter(|_| again.is_news) {
            let mut line = json!({"t": again.at});
            let evidence = serde_json::to_value(evidence).map_err(|error| error.to_string())?;
            if let (Some(line), Value::Object(evidence)) = (line.as_object_mut(), evidence) {
                line.extend(evidence);
            }
            out.line(&line.to_string());
            shown += 1;
        }
        Ok(())
    });
    let failed = |why: String| CliError::new(Exit::StepFailed, format!("cannot replay {name}: {why}"));
    let last = last.map_err(failed)?.ok_or_else(|| failed("it ended before anybody looked".to_owned()))?;
    let (rules, recorded) = (&past.watched.canary.rules, &past.watched.canary);
    let evidence = last.evidence().map(serde_json::to_value).transpose();
    let evidence = evidence.map_err(|error| failed(error.to_string()))?.unwrap_or_default();
    let (decision, words) = super::canary::decision(verdict);
    let same = verdict == recorded.verdict;
    out.line(
        &json!({
            "decision": decision, "verdict": verdict, "decided_at": decided_at, "minutes": shown,
            "reason": last.canary.reason, "alpha": rules.alpha, "beta": rules.beta,
            "limit_worse": -rules.alpha.ln(), "limit_ni": rules.rules.first().map(|rule| limit_not_worse(rule, rules.beta)),
            "margin": rules.rules.first().map(|rule| rule.margin),
            "log_e_worse": evidence["log_e_worse"], "log_e_ni": evidence["log_e_ni"],
            "interval": evidence["interval"],
            "recorded": {"verdict": recorded.verdict, "reason": recorded.reason}, "same": same,
        })
        .to_string(),
    );
    out.note(&format!("{words}: {}", plain(&last.canary.reason)));
    out.note(&if same {
        "the same was concluded when it was out".to_owned()
    } else {
        let (_, words) = super::canary::decision(recorded.verdict);
        format!("when it was out: {words}: {}", plain(&recorded.reason))
    });
    Ok(Exit::Ok)
}
