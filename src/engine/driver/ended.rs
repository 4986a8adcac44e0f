//! What the end of a body makes of its run.

use serde_json::{Value, json};

use super::{Driver, Hand, News, Stopped};
use crate::domain::id::StepId;
use crate::domain::run::AttemptState;
use crate::domain::workflow::Moment;
use crate::engine::body::Ended;
use crate::engine::promotion;
use crate::steps::context::{Sleep, StepError, StepResult};
use crate::store::{EndedAttempt, StoreError};

impl Driver<'_> {
    /// Takes in how a body ended.
    pub(super) async fn take(&mut self, ended: Ended) -> Result<Hand, StoreError> {
        if self.stopped == Some(Stopped::Fenced) {
            return Ok(Hand::Keeps);
        }
        let now = self.engine.clock.now();
        let mut notices = vec![];
        let mut promoted = None;
        let mut record = EndedAttempt {
            begun_in: self.known.begun_in(&ended.step, ended.attempt),
            step: ended.step,
            attempt: ended.attempt,
            state: AttemptState::Succeeded,
            output: None,
            error: None,
            resume: None,
            wake_at: None,
        };
        match ended.result {
            Ok(StepResult::Done { output }) => {
                let output = self.masked(output);
                if output.get("rollout").and_then(Value::as_str) == Some("on_canary") {
                    notices =
                        self.about(Moment::CanaryStarted, &record.step, json!({"canary": output})).await;
                }
                record.output = Some(output);
            }
            Ok(StepResult::Promoted { output }) => {
                let output = self.masked(output);
                promoted = Some(reason_in(&output));
                record.output = Some(output);
            }
            Ok(StepResult::End { outcome, reason, output }) => {
                record.output = Some(self.masked(output));
                self.known.end(outcome, self.engine.services.secrets.mask(&reason));
            }
            Ok(StepResult::Sleep(Sleep { until, resume, held: _, promoted: in_bake, tell })) => {
                record.state = AttemptState::Sleeping;
                record.wake_at = until;
                let resume = self.masked(resume);
                promoted = in_bake.then(|| resume.get("output").map_or_else(String::new, reason_in));
                record.resume = Some(resume);
                if let Some((moment, facts)) = tell {
                    notices = self.about(moment, &record.step, self.masked(facts)).await;
                }
            }
            Err(StepError::Fenced) => {
                self.stop(Stopped::Fenced);
                return Ok(Hand::Keeps);
            }
            Err(error @ (StepError::Interrupted | StepError::Cancelled)) => {
                // A shutdown hands the attempt over: it is left `started`, and the next epoch counts it as lost.
                if self.stopped == Some(Stopped::Shutdown) {
                    return Ok(Hand::Keeps);
                }
                if error == StepError::Cancelled {
                    self.refresh().await?;
                }
                self.reread_promotion(&record.step).await?;
                record.state = AttemptState::Cancelled;
            }
            Err(StepError::Failed { failure, retry_after }) => {
                self.reread_promotion(&record.step).await?;
                record.state = AttemptState::Failed;
                record.resume = self.known.left_by(&record.step);
                record.wake_at = self.known.retry_at(&record.step, &failure, retry_after, now);
                if record.wake_at.is_none() {
                    record.wake_at = self.known.completes_at(&record.step, retry_after, now);
                    if record.wake_at.is_some() {
                        notices =
                            promotion::alert(self.engine, &self.known, &record.step, &failure.message).await;
                    }
                }
                record.error = Some(failure);
            }
        }
        if self.known.run.cancel.is_some() || promoted.is_some() {
            self.refresh().await?;
        }
        if let Some((outcome, reason)) = self.known.cancelled(promoted.is_some()) {
            self.known.end(outcome, reason);
        } else if let Some(reason) = promoted.filter(|_| !self.known.promotion_recorded()) {
            self.known.promoted(reason);
        }
        if self.known.ends() && record.state == AttemptState::Sleeping {
            record.state = AttemptState::Cancelled;
            record.wake_at = None;
            // The end of the run is what people hear of.
            notices.clear();
        }
        self.known.apply(&record, ended.heard, now);
        self.known.hasten_promotion(now);
        self.proceed(News { ended: Some(record), notices, ..News::default() }).await
    }

    /// Whether a promotion that did not succeed made its first write is the database's to say.
    async fn reread_promotion(&mut self, step: &StepId) -> Result<(), StoreError> {
        if self.known.promotes(step) { self.read_intents().await } else { Ok(()) }
    }
}

/// Why a promotion was made, as its step says.
fn reason_in(output: &Value) -> String {
    output.get("reason").and_then(Value::as_str).unwrap_or("promoted").to_owned()
}
