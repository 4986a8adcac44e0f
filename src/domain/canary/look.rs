//! One look at a canary: what is new goes into the tests, and what follows
//! comes out. Rolling back is decided first, at every look, also while a human
//! is waited for and during the bake.

use chrono::TimeDelta;
use serde_json::Value;

use super::super::Timestamp;
use super::super::stats::combine::{Combined, Weighted, combine};
use super::super::verdict::Verdict;
use super::super::workflow::step::{Compare, CompareRule, OnlineMetric, Role};
use super::analysis::Analysis;
use super::news::News;
use super::rules::RuleTest;
use super::{CanaryRecord, CanaryState, words};

/// What one look came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// The canary with what the look learnt; the time of its next look is the caller's.
    pub record: CanaryRecord,
    /// What follows. The same at every look until it is done, so that one who dies in between loses nothing.
    pub decision: Decision,
    /// To be said once.
    pub notice: Option<Trouble>,
    /// To be said once, when the traffic before the canary is known: what the canary can show.
    pub forecast: Option<Foreseen>,
}

/// What a canary can show by its deadline, from the traffic before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreseen {
    /// In a sentence.
    pub sentence: String,
    /// The chance that one that is no worse passes is under 50 %.
    pub underpowered: bool,
}

/// What keeps a canary from being decided, and a person can put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No evidence comes.
    NoEvidence(String),
    /// More of the canary's truths are missing than of the stable version's.
    TruthMissing(String),
}

/// What follows from a look.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Nothing is changed.
    Continue,
    /// The next stage goes out.
    Shift {
        /// Counted from 0.
        stage: usize,
        /// Why it may, in plain words with numbers.
        reason: String,
    },
    /// The canary is taken back; during the bake, the champion before it serves again.
    RollBack {
        /// The metric that speaks against it most.
        metric: OnlineMetric,
        /// Why, in plain words with numbers.
        reason: String,
    },
    /// Its share becomes 0 and a human decides: silence, or a split that is wrong.
    StopTraffic {
        /// Why.
        reason: String,
    },
}

/// Looks at a canary. What is reported again changes nothing, and what makes no sense is no evidence.
pub fn look(record: &CanaryRecord, news: &News, now: Timestamp) -> Look {
    let mut after = record.clone();
    if !is_live(record) {
        return Look { record: after, decision: Decision::Continue, notice: None, forecast: None };
    }
    let read = Analysis::of(record).and_then(|mut analysis| {
        analysis.read(record, news, now).map_err(|error| error.to_string())?;
        Ok(analysis)
    });
    let mut analysis = match read {
        Ok(analysis) => analysis,
        Err(why) => {
            after.verdict = after.verdict.max(Verdict::Error);
            after.reason = format!("the analysis cannot go on: {why}");
            return Look { record: after, decision: Decision::Continue, notice: None, forecast: None };
        }
    };
    let was_known = Analysis::of(record).is_ok_and(|before| before.frozen);
    let underpowered = analysis.underpowered;
    let forecast = analysis.forecast.clone().filter(|_| !was_known);
    let forecast = forecast.map(|sentence| Foreseen { sentence, underpowered });
    let mut notice = None;
    let decision = if news.more {
        Decision::Continue
    } else {
        decide(&mut after, &mut analysis, news, now, &mut notice)
    };
    after.analysis = serde_json::to_value(&analysis).unwrap_or(Value::Null);
    Look { record: after, decision, notice, forecast }
}

fn is_live(record: &CanaryRecord) -> bool {
    match record.state {
        CanaryState::Watching | CanaryState::Baking => true,
        CanaryState::Promoted | CanaryState::RolledBack => false,
    }
}

/// What the evidence that was read comes to; the record keeps verdict and reason.
pub(super) fn decide(
    record: &mut CanaryRecord,
    analysis: &mut Analysis,
    news: &News,
    now: Timestamp,
    notice: &mut Option<Trouble>,
) -> Decision {
    let evidence = against(&record.rules.rules, &analysis.tests);
    if let Some((combined, index)) = evidence.filter(|(combined, _)| is_worse(&record.rules, combined)) {
        let reason = words::against(&record.rules, index, &analysis.tests, combined.log_e);
        record.verdict = Verdict::Fail;
        record.reason.clone_from(&reason);
        return Decision::RollBack { metric: record.rules.rules[index].metric, reason };
    }
    if record.state == CanaryState::Baking {
        return Decision::Continue;
    }
    if let Some(reason) = stopped(analysis) {
        record.verdict = Verdict::Error;
        record.reason.clone_from(&reason);
        let has_traffic = news.share.is_none_or(|(share, _)| share.0 > 0);
        return if has_traffic { Decision::StopTraffic { reason } } else { Decision::Continue };
    }
    if analysis.no_data(record, now) && !std::mem::replace(&mut analysis.told_no_data, true) {
        *notice = Some(Trouble::NoEvidence(words::no_data(record, analysis)));
    }
    if notice.is_none()
        && let Some(why) = words::truth_missing(record, analysis)
        && !std::mem::replace(&mut analysis.told_labels, true)
    {
        *notice = Some(Trouble::TruthMissing(why));
    }
    if record.verdict == Verdict::Pass {
        return Decision::Continue;
    }
    // An analysis that could not be made earlier goes on where it can.
    record.verdict = Verdict::Inconclusive;
    if record.deadline.is_some_and(|deadline| now >= deadline) {
        record.reason = words::deadline(record, analysis);
        if let Some(why) = incomparable(record, analysis) {
            record.verdict = Verdict::Error;
            record.reason = why;
        }
        return Decision::Continue;
    }
    advance(record, analysis, evidence.map(|(combined, _)| combined), now)
}

/// A canary that was stopped stays so; one that is silent, or far too short of its share, is stopped now.
fn stopped(analysis: &mut Analysis) -> Option<String> {
    if analysis.stopped.is_none() {
        analysis.stopped =
            analysis.silent().map(|expected| words::silent(analysis, expected)).or_else(|| {
                let short = |seen: &f64| *seen < analysis.share.fraction();
                analysis.split_wrong().filter(short).map(|seen| words::split(analysis, seen))
            });
    }
    analysis.stopped.clone()
}

/// Why the arms cannot be compared: such a canary gets no more traffic and is not promoted.
fn incomparable(record: &CanaryRecord, analysis: &Analysis) -> Option<String> {
    let split = analysis.split_wrong().map(|seen| words::split(analysis, seen));
    split.or_else(|| words::truth_missing(record, analysis))
}

/// The verdict `pass`, the next stage, or neither yet.
fn advance(
    record: &mut CanaryRecord,
    analysis: &Analysis,
    evidence: Option<Combined>,
    now: Timestamp,
) -> Decision {
    record.reason = words::so_far(record, analysis);
    let stage = record.stages.get(record.stage);
    let min_time = stage
        .map_or(TimeDelta::zero(), |stage| TimeDelta::from_std(stage.min_time).unwrap_or(TimeDelta::MAX));
    if now - record.stage_since < min_time {
        return Decision::Continue;
    }
    if let Some(why) = incomparable(record, analysis) {
        record.reason = why;
        return Decision::Continue;
    }
    if record.stage + 1 < record.stages.len() {
        // No evidence is never success, and a canary under suspicion gets no more traffic.
        if analysis.no_data(record, now) {
            record.reason = words::no_data(record, analysis);
            return Decision::Continue;
        }
        let heard = analysis.heard(record);
        let suspected = evidence.is_some_and(|combined| combined.log_e >= suspicion(&record.rules));
        if !heard || suspected {
            return Decision::Continue;
        }
        let reason = words::shift(record, analysis, evidence.map(|combined| combined.log_e));
        return Decision::Shift { stage: record.stage + 1, reason };
    }
    if is_good_enough(&record.rules, &analysis.tests) {
        record.verdict = Verdict::Pass;
        record.reason = words::pass(&record.rules, &analysis.tests);
    }
    Decision::Continue
}

/// The evidence against a canary from which it gets no more traffic: half the way to its limit.
pub(super) fn suspicion(rules: &Compare) -> f64 {
    -rules.alpha.ln() / 2.0
}

/// The evidence against the canary is at its limit: it is rolled back.
pub(super) fn is_worse(rules: &Compare, combined: &Combined) -> bool {
    combined.log_e >= -rules.alpha.ln()
}

/// Every gating rule is shown to hold; without one nothing is shown.
pub(super) fn is_good_enough(rules: &Compare, tests: &[RuleTest]) -> bool {
    let mut gating = gating(&rules.rules, tests).peekable();
    gating.peek().is_some() && gating.all(|(_, rule, test)| test.accepts(rule, rules.beta))
}

/// Rules that decide, each with its place and tests.
pub(super) fn gating<'a>(
    rules: &'a [CompareRule],
    tests: &'a [RuleTest],
) -> impl Iterator<Item = (usize, &'a CompareRule, &'a RuleTest)> {
    let all = rules.iter().zip(tests).enumerate();
    all.filter(|(_, (rule, _))| rule.role == Role::Gating).map(|(index, (rule, test))| (index, rule, test))
}

/// The weights of the gating rules: those given, made to sum to 1 when some are not or they exceed it.
pub(super) fn weights(rules: &[CompareRule]) -> Vec<f64> {
    let gating = || rules.iter().filter(|rule| rule.role == Role::Gating);
    let weight = |rule: &CompareRule| {
        rule.weight.filter(|weight| weight.is_finite() && *weight > 0.0).unwrap_or(match rule.metric {
            OnlineMetric::ErrorRate => 0.5,
            OnlineMetric::LatencySlowShare => 0.3,
            OnlineMetric::AbsError => 0.2,
        })
    };
    let sum: f64 = gating().map(weight).sum();
    let as_given = sum <= 1.0 && gating().all(|rule| rule.weight.is_some());
    gating().map(|rule| if as_given { weight(rule) } else { weight(rule) / sum }).collect()
}

/// The evidence of all gating rules against the canary, and the place of the rule that leads.
pub(super) fn against(rules: &[CompareRule], tests: &[RuleTest]) -> Option<(Combined, usize)> {
    let (indices, metrics): (Vec<_>, Vec<_>) = gating(rules, tests)
        .zip(weights(rules))
        .map(|((index, _, test), weight)| (index, Weighted { weight, log_e: test.log_e_worse() }))
        .unzip();
    let combined = combine(&metrics).ok()?;
    Some((combined, indices[combined.leading]))
}
