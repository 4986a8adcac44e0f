//! The messages that follow runs: one a run at each notifier whose messages can be rewritten. A board says where
//! its run is when it is shown, not when it was asked for: only the newest state is ever sent, and the run of one
//! board is shown by one process at a time, so an older state never comes after a newer one.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Engine, situation};
use crate::adapter::{AdapterError, NotSent};
use crate::domain::Timestamp;
use crate::domain::canary::CanaryState;
use crate::domain::id::NotifierName;
use crate::domain::pipeline::{latest, outputs, waits_for_approval};
use crate::domain::retry::RetryPolicy;
use crate::domain::run::{Attempt, AttemptState, Run, RunStatus};
use crate::domain::workflow::{Moment, Recipient, Workflow};
use crate::notify::Notifiers;
use crate::notify::closing::Closing;
use crate::notify::facts::{Facts, StepMark, StepRow};
use crate::notify::held::{Held, PATIENCE, turn_after, while_held};
use crate::notify::noted::noted;
use crate::steps::publish::PublishOutput;
use crate::steps::{headline, promote};
use crate::store::{BoardEntry, SILENT_FOR, StoreError};

/// Boards taken at once.
const BATCH: u32 = 8;
/// Boards on their way at once.
const AT_ONCE: usize = 4;
/// Nobody else takes a board meanwhile, while this process lives: a batch in rounds of `AT_ONCE`, and some.
const HOLD: Duration = Duration::from_secs(60 * 8 / 4 + 60);
/// What became of one that was being shown when its process ended.
const CUT_OFF: &str = "the process ended while it was being shown";
/// A run that goes on meanwhile is shown again so much later.
const AGAIN: chrono::TimeDelta = chrono::TimeDelta::seconds(2);
/// About half a day in all; the newest state is worth it.
const RETRY: RetryPolicy = RetryPolicy {
    attempts: 150,
    backoff: Duration::from_secs(2),
    factor: 2.0,
    max: Duration::from_secs(300),
};

const _: () = assert!(HOLD.as_secs() > PATIENCE.as_secs() * (BATCH as u64).div_ceil(AT_ONCE as u64));

/// The notifiers that follow runs of `workflow`: those its `notify:` names, of those that can.
pub(super) fn of(engine: &Engine, workflow: &Workflow) -> Vec<NotifierName> {
    let mut boards = vec![];
    for recipient in workflow.notify.iter().flat_map(|rule| &rule.to) {
        if let Recipient::Slack(name) | Recipient::Webhook(name) = recipient
            && engine.settings.boards.contains(name)
            && !boards.contains(name)
        {
            boards.push(name.clone());
        }
    }
    boards
}

/// A message about a run that was taken to be shown.
struct HeldBoard<'e> {
    engine: &'e Engine,
    closing: &'e Closing,
    board: BoardEntry,
}

#[async_trait]
impl Held for HeldBoard<'_> {
    const HOLD: Duration = HOLD;
    const TRUSTED_FOR: Duration = SILENT_FOR;
    type Error = StoreError;

    async fn again(&mut self, at: Timestamp) -> Result<bool, StoreError> {
        let again = || self.engine.store.hold_board(&self.board, HOLD, at);
        let again = noted(self.closing, again).await?;
        self.board.held_until = again.unwrap_or(self.board.held_until);
        Ok(again.is_some())
    }
}

impl Engine {
    /// Brings messages about runs up to date, and returns how many were rewritten or posted.
    ///
    /// # Errors
    /// The last failure of the database; a service that does not answer is tried again later.
    pub async fn show_boards(&self, notifiers: &Notifiers) -> Result<usize, StoreError> {
        self.show_boards_until(notifiers, &Closing::default()).await
    }

    /// The same, in a process that may end meanwhile: what it does not bring up to date is anybody's at once.
    ///
    /// # Errors
    /// Those of `show_boards`.
    pub async fn show_boards_until(
        &self,
        notifiers: &Notifiers,
        closing: &Closing,
    ) -> Result<usize, StoreError> {
        if self.settings.boards.is_empty() || !closing.may_begin() {
            return Ok(0);
        }
        let taken_at = self.clock.now();
        let due = self.store.take_boards(BATCH, HOLD, taken_at).await?;
        let showing: Vec<_> = due
            .into_iter()
            .map(|board| self.show_board(notifiers, closing, board, taken_at).boxed())
            .collect();
        // All of them, whatever becomes of one: a message that is given up while it is posted is posted again.
        let shown: Vec<_> = stream::iter(showing).buffer_unordered(AT_ONCE).collect().await;
        shown.into_iter().try_fold(0, |sum, shown| Ok(sum + usize::from(shown?)))
    }

    async fn show_board(
        &self,
        notifiers: &Notifiers,
        closing: &Closing,
        mut board: BoardEntry,
        taken_at: Timestamp,
    ) -> Result<bool, StoreError> {
        if !closing.may_begin() {
            self.store.board_waits(&board, self.clock.now()).await?;
            return Ok(false);
        }
        let shown = self.try_to_show(notifiers, closing, &mut board, taken_at).await?;
        let now = self.clock.now();
        let error = match shown {
            Ok(rewritten) => return Ok(rewritten),
            Err(NotSent::NoTurn { service, wait }) => {
                let since = *board.waits_since.get_or_insert(now);
                if let Some(until) = turn_after(wait, now, since) {
                    self.store.board_waits(&board, until).await?;
                    return Ok(false);
                }
                tracing::warn!(run.id = %board.run, %since, "Message about run {} waits too long: {service} takes no more", board.run);
                AdapterError::from(NotSent::NoTurn { service, wait })
            }
            Err(NotSent::Failed(error)) => error,
        };
        let board = &board;
        let retry_at = match &error {
            AdapterError::Unavailable { retry_after, .. } => {
                RETRY.next_attempt(board.attempts.max(1), now, *retry_after, rand::random())
            }
            AdapterError::Denied { .. } | AdapterError::Rejected { .. } | AdapterError::Conflict { .. } => {
                None
            }
        };
        match retry_at {
            Some(at) => {
                tracing::debug!(run.id = %board.run, %at, "Message about run {} waits: {error}", board.run)
            }
            None => {
                tracing::error!(run.id = %board.run, "Message about run {} is out of date until the run goes on: {error}", board.run)
            }
        }
        self.store.board_failed(board, &error.to_string(), retry_at, now + AGAIN).await?;
        Ok(false)
    }

    /// Whether the message was rewritten or posted; not when it says already what it should.
    async fn try_to_show(
        &self,
        notifiers: &Notifiers,
        closing: &Closing,
        board: &mut BoardEntry,
        taken_at: Timestamp,
    ) -> Result<Result<bool, NotSent>, StoreError> {
        let rejected = |action: &str, cause: String| {
            NotSent::from(AdapterError::Rejected {
                service: "refit".to_owned(),
                action: action.to_owned(),
                cause,
            })
        };
        let Some(shows) = notifiers.board(&board.notifier) else {
            let cause = "refit.toml has no notifier of this name that can";
            return Ok(Err(rejected(&format!("follow a run at `{}`", board.notifier), cause.to_owned())));
        };
        let Some(run) = self.store.run(board.run).await? else {
            return Ok(Err(rejected("follow a run", "it is gone".to_owned())));
        };
        let workflow = match self.workflow(&run.definition) {
            Ok(workflow) => workflow,
            Err(why) => return Ok(Err(rejected("follow a run", why))),
        };
        let facts = self.standing(&run, &workflow).await?;
        let id = format!("{}/board/{}", run.id, board.notifier);
        let mut message = match notifiers.renderer().progress(&id, &facts) {
            Ok(message) => message,
            Err(error) => return Ok(Err(rejected("write the message about a run", error.to_string()))),
        };
        // The attempt under way is counted by `take_boards`.
        message.tried_since = (board.attempts > 1).then_some(run.created_at);
        let says = json!([message.subject, message.text, message.blocks]).to_string();
        let says = hex::encode(Sha256::digest(says));
        let again = self.clock.now() + AGAIN;
        if let (Some(place), Some(shown)) = (&board.place, &board.shows)
            && *shown == says
        {
            self.store.board_shown(board, place, shown, again).await?;
            return Ok(Ok(false));
        }
        let showing = shows.show(&message, board.place.as_ref());
        let mut held = HeldBoard { engine: self, closing, board: board.clone() };
        let showing = while_held(showing, &mut held, self.clock.as_ref(), taken_at);
        let shown = tokio::select! {
            shown = showing => Some(shown?),
            () = closing.cuts_off() => None,
        };
        board.held_until = held.board.held_until;
        let Some(shown) = shown else {
            let now = self.clock.now();
            tracing::debug!(run.id = %board.run, "Message about run {} was cut off as this process ends", board.run);
            self.store.board_failed(board, CUT_OFF, Some(now), now).await?;
            return Ok(Ok(false));
        };
        Ok(match shown {
            Some(Ok(place)) => {
                noted(closing, || self.store.board_shown(board, &place, &says, again)).await?;
                Ok(true)
            }
            Some(Err(error)) => Err(error),
            None => {
                tracing::warn!(run.id = %board.run, "Message about run {} at `{}` was left to another process", board.run, board.notifier);
                Ok(false)
            }
        })
    }

    /// Where a run is, for the message that follows it.
    pub async fn standing(&self, run: &Run, workflow: &Workflow) -> Result<Facts, StoreError> {
        let attempts = &self.store.attempts(run.id).await?;
        let version = outputs::<PublishOutput>(attempts).map(|(_, output)| output.version).last();
        let named = version
            .as_ref()
            .map_or_else(|| run.model.to_string(), |version| format!("{} {version}", run.model));
        let (moment, headline) = match (run.status, run.outcome) {
            (RunStatus::Finished, Some(outcome)) => (Moment::of(outcome), None),
            (RunStatus::Finished, None) => (Moment::Failed, None),
            (RunStatus::Held, _) => (Moment::Held, None),
            (RunStatus::Undoing, _) => {
                (Moment::Started, Some(format!("{named}: its effects are being taken back")))
            }
            (RunStatus::Queued | RunStatus::Running | RunStatus::Waiting, _) => {
                if !waits_for_approval(workflow, attempts).is_empty() {
                    (Moment::NeedsApproval, None)
                } else {
                    self.under_way(run, workflow, attempts, &named).await?
                }
            }
        };
        let mut given = situation::facts(self, run, workflow, attempts, moment).await;
        given.insert("mode".to_owned(), json!(workflow.mode));
        given.insert("version".to_owned(), json!(version));
        if let Some(headline) = headline {
            given.insert("headline".to_owned(), json!(headline));
        }
        if run.status == RunStatus::Finished || run.status == RunStatus::Undoing {
            given.insert("reason".to_owned(), json!(run.reason));
        }
        let rows: Vec<StepRow> =
            workflow.steps.iter().map(|step| row(step, latest(attempts, &step.id))).collect();
        given.insert("progress".to_owned(), json!(rows));
        let steps: BTreeMap<String, Value> = attempts
            .iter()
            .filter_map(|attempt| Some((attempt.step.to_string(), attempt.output.clone()?)))
            .collect();
        given.insert("steps".to_owned(), json!(steps));
        given.insert("workflow".to_owned(), json!(run.workflow));
        Ok(Facts::about(&run.model, Some(run.id), moment, given))
    }

    async fn under_way(
        &self,
        run: &Run,
        workflow: &Workflow,
        attempts: &[Attempt],
        named: &str,
    ) -> Result<(Moment, Option<String>), StoreError> {
        if let Some(canary) = self.store.canary_of(run.id).await? {
            let named = format!("{} {}", run.model, canary.version);
            match canary.state {
                CanaryState::Watching => {
                    let share = canary.stage_share();
                    return Ok((Moment::CanaryStarted, Some(format!("{named} is on canary at {share}"))));
                }
                CanaryState::Baking => {
                    let until = canary.bake_until.map(|until| format!(" until {}", time(until)));
                    let headline =
                        format!("{named} was promoted and is watched on{}", until.unwrap_or_default());
                    return Ok((Moment::Promoted, Some(headline)));
                }
                CanaryState::Promoted | CanaryState::RolledBack => {}
            }
        }
        let at_work = attempts.iter().rev().find(|attempt| attempt.state == AttemptState::Started);
        let sleeps = || attempts.iter().rev().find(|attempt| attempt.state == AttemptState::Sleeping);
        let headline = match at_work.or_else(sleeps) {
            Some(attempt) => {
                let steps = workflow.steps.len();
                let place = workflow.steps.iter().position(|step| step.id == attempt.step);
                let place =
                    place.map(|place| format!(" (step {} of {steps})", place + 1)).unwrap_or_default();
                format!("{named}: {} is at `{}`{place}", run.workflow, attempt.step)
            }
            None => format!("{named}: {} is under way", run.workflow),
        };
        Ok((Moment::Started, Some(headline)))
    }
}

fn row(step: &crate::domain::workflow::Step, attempt: Option<&Attempt>) -> StepRow {
    let (state, said) = match attempt {
        None => (StepMark::Pending, None),
        Some(attempt) => match attempt.state {
            AttemptState::Started => {
                let again = (attempt.attempt > 1).then(|| format!("attempt {}", attempt.attempt));
                (StepMark::Running, again)
            }
            AttemptState::Lost => (StepMark::Running, None),
            AttemptState::Sleeping => {
                let until = || attempt.wake_at.map(|at| format!("until {} at the latest", time(at)));
                (StepMark::Waiting, promote::frozen(attempt).or_else(until))
            }
            AttemptState::Succeeded => {
                let said = attempt.output.as_ref().map(|output| headline::of(Some(&step.kind), output));
                (StepMark::Done, said.filter(|said| !said.is_empty()))
            }
            AttemptState::Failed => {
                let why = attempt.error.as_ref().map(|error| error.message.clone());
                match attempt.wake_at {
                    Some(_) => (StepMark::Waiting, why.map(|why| format!("{why}; it is tried again"))),
                    None => (StepMark::Failed, why),
                }
            }
            AttemptState::Skipped | AttemptState::Cancelled => {
                (StepMark::Skipped, attempt.error.as_ref().map(|error| error.message.clone()))
            }
        },
    };
    StepRow { step: step.id.to_string(), state, said }
}

fn time(at: Timestamp) -> String {
    at.format("%F %H:%M UTC").to_string()
}
