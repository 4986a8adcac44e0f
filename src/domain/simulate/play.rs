//! One policy, week by week: what it decides, and whose predictions are served.

use std::collections::VecDeque;

use chrono::TimeDelta;
use serde::Serialize;

use super::super::Timestamp;
use super::super::canary::{MinTable, Replay};
use super::super::gate::{self, Champion, Evidence};
use super::super::release::bucket;
use super::super::stats::InvalidInput;
use super::super::verdict::Verdict;
use super::super::workflow::step::{OnInconclusive, OnInconclusiveGate};
use super::policy::{Canary, Policy, Rule, why};
use super::{Missing, Past, Setting, Week};

/// Weeks of the champion's errors before a canary that its scale is learnt from.
const HISTORY: usize = 4;

/// Sums of parts of weeks are compared up to this.
const ALMOST: f64 = 1e-9;

/// What a policy came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Played {
    /// The policy.
    pub policy: String,
    /// Its decisions, oldest first.
    pub decisions: Vec<Decided>,
    /// Rows that were served, and the sum of their absolute errors.
    pub rows: usize,
    /// As above.
    pub error: f64,
}

/// What became of one candidate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decided {
    /// The candidate: the day after the week it was trained on.
    pub candidate: String,
    /// The champion it competed with.
    pub champion: String,
    /// What became of it.
    pub ending: Ending,
    /// Why.
    pub reason: String,
    /// Weeks from its training to the decision.
    pub weeks: f64,
    /// How much smaller its errors were in the weeks that followed, as a part of the champion's; none when no
    /// week followed.
    pub improvement: Option<f64>,
}

/// How a candidate ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It serves everybody.
    Promoted,
    /// The data check or the gate refused it.
    Rejected,
    /// Its canary was taken back.
    RolledBack,
    /// Its canary did not decide, and nobody did.
    Held,
    /// The weeks were over before it was decided.
    Open,
}

/// A canary that is out.
struct Out {
    candidate: Week,
    replay: Replay,
    weeks: f64,
    /// Blocks that were served and whose truth is not old enough: when it will be, in its weeks, and the mean errors.
    waiting: VecDeque<(f64, (f64, f64))>,
    /// Its verdict was a pass before its least time was over.
    passed: bool,
    undecided: bool,
}

struct Game<'p> {
    past: &'p Past,
    setting: Setting,
    champion: Week,
    out: Option<Out>,
    played: Played,
}

/// Why a policy cannot be played to its end.
#[derive(Debug, Clone, PartialEq)]
pub enum Stopped {
    /// Scores are missing.
    Missing(Missing),
    /// Errors that are none, or a rule without meaning.
    Invalid(InvalidInput),
}

impl From<Missing> for Stopped {
    fn from(missing: Missing) -> Self {
        Self::Missing(missing)
    }
}

impl From<InvalidInput> for Stopped {
    fn from(error: InvalidInput) -> Self {
        Self::Invalid(error)
    }
}

/// Plays `policy` through all weeks.
///
/// # Errors
/// Scores that are missing; errors that are not numbers.
pub fn play(policy: &Policy, past: &Past, setting: Setting) -> Result<Played, Stopped> {
    let played = Played { policy: policy.name.clone(), decisions: vec![], rows: 0, error: 0.0 };
    let Some(first) = past.first() else { return Ok(played) };
    let mut game = Game { past, setting, champion: first, out: None, played };
    for week in first + 1..past.weeks.len() {
        let candidate = week - 1;
        if candidate > first && game.out.is_none() {
            game.retrained(&policy.rule, candidate)?;
        }
        game.serve(&policy.rule, week)?;
    }
    if let Some(out) = game.out.take() {
        game.ended(out.candidate, Ending::Open, out.replay.reason(), out.weeks)?;
    }
    Ok(game.played)
}

impl Game<'_> {
    /// Weeks that tell whether `candidate` was better.
    fn judges(&self, candidate: Week) -> std::ops::Range<Week> {
        candidate + 1..(candidate + 1 + self.setting.horizon).min(self.past.weeks.len())
    }

    fn improvement(&self, candidate: Week) -> Result<Option<f64>, Missing> {
        let weeks = self.judges(candidate);
        self.past.need(weeks.clone().flat_map(|week| [(week, candidate), (week, self.champion)]))?;
        Ok(self.past.improvement(candidate, self.champion, weeks))
    }

    fn ended(&mut self, candidate: Week, ending: Ending, reason: String, weeks: f64) -> Result<(), Missing> {
        let name = |week: Week| self.past.weeks[week].name.clone();
        let improvement = self.improvement(candidate)?;
        let (candidate_name, champion) = (name(candidate), name(self.champion));
        let decided = Decided { candidate: candidate_name, champion, ending, reason, weeks, improvement };
        self.played.decisions.push(decided);
        if ending == Ending::Promoted {
            self.champion = candidate;
        }
        Ok(())
    }

    /// A new model is there, and no canary is out.
    fn retrained(&mut self, rule: &Rule, candidate: Week) -> Result<(), Stopped> {
        let week = &self.past.weeks[candidate];
        let Some(metrics) = &week.trained else { return Ok(()) };
        if let Some(refused) = &week.refused {
            self.ended(candidate, Ending::Rejected, refused.clone(), 0.0)?;
            return Ok(());
        }
        let (gate, canary) = match rule {
            Rule::Always => (None, None),
            Rule::Never => {
                self.ended(candidate, Ending::Rejected, "never".to_owned(), 0.0)?;
                return Ok(());
            }
            Rule::Hindsight => {
                let better = self.improvement(candidate)?.is_some_and(|improvement| improvement > 0.0);
                let ending = if better { Ending::Promoted } else { Ending::Rejected };
                self.ended(candidate, ending, "the weeks that followed".to_owned(), 0.0)?;
                return Ok(());
            }
            Rule::Checks { gate, canary } => (gate.as_ref(), canary.as_ref()),
        };
        if let Some((rules, on_inconclusive)) = gate {
            self.past.need([(candidate, self.champion)])?;
            let scores = self.past.scores.get(&(candidate, self.champion));
            let stored = self.past.weeks[self.champion].trained.as_ref();
            let evidence = Evidence {
                candidate: metrics,
                champion: Champion::Serves {
                    stored,
                    evaluated: scores.and_then(|scores| scores.champion.as_ref()),
                },
                holdout: scores.map(|scores| &scores.holdout),
                better: &self.past.better,
                seed: candidate as u64,
            };
            let results = gate::judge(rules, &evidence);
            let goes_on = match gate::verdict(&results, false) {
                Verdict::Pass => true,
                Verdict::Inconclusive => *on_inconclusive == OnInconclusiveGate::Continue,
                Verdict::Fail | Verdict::Error => false,
            };
            if !goes_on {
                self.ended(candidate, Ending::Rejected, why(&results), 0.0)?;
                return Ok(());
            }
        }
        match canary {
            None => self.ended(candidate, Ending::Promoted, "it passed".to_owned(), 0.0)?,
            Some(canary) => self.out = Some(self.went_out(canary, candidate)?),
        }
        Ok(())
    }

    fn went_out(&self, canary: &Canary, candidate: Week) -> Result<Out, Stopped> {
        let (champion, start, delay) = (self.champion, (candidate + 1) as f64, canary.truth_after());
        let first = (candidate + 1).saturating_sub(HISTORY + delay.ceil() as usize);
        let history = (champion + 1).max(first)..=candidate;
        self.past.need(history.clone().map(|week| (week, champion)))?;
        let mut replay = Replay::new(canary.compare.clone(), MinTable::default(), None)?.without_interval();
        for (week, scores) in
            history.filter_map(|week| Some((week, self.past.scores.get(&(week, champion))?)))
        {
            for (place, block) in scores.blocks.iter().enumerate() {
                let ended = week as f64 + (place + 1) as f64 / scores.blocks.len() as f64;
                let known = ended + delay;
                if known <= start + ALMOST && known > start - HISTORY as f64 + ALMOST {
                    replay.learn_block(block.mean());
                }
            }
        }
        Ok(Out { candidate, replay, weeks: 0.0, waiting: VecDeque::new(), passed: false, undecided: false })
    }

    /// The week is served, block after block, and its truth arrives.
    fn serve(&mut self, rule: &Rule, week: Week) -> Result<(), Stopped> {
        let candidate = self.out.as_ref().map(|out| out.candidate);
        self.past.need([Some(self.champion), candidate].into_iter().flatten().map(|model| (week, model)))?;
        let past = self.past;
        let blocks = past.scores.get(&(week, self.champion)).map_or(0, |scores| scores.blocks.len());
        for place in 0..blocks {
            let errors =
                |model: Week| past.scores.get(&(week, model)).and_then(|scores| scores.blocks.get(place));
            let Some(stable) = errors(self.champion) else { continue };
            let out = self.out.as_ref().and_then(|out| errors(out.candidate));
            let share = match rule {
                Rule::Checks { canary: Some(canary), .. } => canary.share,
                Rule::Checks { canary: None, .. } | Rule::Always | Rule::Never | Rule::Hindsight => 0.0,
            };
            // The same sticky bucket that clients route by; the row stands for its unit.
            let salt = &past.weeks[week].name;
            for (row, error) in stable.errors.iter().enumerate() {
                let unit = format!("{}/{row}", stable.name);
                let own = out.filter(|_| f64::from(bucket(salt, &unit)) < share * 10_000.0);
                self.played.error += own.and_then(|block| block.errors.get(row)).unwrap_or(error);
            }
            self.played.rows += stable.errors.len();
            if let (Some(block), Rule::Checks { canary: Some(canary), .. }) = (out, rule) {
                let means = (block.mean(), stable.mean());
                self.bet(canary, means, 1.0 / blocks as f64, week)?;
            }
        }
        Ok(())
    }

    /// One block was served; the truths of those before it come of age.
    fn bet(&mut self, canary: &Canary, means: (f64, f64), lasted: f64, week: Week) -> Result<(), Stopped> {
        let Some(mut out) = self.out.take() else { return Ok(()) };
        out.weeks += lasted;
        let at = Timestamp::UNIX_EPOCH + TimeDelta::weeks(week as i64);
        out.waiting.push_back((out.weeks + canary.truth_after(), means));
        let mut verdict = out.replay.verdict();
        while let Some((_, means)) = out.waiting.pop_front_if(|(due, _)| *due <= out.weeks + ALMOST)
            && verdict != Verdict::Fail
        {
            verdict = out.replay.block(at, means)?;
            // What passes after its time is over was undecided.
            out.passed |= verdict == Verdict::Pass && !out.undecided;
        }
        let over = out.weeks + ALMOST >= canary.at_most;
        let ripe = if canary.early { out.weeks + ALMOST >= canary.at_least } else { over };
        let ending = if verdict == Verdict::Fail {
            Some(Ending::RolledBack)
        } else if out.passed && ripe {
            Some(Ending::Promoted)
        } else if over {
            self.inconclusive(canary, &mut out)
        } else {
            None
        };
        match ending {
            Some(ending) => {
                let reason = out.replay.reason();
                self.ended(out.candidate, ending, reason, out.weeks)?;
            }
            None => self.out = Some(out),
        }
        Ok(())
    }

    fn inconclusive(&self, canary: &Canary, out: &mut Out) -> Option<Ending> {
        out.undecided = true;
        match canary.compare.on_inconclusive {
            OnInconclusive::Promote => Some(Ending::Promoted),
            OnInconclusive::RollBack => Some(Ending::RolledBack),
            OnInconclusive::Hold => {
                let held = canary.compare.hold_for.as_secs_f64() / (7.0 * 86_400.0);
                (out.weeks + ALMOST >= canary.at_most + held).then_some(Ending::Held)
            }
        }
    }
}
