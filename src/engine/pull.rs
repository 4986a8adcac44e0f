//! Fetches what the app does not push, before a look and by whoever took it.
//!
//! A page and the position after it are one commit, and only one process's page
//! is kept, so that a death or a second process neither loses nor doubles a
//! request. A source that cannot be read is no evidence and no verdict: it is
//! asked again at the next look, and people hear of it once.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::Engine;
use crate::adapter::{AdapterError, EvidenceSource};
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, HISTORY};
use crate::domain::pull::{Page, PullProblem, PullState, PulledBatch, Wanted};
use crate::domain::workflow::evidence::Pull;
use crate::evidence::{Place, fingerprint, source};
use crate::store::{Notice, StoreError};

/// Pages of one look; the next look goes on.
const PAGES: usize = 50;
/// A look does not wait longer, so that other canaries are not left alone.
const PATIENCE: Duration = Duration::from_secs(20);
/// A source that is away for less says nothing: it may be restarted just then.
const TOLD_AFTER: TimeDelta = TimeDelta::minutes(10);
/// Said of a source whose pages do not come to an end.
const ENDLESS: &str = "its pages do not come to an end: every answer says that there is another";
/// An app's clock is believed this far ahead.
const AHEAD: TimeDelta = TimeDelta::minutes(1);

impl Engine {
    /// Fetches what is new since the last look; whether there is more, so that nothing can be concluded yet.
    pub(super) async fn pull(&self, canary: &CanaryRecord, now: Timestamp) -> Result<bool, StoreError> {
        let run = match self.store.run(canary.run).await {
            Ok(Some(run)) => run,
            Ok(None) => return Ok(false),
            Err(away @ StoreError::Away(_)) => return Err(away),
            // What the app sent by itself is judged all the same.
            Err(error) => {
                tracing::error!(canary.id = %canary.id, run.id = %canary.run,
                    "Nothing is fetched for the canary of run {}, which cannot be read: {error}", canary.run);
                return Ok(false);
            }
        };
        let Ok(workflow) = self.workflow(&run.definition) else { return Ok(false) };
        let Some(pull) = &workflow.evidence else { return Ok(false) };
        let known = self.store.pulls(Some(&canary.model)).await?;
        let known = known.into_iter().find(|known| known.source == pull.word()).map(|known| known.state);
        let mut state = known.unwrap_or_default().of_definition(fingerprint(pull.definition()));
        if state.endless {
            // The minutes of the last look were looked at: what comes for them now is late.
            state.session = None;
        }
        let mut fetching =
            Fetching { engine: self, canary, pull, now, state, brought: false, repeats: false };
        let place =
            Place { project: &self.project, secrets: &self.services.secrets, http: &self.services.http };
        let fetched = match source(pull, place) {
            Ok(source) => fetching.pages(source.as_ref()).await?,
            Err(error) => Fetched::Failed(error),
        };
        match fetched {
            Fetched::All => Ok(false),
            Fetched::More => Ok(!fetching.state.endless),
            Fetched::Failed(error) => fetching.failed(&error).await,
        }
    }
}

/// What became of a fetch.
enum Fetched {
    /// Nothing is left.
    All,
    More,
    Failed(AdapterError),
}

struct Fetching<'a> {
    engine: &'a Engine,
    canary: &'a CanaryRecord,
    pull: &'a Pull,
    now: Timestamp,
    state: PullState,
    /// A page of this look had a request that was not known.
    brought: bool,
    /// A page had only requests that this look had read before.
    repeats: bool,
}

impl Fetching<'_> {
    async fn pages(&mut self, source: &dyn EvidenceSource) -> Result<Fetched, StoreError> {
        let end = Instant::now() + PATIENCE;
        for page in 0..PAGES {
            let wanted = self.wanted();
            let read = match timeout_at(end, source.read(&wanted)).await {
                Ok(Ok(read)) => read,
                Ok(Err(error)) => return Ok(Fetched::Failed(error)),
                Err(_) if page > 0 => return Ok(Fetched::More),
                Err(_) => {
                    return Ok(Fetched::Failed(AdapterError::Unavailable {
                        service: format!("the evidence source `{}`", self.pull.word()),
                        cause: format!("no answer within {PATIENCE:?}"),
                        retry_after: None,
                    }));
                }
            };
            let more = read.more;
            if !self.keep(read).await? {
                // Another process reads; what it has so far may be a part.
                return Ok(Fetched::More);
            }
            if !more {
                return Ok(Fetched::All);
            }
            if self.repeats && self.state.endless {
                break;
            }
        }
        Ok(Fetched::More)
    }

    fn overlap(&self) -> TimeDelta {
        TimeDelta::from_std(self.pull.overlap()).unwrap_or(TimeDelta::zero())
    }

    fn wanted(&self) -> Wanted {
        let first = self.canary.started_at - HISTORY;
        let PullState { through, cursor, .. } = &self.state;
        Wanted {
            since: through.map_or(first, |through| first.max(through - self.overlap())),
            until: self.now + AHEAD,
            through: *through,
            cursor: cursor.clone(),
            now: self.now,
        }
    }

    /// Keeps a page; false when another process read meanwhile.
    async fn keep(&mut self, page: Page) -> Result<bool, StoreError> {
        let mut after = self.state.clone();
        after.through = page.through.max(after.through);
        after.cursor = page.cursor;
        after.report.read_at = Some(self.now);
        after.report.refused += page.refused;
        after.report.refusal = page.refusal.or(after.report.refusal);
        after.more_since = page.more.then(|| self.state.more_since.unwrap_or(self.now));
        let too_long = after.more_since.is_some_and(|since| self.now - since >= TOLD_AFTER);
        after.endless = page.more && (self.state.endless || self.repeats || too_long);
        after.refuse_untimed(page.untimed);
        let problem = page.problem.or_else(|| after.endless.then(|| ENDLESS.to_owned()));
        after.report.problem = match problem {
            Some(text) => self.problem(text, true).await?,
            None => None,
        };
        // Older ones may be read again for good reasons.
        let unread = |at: Timestamp| self.state.through.is_none_or(|through| at > through);
        let beyond = page.observations.iter().any(|observation| unread(observation.at));
        let forget_before = after.through.map(|through| through - self.overlap());
        let batch = PulledBatch {
            model: self.canary.model.clone(),
            source: self.pull.word(),
            after,
            observations: page.observations,
            minutes: page.minutes,
            more: page.more,
            forget_before,
            at: self.now,
        };
        let kept = self.engine.store.keep_pulled(&batch).await?;
        let was_kept = kept.is_some();
        let counted = kept.as_ref().map_or(0, |kept| kept.report.counted);
        let is_new = counted > self.state.report.counted;
        self.repeats = beyond && !is_new && (self.brought || self.state.endless);
        self.brought |= is_new;
        self.state = kept.unwrap_or_default();
        Ok(was_kept)
    }

    /// Keeps why nothing came. A source that is away for a moment is waited for in the middle of its pages, and until
    /// the time before the canary was read: what is frozen from it would be frozen without it.
    async fn failed(&mut self, error: &AdapterError) -> Result<bool, StoreError> {
        let text = self.engine.services.secrets.mask(&error.to_string());
        tracing::warn!(model = %self.canary.model, canary.id = %self.canary.id,
            "Evidence of `{}` could not be fetched: {text}", self.canary.model);
        let mut after = self.state.clone();
        let problem = self.problem(text, !error.is_transient()).await?;
        let waits = error.is_transient()
            && !after.endless
            && problem.as_ref().is_some_and(|problem| self.now - problem.since < TOLD_AFTER);
        if !error.is_transient() && !self.pull.goes_by_cursor() {
            // The list may be gone; what was read of it is known.
            after.cursor = None;
        }
        let begun = after.through.is_some_and(|through| through >= self.canary.started_at);
        let in_the_middle = after.session.is_some();
        after.report.problem = problem;
        let batch = PulledBatch {
            model: self.canary.model.clone(),
            source: self.pull.word(),
            after,
            observations: vec![],
            minutes: vec![],
            more: in_the_middle && waits,
            forget_before: None,
            at: self.now,
        };
        self.engine.store.keep_pulled(&batch).await?;
        Ok(waits && (!begun || in_the_middle))
    }

    /// The problem as it is kept; people are told of one that stays, once.
    async fn problem(&self, text: String, stays: bool) -> Result<Option<PullProblem>, StoreError> {
        let before = self.state.report.problem.as_ref();
        let since = before.map_or(self.now, |before| before.since);
        let mut told = before.is_some_and(|before| before.told);
        if !told && (stays || self.now - since >= TOLD_AFTER) {
            let todo = "Check the `evidence` of the workflow: `refit doctor` reads it. The canary goes on without new \
                        evidence; what is missed is read once the source answers.";
            let reason = format!("the evidence of `{}` cannot be read: {text}", self.canary.model);
            let key = format!("evidence-source/{}", since.timestamp());
            let notices: Vec<Notice> =
                self.engine.alerts(self.canary, &key, json!({"reason": reason, "todo": todo})).await?;
            self.engine.store.queue_notices(&notices, self.now).await?;
            told = true;
        }
        Ok(Some(PullProblem { since, text, told }))
    }
}
