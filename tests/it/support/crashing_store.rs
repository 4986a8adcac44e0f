//! A store whose writes can be the last thing a process does.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use refit::adapter::Posted;
use refit::domain::Timestamp;
use refit::domain::canary::{CanaryRecord, MoreTime, Ripe, Ripening};
use refit::domain::event::Event;
use refit::domain::evidence::LabelCounts;
use refit::domain::freeze::{Freeze, FreezeScope, FreezeWish};
use refit::domain::history::{ChangedBy, HistoryEntry};
use refit::domain::id::*;
use refit::domain::pull::{PullState, PulledBatch};
use refit::domain::release::Release;
use refit::domain::retention::{Holdings, Pin};
use refit::domain::run::*;
use refit::domain::version::*;
use refit::store::*;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::crash::Crash;

/// A store whose writes can be the last thing a process does.
pub struct CrashingStore {
    /// The real one.
    pub inner: Arc<dyn Store>,
    /// When.
    pub crash: Crash,
}

/// Passes calls on: a `write` is a place to die, a `read` needs a process that lives.
macro_rules! passes {
    ($($room:ident { $($kind:ident $call:ident($($arg:ident: $of:ty),*) -> $back:ty;)* })*) => {
        $(#[async_trait]
        impl $room for CrashingStore {
            $(async fn $call(&self, $($arg: $of),*) -> Result<$back, StoreError> {
                passes!($kind self.$call($($arg),*))
            })*
        })*

        const CALLS: &[(&str, &str)] = &[$($((stringify!($kind), stringify!($call)),)*)*];
    };
    (read $self:ident.$call:ident($($arg:ident),*)) => {{
        $self.crash.alive().await;
        $self.there(stringify!($call))?;
        $self.inner.$call($($arg),*).await
    }};
    (write $self:ident.$call:ident($($arg:ident),*)) => {{
        $self.there(stringify!($call))?;
        $self.crash.around(stringify!($call), $self.inner.$call($($arg),*)).await
    }};
}

impl CrashingStore {
    /// The names of all its writes.
    pub fn writes() -> impl Iterator<Item = &'static str> {
        CALLS.iter().filter(|(kind, _)| *kind == "write").map(|(_, call)| *call)
    }

    fn there(&self, call: &'static str) -> Result<(), StoreError> {
        if self.crash.answers(call) { Ok(()) } else { Err(StoreError::Away("connection refused".to_owned())) }
    }
}

passes! {
    Runs {
        write submit(event: &Event, runs: Vec<NewRun>) -> Vec<Submitted>;
        read event(id: EventId) -> Option<Event>;
        read events(before: Option<EventId>, limit: u32) -> Vec<Event>;
        read started_by(key: &str) -> Vec<WorkflowName>;
        read run(id: RunId) -> Option<Run>;
        read runs(filter: &RunFilter) -> Vec<RunSummary>;
        read attempts(run: RunId) -> Vec<Attempt>;
        read intents(run: RunId) -> Vec<Intent>;
        read signals(run: RunId) -> Vec<Signal>;
        read previous_output(workflow: &WorkflowName, before: RunId, step: &StepId) -> Option<Value>;
        read recent_outcomes(workflow: &WorkflowName, limit: u32) -> Vec<Outcome>;
    }

    Leases {
        write register_worker(worker: WorkerId, labels: &[String], stay: Stay, at: Timestamp) -> ();
        read live_workers() -> LiveWorkers;
        write retire_worker(worker: WorkerId) -> ();
        write claim(run: RunId, worker: WorkerId, lease: Duration, at: Timestamp, plan: Planner<'_>) -> ClaimResult;
        write renew(run: RunId, epoch: Epoch, lease: Duration, at: Timestamp) -> Renewal;
        write checkpoint(checkpoint: Checkpoint) -> ();
        write release_lease(run: RunId, epoch: Epoch) -> ();
        write intend(run: RunId, epoch: Epoch, intent: &Intent) -> Intent;
        write settle(run: RunId, epoch: Epoch, key: &str, result: &Value) -> ();
        write reap(at: Timestamp) -> (usize, Option<Timestamp>);
    }

    Signals {
        write signal(run: RunId, kind: &SignalKind, actor: &str, reason: Option<&str>, at: Timestamp) -> bool;
        write request_cancel(run: RunId, request: &CancelRequest) -> bool;
    }

    Schedules {
        write sync_schedules(workflow: &WorkflowName, rows: &[ScheduleRow]) -> ();
        read schedules() -> Vec<ScheduleRow>;
        write fire_schedule(read: &ScheduleRow, next: &ScheduleRow, submissions: Vec<(Event, Vec<NewRun>)>) -> bool;
    }

    Outbox {
        write queue_notices(notices: &[Notice], at: Timestamp) -> ();
        write take_outbox(limit: u32, hold: Duration, at: Timestamp) -> Vec<OutboxEntry>;
        write hold_outbox(id: i64, attempts: u32, held_until: Option<Timestamp>, hold: Duration, at: Timestamp) -> Option<Timestamp>;
        write outbox_waits(entries: &[&OutboxEntry], due_at: Timestamp) -> ();
        write outbox_sent(id: i64, at: Timestamp) -> ();
        write outbox_failed(entry: &OutboxEntry, error: &str, retry_at: Option<Timestamp>) -> ();
        read outbox_of(run: RunId) -> Vec<OutboxEntry>;
    }

    Boards {
        write touch_boards(run: RunId, boards: &[NotifierName], at: Timestamp) -> ();
        write take_boards(limit: u32, hold: Duration, at: Timestamp) -> Vec<BoardEntry>;
        write board_shown(board: &BoardEntry, place: &Posted, shows: &str, again_at: Timestamp) -> ();
        write board_failed(board: &BoardEntry, error: &str, retry_at: Option<Timestamp>, again_at: Timestamp) -> ();
        write hold_board(board: &BoardEntry, hold: Duration, at: Timestamp) -> Option<Timestamp>;
        write board_waits(board: &BoardEntry, due_at: Timestamp) -> ();
        read board_of(run: RunId, notifier: &NotifierName) -> Option<Posted>;
    }

    Logs {
        write append_log(run: RunId, step: &StepId, attempt: u32, bytes: &[u8], at: Timestamp) -> ();
        read read_log(run: RunId, step: Option<&StepId>, after: i64, limit: u32) -> Vec<LogChunk>;
    }

    Versions {
        write reserve_version(by: &Reservation, name_of: VersionNamer<'_>) -> VersionRecord;
        write set_version_state(model: &ModelName, version: &VersionName, state: VersionState, sealed: Option<(&Manifest, &str, &str)>, fence: Option<(RunId, Epoch)>) -> ();
        write adopt_version(record: &VersionRecord, by: &ChangedBy) -> ();
        read version(model: &ModelName, version: &VersionName) -> Option<VersionRecord>;
        read versions(model: &ModelName) -> Vec<VersionRecord>;
        read models() -> Vec<ModelName>;
    }

    Releases {
        read release(model: &ModelName, target: &TargetName) -> Option<Release>;
        read releases(model: Option<&ModelName>) -> Vec<Release>;
        write write_release(write: ReleaseWrite) -> ReleaseWritten;
        write release_applied(model: &ModelName, target: &TargetName, generation: Generation) -> ();
        write extend_canary_validity(model: &ModelName, target: &TargetName, generation: Generation, until: Timestamp) -> ();
        read release_history(model: &ModelName, target: &TargetName, limit: u32) -> Vec<ReleaseAudit>;
    }

    Freezes {
        write freeze(id: FreezeId, wish: &FreezeWish, at: Timestamp) -> FreezeAnswer;
        write unfreeze(which: &FreezeScope, by: &str, at: Timestamp) -> Vec<Freeze>;
        read freeze_over(model: &ModelName, at: Timestamp) -> Option<Freeze>;
        read open_freezes(at: Timestamp) -> Vec<Freeze>;
        read freezes(model: Option<&ModelName>, limit: u32) -> Vec<Freeze>;
        write ask_to_promote(run: RunId, model: &ModelName, actor: &str, reason: Option<&str>, at: Timestamp) -> PromotionAsked;
    }

    Canaries {
        write open_canary(epoch: Epoch, canary: &CanaryRecord) -> CanaryRecord;
        read canary_of(run: RunId) -> Option<CanaryRecord>;
        read live_canaries(due_at: Option<Timestamp>) -> Vec<CanaryRecord>;
        write take_look(id: CanaryId, read: Timestamp, next: Timestamp) -> bool;
        write save_look(before: &CanaryRecord, after: &CanaryRecord, notices: &[Notice]) -> bool;
        write extend_canary(run: RunId, asked: &MoreTime, at: Timestamp) -> Extended;
        write end_bake(canary: CanaryId, model: &ModelName, by: (RunId, Epoch), at: Timestamp) -> CanaryRecord;
        write set_canary_state(change: &CanaryChange) -> CanaryRecord;
    }

    Evidence {
        write observe(batch: &ObservationBatch) -> BatchReceipt;
        write add_truth(batch: &TruthBatch) -> BatchReceipt;
        write add_scored(run: RunId, epoch: Epoch, model: &ModelName, scored: &ScoredRows) -> u64;
        read pulls(model: Option<&ModelName>) -> Vec<Pulled>;
        write keep_pulled(batch: &PulledBatch) -> Option<PullState>;
        read evidence(model: &ModelName, versions: &[VersionName], after: i64, limit: u32) -> Vec<EvidenceMinute>;
        read paired_errors(model: &ModelName, canary: &VersionName, stable: &VersionName, after: i64, limit: u32) -> Vec<PairedError>;
        read labelled(model: &ModelName, version: &VersionName, since: Timestamp) -> LabelCounts;
        read ripe(model: &ModelName, canary: &VersionName, stable: &VersionName, wanted: &Ripening, limit: u32) -> Ripe;
        write forget_evidence(older: &EvidenceAge, only_count: bool) -> OldEvidence;
        read pruning(at: Timestamp) -> Pruning;
        write move_pruning(read: Option<Timestamp>, next: Timestamp) -> bool;
    }

    Registry {
        read holdings(model: &ModelName, since: Timestamp) -> Holdings;
        write condemn_version(model: &ModelName, version: &VersionName, since: Timestamp, judge: Judge<'_>, by: &ChangedBy) -> Condemned;
        write version_deleted(model: &ModelName, version: &VersionName, by: &ChangedBy) -> ();
        write pin_version(model: &ModelName, version: &VersionName, pinned: bool, by: &ChangedBy) -> Marked;
        write mark_version(model: &ModelName, version: &VersionName, bad: bool, by: &ChangedBy) -> Marked;
        read pins(model: Option<&ModelName>) -> Vec<Pin>;
        read history(model: Option<&ModelName>, limit: u32) -> Vec<HistoryEntry>;
        read release_change(model: &ModelName, target: &TargetName, generation: Generation) -> Option<HistoryEntry>;
        read history_during(model: &ModelName, from: Timestamp, until: Option<Timestamp>) -> Vec<HistoryEntry>;
    }
}

#[async_trait]
impl Wakeups for CrashingStore {
    async fn deliver_wakeups(&self, to: Arc<dyn OnWake>, concurrency: usize, stop: CancellationToken) {
        self.crash.alive().await;
        self.inner.deliver_wakeups(to, concurrency, stop).await
    }

    fn poke(&self) {
        self.inner.poke()
    }

    fn news(&self) -> watch::Receiver<u64> {
        self.inner.news()
    }

    async fn due(&self, at: Timestamp) -> Result<Due, StoreError> {
        self.inner.due(at).await
    }

    async fn rest(&self) {
        self.inner.rest().await;
    }
}

#[async_trait]
impl Store for CrashingStore {
    fn instance(&self) -> InstanceId {
        self.inner.instance()
    }

    fn label(&self) -> String {
        self.inner.label()
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.crash.alive().await;
        self.inner.ping().await
    }

    async fn close(&self) {
        self.crash.alive().await;
        self.inner.close().await
    }
}
