//! What a canary was decided on, as it was kept, and the decision made from it
//! once more: by the looks that made it, minute by minute, so that stages,
//! blocks, horizons and every limit count as they did.
//!
//! Two things are not kept, so evidence that has them may come to something
//! else: when a row arrived that came after its minute was closed (it is in its
//! minute here), and when exactly each look was (here, one a minute before the
//! last one). What people did is taken over: when it was promoted, which share
//! it had.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::Timestamp;
use super::super::evidence::{EvidenceMinute, LabelMinute, PairedError};
use super::super::verdict::Verdict;
use super::super::workflow::units::BasisPoints;
use super::analysis::Analysis;
use super::labels::{Ripe, Ripening};
use super::look::{Decision, look};
use super::minutes::CLOSES_AFTER;
use super::news::News;
use super::replay::ReplayEvidence;
use super::{CanaryRecord, CanaryState};

/// The controller looks this often.
const LOOK_EVERY: TimeDelta = TimeDelta::minutes(1);

/// A canary that is out or past.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    /// The canary as it stands; its analysis is left out.
    pub canary: CanaryRecord,
    /// The last look at it.
    pub looked_at: Timestamp,
    /// The number of the last pair of errors that it read.
    pub read_to: i64,
    /// Shares of the traffic that it had after its first one, in order, each with when it was given.
    pub shares: Vec<(Timestamp, BasisPoints)>,
    /// When everybody was given to it.
    pub promoted_at: Option<Timestamp>,
}

/// A canary with everything that its looks read.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    /// The canary.
    pub watched: Watched,
    /// Minutes of both versions, from what is learnt before it on, by time.
    pub minutes: Vec<EvidenceMinute>,
    /// Pairs of errors, by number.
    pub pairs: Vec<PairedError>,
    /// Errors of the stable version before it, by number.
    pub stable_errors: Vec<PairedError>,
    /// Minutes of requests with and without truth.
    pub labels: Vec<LabelMinute>,
}

/// A look that is made again.
#[derive(Debug, Clone, PartialEq)]
pub struct Again {
    /// When.
    pub at: Timestamp,
    /// The canary after it.
    pub canary: CanaryRecord,
    /// It had something to read, or concluded something else than the one before.
    pub is_news: bool,
}

impl Again {
    /// The evidence as it stood; none when the analysis cannot go on.
    pub fn evidence(&self) -> Option<ReplayEvidence> {
        let analysis = Analysis::of(&self.canary).ok()?;
        Some(ReplayEvidence::of(&self.canary.rules, &analysis.tests, self.canary.verdict))
    }
}

impl Watched {
    /// The canary of `record`, which had these shares and was promoted then; none that nobody looked at.
    pub fn of(
        record: &CanaryRecord,
        shares: Vec<(Timestamp, BasisPoints)>,
        promoted_at: Option<Timestamp>,
    ) -> Option<Self> {
        let analysis = Analysis::of(record).ok()?;
        let (looked_at, read_to) = (analysis.looked_at?, analysis.paired_cursor);
        let canary = CanaryRecord { analysis: Value::Null, ..record.clone() };
        Some(Self { canary, looked_at, read_to, shares, promoted_at })
    }

    /// The canary before the first look.
    fn begun(&self) -> CanaryRecord {
        CanaryRecord {
            stage: 0,
            stage_since: self.canary.started_at,
            state: CanaryState::Watching,
            verdict: Verdict::Inconclusive,
            reason: String::new(),
            analysis: Value::Null,
            ended_at: None,
            ..self.canary.clone()
        }
    }

    /// When to look: once a minute back from the last look, and when it was promoted, by what was known then.
    fn looks(&self) -> BTreeSet<Timestamp> {
        let minutes = (self.looked_at - self.canary.started_at).num_seconds() / LOOK_EVERY.num_seconds();
        let looks =
            (0..=i32::try_from(minutes).unwrap_or(i32::MAX)).map(|back| self.looked_at - LOOK_EVERY * back);
        looks.chain(self.promoted_at.filter(|at| *at < self.looked_at)).collect()
    }

    /// What a look at `at` found done: a share that it decided itself was given after it.
    fn follow(&self, record: &mut CanaryRecord, at: Timestamp) -> Option<(BasisPoints, Timestamp)> {
        if self.promoted_at.is_some_and(|promoted| promoted < at) {
            record.state = CanaryState::Baking;
            return None;
        }
        let (since, share) = *self.shares.iter().rev().find(|(since, _)| *since < at)?;
        if let Some(stage) = record.stages.iter().position(|stage| stage.share == share)
            && stage > record.stage
        {
            (record.stage, record.stage_since) = (stage, since);
        }
        Some((share, since))
    }
}

impl Past {
    /// Looks again, minute by minute, until it would be rolled back or the last look was. Gives each look to `tell` and
    /// returns the last one; none when the canary ended before its first.
    pub fn look_again<E>(&self, mut tell: impl FnMut(&Again) -> Result<(), E>) -> Result<Option<Again>, E> {
        let Watched { looked_at, read_to, promoted_at, .. } = self.watched;
        let (mut record, mut last) = (self.watched.begun(), None);
        let (mut minutes, mut pairs) =
            (self.minutes.iter().zip(1..).peekable(), self.pairs.iter().peekable());
        for at in self.watched.looks() {
            let mut news = News { share: self.watched.follow(&mut record, at), ..News::default() };
            while let Some((minute, seq)) = minutes.next_if(|(minute, _)| minute.minute + CLOSES_AFTER <= at)
            {
                news.minutes.push(EvidenceMinute { seq, ..minute.clone() });
            }
            // Of those that came at the time of a look, only the last one tells which it read.
            let is_read = |pair: &&PairedError| {
                pair.at < at
                    || (pair.at == at && promoted_at == Some(at))
                    || (at == looked_at && pair.seq <= read_to)
            };
            while let Some(pair) = pairs.next_if(is_read) {
                news.pairs.push(pair.clone());
            }
            if let Ok(analysis) = Analysis::of(&record) {
                if !analysis.frozen {
                    news.stable_errors.clone_from(&self.stable_errors);
                }
                news.ripe = analysis.ripening(&record, at).map(|wanted| self.ripe(&wanted));
            }
            record.deadline = self.watched.canary.deadline_at(at);
            let before = record.verdict;
            let has_read = !news.minutes.is_empty() || !news.pairs.is_empty();
            let looked = look(&record, &news, at);
            record = looked.record;
            let again = Again { at, canary: record.clone(), is_news: has_read || record.verdict != before };
            tell(&again)?;
            last = Some(again);
            if matches!(looked.decision, Decision::RollBack { .. }) {
                break;
            }
        }
        Ok(last)
    }

    /// What came of age.
    fn ripe(&self, wanted: &Ripening) -> Ripe {
        let place = |pair: &PairedError| pair.served_at.map(|served_at| (served_at, pair.seq));
        let is_ripe = |pair: &&PairedError| {
            pair.seq <= wanted.read
                && place(pair).is_some_and(|(at, _)| at <= wanted.until)
                && place(pair) > wanted.after
        };
        let mut pairs: Vec<PairedError> = match wanted.after {
            None => vec![],
            Some(_) => self.pairs.iter().filter(is_ripe).cloned().collect(),
        };
        pairs.sort_by_key(place);
        let (from, before) = wanted.minutes;
        let minutes = self.labels.iter().filter(|it| it.minute >= from && it.minute < before);
        Ripe { pairs, through: (wanted.until, i64::MAX), minutes: minutes.cloned().collect(), before }
    }
}
