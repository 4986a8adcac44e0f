//! What a step talks to while it runs: a ledger in memory, and a log that can be asked.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use refit::domain::Timestamp;
use refit::domain::canary::{CanaryRecord, Foreseen, Looks, Ripening};
use refit::domain::evidence::{PairedError, ScoredRow, ScoredRows};
use refit::domain::freeze::Freeze;
use refit::domain::id::{CanaryId, Generation, StepId, StoreName, TargetName, VersionName};
use refit::domain::release::Release;
use refit::domain::run::{Intent, IntentState, Undo};
use refit::domain::version::{Manifest, VersionRecord};
use refit::domain::workflow::step::Naming;
use refit::domain::workflow::{Moment, Recipient};
use refit::steps::context::{
    CanaryOpening, Ledger, Promotion, ReleaseChange, ReleaseRefused, StepError, StepLog,
};
use serde_json::Value;

use super::steps::now;

/// What a step said.
#[derive(Default)]
pub struct Recorded {
    /// Bytes of raw output; only the first 64 KiB are kept.
    pub bytes: AtomicU64,
    output: Mutex<Vec<u8>>,
    notes: Mutex<Vec<String>>,
    progress: Mutex<Vec<(Option<f64>, String)>>,
    changed: tokio::sync::Notify,
}

impl Recorded {
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("unpoisoned")).into_owned()
    }

    pub fn notes(&self) -> String {
        self.notes.lock().expect("unpoisoned").join("\n")
    }

    pub fn progress_lines(&self) -> Vec<(Option<f64>, String)> {
        self.progress.lock().expect("unpoisoned").clone()
    }

    /// Returns once the output has `text`.
    pub async fn says(&self, text: &str) {
        loop {
            let changed = self.changed.notified();
            if self.output().contains(text) {
                return;
            }
            changed.await;
        }
    }
}

impl StepLog for Recorded {
    fn write(&self, bytes: &[u8]) {
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let mut output = self.output.lock().expect("unpoisoned");
        let room = (64 * 1024_usize).saturating_sub(output.len()).min(bytes.len());
        output.extend_from_slice(&bytes[..room]);
        drop(output);
        self.changed.notify_one();
    }

    fn note(&self, line: &str) {
        self.notes.lock().expect("unpoisoned").push(line.to_owned());
    }

    fn progress(&self, percent: Option<f64>, message: &str) {
        self.progress.lock().expect("unpoisoned").push((percent, message.to_owned()));
    }
}

/// What an engine would keep; what no step of these tests asks for fails.
#[derive(Default)]
pub struct FakeLedger {
    pub previous: Option<Value>,
    pub release: Option<Release>,
    /// On another target.
    pub elsewhere: Option<Release>,
    pub versions: BTreeMap<VersionName, VersionRecord>,
    pub intents: Mutex<BTreeMap<String, Intent>>,
    pub canary: Option<CanaryRecord>,
    /// In the order in which they were scored.
    pub scored: Mutex<Vec<ScoredRow>>,
    /// After which of them they were asked for, and how many those were.
    pub asked: Mutex<Vec<(i64, usize)>>,
}

fn not_here<T>() -> Result<T, StepError> {
    Err(StepError::permanent("the fake ledger does not keep this"))
}

#[async_trait]
impl Ledger for FakeLedger {
    fn looks(&self) -> Looks {
        Looks::Live
    }

    fn look_every(&self) -> Duration {
        Duration::from_secs(60)
    }

    async fn freeze(&self) -> Result<Option<Freeze>, StepError> {
        not_here()
    }

    async fn keep_latest(&self, _: &StoreName, _: u32) -> Result<Vec<String>, StepError> {
        not_here()
    }

    async fn intend(&self, operation: &str, detail: Value, undo: Option<Undo>) -> Result<Intent, StepError> {
        let mut intents = self.intents.lock().expect("unpoisoned");
        let intent = intents.entry(operation.to_owned()).or_insert_with(|| Intent {
            step: "step".parse().expect("a step id"),
            key: operation.to_owned(),
            detail,
            undo,
            result: None,
            state: IntentState::Armed,
        });
        Ok(intent.clone())
    }

    async fn settle(&self, operation: &str, result: Value) -> Result<(), StepError> {
        let mut intents = self.intents.lock().expect("unpoisoned");
        intents.get_mut(operation).expect("an intent").result = Some(result);
        Ok(())
    }

    async fn reserve_version(&self, _: &StoreName, _: Naming) -> Result<VersionRecord, StepError> {
        not_here()
    }

    async fn abandon_version(&self, _: &VersionName) -> Result<(), StepError> {
        not_here()
    }

    async fn seal_version(&self, _: &Manifest, _: &str, _: &str) -> Result<(), StepError> {
        not_here()
    }

    async fn version(&self, version: &VersionName) -> Result<Option<VersionRecord>, StepError> {
        Ok(self.versions.get(version).cloned())
    }

    async fn previous_output(&self, _: &StepId) -> Result<Option<Value>, StepError> {
        Ok(self.previous.clone())
    }

    async fn releases(&self) -> Result<Vec<Release>, StepError> {
        Ok(self.release.iter().chain(&self.elsewhere).cloned().collect())
    }

    async fn release(&self, _: &TargetName) -> Result<Option<Release>, StepError> {
        Ok(self.release.clone())
    }

    async fn change_release(&self, _: ReleaseChange) -> Result<Release, ReleaseRefused> {
        Err(ReleaseRefused::Step(StepError::permanent("the fake ledger does not keep this")))
    }

    async fn promotion(&self, _: &TargetName) -> Result<Option<Promotion>, StepError> {
        not_here()
    }

    async fn roll_back(&self, _: &TargetName, _: Option<&VersionName>) -> Result<Release, StepError> {
        not_here()
    }

    async fn release_applied(&self, _: &TargetName, _: Generation) -> Result<(), StepError> {
        not_here()
    }

    async fn foresee(&self, _: &CanaryOpening) -> Result<Option<Foreseen>, StepError> {
        not_here()
    }

    async fn open_canary(&self, _: CanaryOpening) -> Result<CanaryId, StepError> {
        not_here()
    }

    async fn canary(&self) -> Result<Option<CanaryRecord>, StepError> {
        Ok(self.canary.clone())
    }

    async fn scored(
        &self,
        _: &VersionName,
        _: &VersionName,
        after: i64,
    ) -> Result<Vec<PairedError>, StepError> {
        let scored = self.scored.lock().expect("unpoisoned");
        let pair = |(seq, row): (i64, &ScoredRow)| PairedError {
            seq,
            request_id: row.id.clone(),
            block: row.block.clone(),
            canary: row.canary,
            stable: row.stable,
            at: now(),
            served_at: row.served_at,
        };
        let found: Vec<_> = (1..).zip(scored.iter()).map(pair).filter(|pair| pair.seq > after).collect();
        self.asked.lock().expect("unpoisoned").push((after, found.len()));
        Ok(found)
    }

    async fn came_of_age(
        &self,
        _: &VersionName,
        _: &VersionName,
        _: Ripening,
    ) -> Result<Vec<PairedError>, StepError> {
        not_here()
    }

    async fn add_scored(&self, scored: &ScoredRows) -> Result<u64, StepError> {
        self.scored.lock().expect("unpoisoned").extend(scored.rows.iter().cloned());
        Ok(scored.rows.len() as u64)
    }

    async fn canary_promoted(&self, _: CanaryId, _: Option<Timestamp>) -> Result<CanaryRecord, StepError> {
        not_here()
    }

    async fn end_bake(&self, _: CanaryId) -> Result<CanaryRecord, StepError> {
        not_here()
    }

    async fn close_canary(&self, _: CanaryId, _: &str) -> Result<(), StepError> {
        not_here()
    }

    async fn tell(&self, _: &str, _: &[Recipient], _: Moment, _: Value) -> Result<(), StepError> {
        Ok(())
    }
}
