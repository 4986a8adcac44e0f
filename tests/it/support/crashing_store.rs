//! A store whose writes can be the last thing a process does.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use refit::adapter::Posted;
use refit::domain::Timestamp;
use refit::domain::canary::{CanaryRecord, CanaryState, Ripe, Ripening};
use refit::domain::event::Event;
use refit::domain::evidence::LabelCounts;
use refit::domain::history::{ChangedBy, HistoryEntry};
use refit::domain::id::*;
use refit::domain::pull::{PullState, PulledBatch};
use refit::domain::release::Release;
use refit::domain::retention::{Holdings, Pin};
use refit::domain::run::*;
use refit::domain::version::*;
use refit::store::*;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::crash::Crash;

/// A store whose writes can be the last thing a process does.
pub struct CrashingStore {
    /// The real one.
    pub inner: Arc<dyn Store>,
    /// When.
    pub crash: Crash,
}

#[async_trait]
impl Registry for CrashingStore {
    async fn holdings(&self, model: &ModelName, since: Timestamp) -> Result<Holdings, StoreError> {
        self.crash.alive().await;
        self.inner.holdings(model, since).await
    }

    async fn condemn_version(
        &self,
        model: &ModelName,
        version: &VersionName,
        since: Timestamp,
        judge: Judge<'_>,
        by: &ChangedBy,
    ) -> Result<Condemned, StoreError> {
        self.crash
            .around("condemn_version", self.inner.condemn_version(model, version, since, judge, by))
            .await
    }

    async fn version_deleted(
        &self,
        model: &ModelName,
        version: &VersionName,
        by: &ChangedBy,
    ) -> Result<(), StoreError> {
        self.crash.around("version_deleted", self.inner.version_deleted(model, version, by)).await
    }

    async fn pin_version(
        &self,
        model: &ModelName,
        version: &VersionName,
        pinned: bool,
        by: &ChangedBy,
    ) -> Result<Marked, StoreError> {
        self.crash.around("pin_version", self.inner.pin_version(model, version, pinned, by)).await
    }

    async fn mark_version(
        &self,
        model: &ModelName,
        version: &VersionName,
        bad: bool,
        by: &ChangedBy,
    ) -> Result<Marked, StoreError> {
        self.crash.around("mark_version", self.inner.mark_version(model, version, bad, by)).await
    }

    async fn pins(&self, model: Option<&ModelName>) -> Result<Vec<Pin>, StoreError> {
        self.crash.alive().await;
        self.inner.pins(model).await
    }

    async fn history(&self, model: Option<&ModelName>, limit: u32) -> Result<Vec<HistoryEntry>, StoreError> {
        self.crash.alive().await;
        self.inner.history(model, limit).await
    }

    async fn history_during(
        &self,
        model: &ModelName,
        from: Timestamp,
        until: Option<Timestamp>,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        self.crash.alive().await;
        self.inner.history_during(model, from, until).await
    }

    async fn forget_evidence(
        &self,
        older: &EvidenceAge,
        only_count: bool,
    ) -> Result<OldEvidence, StoreError> {
        self.crash.around("forget_evidence", self.inner.forget_evidence(older, only_count)).await
    }

    async fn pruning(&self, at: Timestamp) -> Result<Pruning, StoreError> {
        self.crash.alive().await;
        self.inner.pruning(at).await
    }

    async fn move_pruning(&self, read: Option<Timestamp>, next: Timestamp) -> Result<bool, StoreError> {
        self.crash.around("move_pruning", self.inner.move_pruning(read, next)).await
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

    async fn live_workers(&self) -> Result<u32, StoreError> {
        self.crash.alive().await;
        self.inner.live_workers().await
    }

    async fn submit(&self, event: &Event, runs: Vec<NewRun>) -> Result<Vec<Submitted>, StoreError> {
        self.crash.around("submit", self.inner.submit(event, runs)).await
    }

    async fn event(&self, id: EventId) -> Result<Option<Event>, StoreError> {
        self.crash.alive().await;
        self.inner.event(id).await
    }

    async fn events(&self, before: Option<EventId>, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.crash.alive().await;
        self.inner.events(before, limit).await
    }

    async fn run(&self, id: RunId) -> Result<Option<Run>, StoreError> {
        self.crash.alive().await;
        self.inner.run(id).await
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunSummary>, StoreError> {
        self.crash.alive().await;
        self.inner.runs(filter).await
    }

    async fn attempts(&self, run: RunId) -> Result<Vec<Attempt>, StoreError> {
        self.crash.alive().await;
        self.inner.attempts(run).await
    }

    async fn intents(&self, run: RunId) -> Result<Vec<Intent>, StoreError> {
        self.crash.alive().await;
        self.inner.intents(run).await
    }

    async fn previous_output(
        &self,
        workflow: &WorkflowName,
        before: RunId,
        step: &StepId,
    ) -> Result<Option<Value>, StoreError> {
        self.crash.alive().await;
        self.inner.previous_output(workflow, before, step).await
    }

    async fn recent_outcomes(&self, workflow: &WorkflowName, limit: u32) -> Result<Vec<Outcome>, StoreError> {
        self.crash.alive().await;
        self.inner.recent_outcomes(workflow, limit).await
    }

    async fn register_worker(
        &self,
        worker: WorkerId,
        labels: &[String],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.crash.around("register_worker", self.inner.register_worker(worker, labels, at)).await
    }

    async fn retire_worker(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.crash.around("retire_worker", self.inner.retire_worker(worker)).await
    }

    async fn claim(
        &self,
        run: RunId,
        worker: WorkerId,
        lease: Duration,
        at: Timestamp,
        plan: Planner<'_>,
    ) -> Result<ClaimResult, StoreError> {
        self.crash.around("claim", self.inner.claim(run, worker, lease, at, plan)).await
    }

    async fn renew(
        &self,
        run: RunId,
        epoch: Epoch,
        lease: Duration,
        at: Timestamp,
    ) -> Result<Renewal, StoreError> {
        self.crash.around("renew", self.inner.renew(run, epoch, lease, at)).await
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<(), StoreError> {
        self.crash.around("checkpoint", self.inner.checkpoint(checkpoint)).await
    }

    async fn release_lease(&self, run: RunId, epoch: Epoch) -> Result<(), StoreError> {
        self.crash.around("release_lease", self.inner.release_lease(run, epoch)).await
    }

    async fn intend(&self, run: RunId, epoch: Epoch, intent: &Intent) -> Result<Intent, StoreError> {
        self.crash.around("intend", self.inner.intend(run, epoch, intent)).await
    }

    async fn settle(&self, run: RunId, epoch: Epoch, key: &str, result: &Value) -> Result<(), StoreError> {
        self.crash.around("settle", self.inner.settle(run, epoch, key, result)).await
    }

    async fn queue_notices(&self, notices: &[Notice], at: Timestamp) -> Result<(), StoreError> {
        self.crash.around("queue_notices", self.inner.queue_notices(notices, at)).await
    }

    async fn signal(
        &self,
        run: RunId,
        kind: &SignalKind,
        actor: &str,
        reason: Option<&str>,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        self.crash.around("signal", self.inner.signal(run, kind, actor, reason, at)).await
    }

    async fn request_cancel(&self, run: RunId, request: &CancelRequest) -> Result<bool, StoreError> {
        self.crash.around("request_cancel", self.inner.request_cancel(run, request)).await
    }

    async fn reap(&self, at: Timestamp) -> Result<(usize, Option<Timestamp>), StoreError> {
        self.crash.around("reap", self.inner.reap(at)).await
    }

    async fn deliver_wakeups(
        &self,
        to: std::sync::Arc<dyn OnWake>,
        concurrency: usize,
        stop: CancellationToken,
    ) {
        self.crash.alive().await;
        self.inner.deliver_wakeups(to, concurrency, stop).await
    }

    fn news(&self) -> tokio::sync::watch::Receiver<u64> {
        self.inner.news()
    }

    async fn due(&self, at: Timestamp) -> Result<Due, StoreError> {
        self.inner.due(at).await
    }

    async fn rest(&self) {
        self.inner.rest().await;
    }

    fn poke(&self) {
        self.inner.poke()
    }

    async fn sync_schedules(&self, workflow: &WorkflowName, rows: &[ScheduleRow]) -> Result<(), StoreError> {
        self.crash.around("sync_schedules", self.inner.sync_schedules(workflow, rows)).await
    }

    async fn schedules(&self) -> Result<Vec<ScheduleRow>, StoreError> {
        self.crash.alive().await;
        self.inner.schedules().await
    }

    async fn fire_schedule(
        &self,
        id: &str,
        read_at: Timestamp,
        next: Timestamp,
        submissions: Vec<(Event, Vec<NewRun>)>,
    ) -> Result<bool, StoreError> {
        self.crash.around("fire_schedule", self.inner.fire_schedule(id, read_at, next, submissions)).await
    }

    async fn take_outbox(
        &self,
        limit: u32,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        self.crash.around("take_outbox", self.inner.take_outbox(limit, hold, at)).await
    }

    async fn hold_outbox(
        &self,
        id: i64,
        held_until: Option<Timestamp>,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        self.crash.around("hold_outbox", self.inner.hold_outbox(id, held_until, hold, at)).await
    }

    async fn outbox_waits(&self, entries: &[&OutboxEntry], due_at: Timestamp) -> Result<(), StoreError> {
        self.crash.around("outbox_waits", self.inner.outbox_waits(entries, due_at)).await
    }

    async fn outbox_sent(&self, id: i64, at: Timestamp) -> Result<(), StoreError> {
        self.crash.around("outbox_sent", self.inner.outbox_sent(id, at)).await
    }

    async fn outbox_failed(
        &self,
        entry: &OutboxEntry,
        error: &str,
        retry_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        self.crash.around("outbox_failed", self.inner.outbox_failed(entry, error, retry_at)).await
    }

    async fn outbox_of(&self, run: RunId) -> Result<Vec<OutboxEntry>, StoreError> {
        self.crash.alive().await;
        self.inner.outbox_of(run).await
    }

    async fn touch_boards(
        &self,
        run: RunId,
        boards: &[NotifierName],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.crash.around("touch_boards", self.inner.touch_boards(run, boards, at)).await
    }

    async fn take_boards(
        &self,
        limit: u32,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Vec<BoardEntry>, StoreError> {
        self.crash.around("take_boards", self.inner.take_boards(limit, hold, at)).await
    }

    async fn board_shown(
        &self,
        board: &BoardEntry,
        place: &Posted,
        shows: &str,
        again_at: Timestamp,
    ) -> Result<(), StoreError> {
        self.crash.around("board_shown", self.inner.board_shown(board, place, shows, again_at)).await
    }

    async fn board_failed(
        &self,
        board: &BoardEntry,
        error: &str,
        retry_at: Option<Timestamp>,
        again_at: Timestamp,
    ) -> Result<(), StoreError> {
        self.crash.around("board_failed", self.inner.board_failed(board, error, retry_at, again_at)).await
    }

    async fn hold_board(
        &self,
        run: RunId,
        notifier: &NotifierName,
        held_until: Timestamp,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        self.crash.around("hold_board", self.inner.hold_board(run, notifier, held_until, hold, at)).await
    }

    async fn board_waits(&self, board: &BoardEntry, due_at: Timestamp) -> Result<(), StoreError> {
        self.crash.around("board_waits", self.inner.board_waits(board, due_at)).await
    }

    async fn board_of(&self, run: RunId, notifier: &NotifierName) -> Result<Option<Posted>, StoreError> {
        self.crash.alive().await;
        self.inner.board_of(run, notifier).await
    }

    async fn append_log(
        &self,
        run: RunId,
        step: &StepId,
        attempt: u32,
        bytes: &[u8],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.crash.around("append_log", self.inner.append_log(run, step, attempt, bytes, at)).await
    }

    async fn read_log(
        &self,
        run: RunId,
        step: Option<&StepId>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<LogChunk>, StoreError> {
        self.crash.alive().await;
        self.inner.read_log(run, step, after, limit).await
    }

    async fn reserve_version(
        &self,
        by: &Reservation,
        name_of: VersionNamer<'_>,
    ) -> Result<VersionRecord, StoreError> {
        self.crash.around("reserve_version", self.inner.reserve_version(by, name_of)).await
    }

    async fn set_version_state(
        &self,
        model: &ModelName,
        version: &VersionName,
        state: VersionState,
        sealed: Option<(&Manifest, &str, &str)>,
        fence: Option<(RunId, Epoch)>,
    ) -> Result<(), StoreError> {
        self.crash
            .around("set_version_state", self.inner.set_version_state(model, version, state, sealed, fence))
            .await
    }

    async fn adopt_version(&self, record: &VersionRecord, by: &ChangedBy) -> Result<(), StoreError> {
        self.crash.around("adopt_version", self.inner.adopt_version(record, by)).await
    }

    async fn version(
        &self,
        model: &ModelName,
        version: &VersionName,
    ) -> Result<Option<VersionRecord>, StoreError> {
        self.crash.alive().await;
        self.inner.version(model, version).await
    }

    async fn versions(&self, model: &ModelName) -> Result<Vec<VersionRecord>, StoreError> {
        self.crash.alive().await;
        self.inner.versions(model).await
    }

    async fn models(&self) -> Result<Vec<ModelName>, StoreError> {
        self.crash.alive().await;
        self.inner.models().await
    }

    async fn release(&self, model: &ModelName, target: &TargetName) -> Result<Option<Release>, StoreError> {
        self.crash.alive().await;
        self.inner.release(model, target).await
    }

    async fn releases(&self, model: Option<&ModelName>) -> Result<Vec<Release>, StoreError> {
        self.crash.alive().await;
        self.inner.releases(model).await
    }

    async fn write_release(&self, write: ReleaseWrite) -> Result<ReleaseWritten, StoreError> {
        self.crash.around("write_release", self.inner.write_release(write)).await
    }

    async fn release_applied(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
    ) -> Result<(), StoreError> {
        self.crash.around("release_applied", self.inner.release_applied(model, target, generation)).await
    }

    async fn extend_canary_validity(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        self.crash
            .around(
                "extend_canary_validity",
                self.inner.extend_canary_validity(model, target, generation, until),
            )
            .await
    }

    async fn release_history(
        &self,
        model: &ModelName,
        target: &TargetName,
        limit: u32,
    ) -> Result<Vec<ReleaseAudit>, StoreError> {
        self.crash.alive().await;
        self.inner.release_history(model, target, limit).await
    }

    async fn open_canary(&self, epoch: Epoch, canary: &CanaryRecord) -> Result<CanaryRecord, StoreError> {
        self.crash.around("open_canary", self.inner.open_canary(epoch, canary)).await
    }

    async fn canary_of(&self, run: RunId) -> Result<Option<CanaryRecord>, StoreError> {
        self.crash.alive().await;
        self.inner.canary_of(run).await
    }

    async fn live_canaries(&self, due_at: Option<Timestamp>) -> Result<Vec<CanaryRecord>, StoreError> {
        self.crash.alive().await;
        self.inner.live_canaries(due_at).await
    }

    async fn take_look(&self, id: CanaryId, read: Timestamp, next: Timestamp) -> Result<bool, StoreError> {
        self.crash.around("take_look", self.inner.take_look(id, read, next)).await
    }

    async fn save_look(
        &self,
        before: &CanaryRecord,
        after: &CanaryRecord,
        notices: &[Notice],
    ) -> Result<bool, StoreError> {
        self.crash.around("save_look", self.inner.save_look(before, after, notices)).await
    }

    async fn end_bake(&self, id: CanaryId, at: Timestamp) -> Result<CanaryRecord, StoreError> {
        self.crash.around("end_bake", self.inner.end_bake(id, at)).await
    }

    async fn set_canary_state(
        &self,
        id: CanaryId,
        state: CanaryState,
        bake_until: Option<Timestamp>,
        reason: &str,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.crash
            .around("set_canary_state", self.inner.set_canary_state(id, state, bake_until, reason, at))
            .await
    }

    async fn observe(&self, batch: &ObservationBatch) -> Result<BatchReceipt, StoreError> {
        self.crash.around("observe", self.inner.observe(batch)).await
    }

    async fn add_truth(&self, batch: &TruthBatch) -> Result<BatchReceipt, StoreError> {
        self.crash.around("add_truth", self.inner.add_truth(batch)).await
    }

    async fn add_scored(
        &self,
        run: RunId,
        epoch: Epoch,
        model: &ModelName,
        scored: &ScoredRows,
    ) -> Result<u64, StoreError> {
        self.crash.around("add_scored", self.inner.add_scored(run, epoch, model, scored)).await
    }

    async fn pulls(&self, model: Option<&ModelName>) -> Result<Vec<Pulled>, StoreError> {
        self.crash.alive().await;
        self.inner.pulls(model).await
    }

    async fn keep_pulled(&self, batch: &PulledBatch) -> Result<Option<PullState>, StoreError> {
        self.crash.around("keep_pulled", self.inner.keep_pulled(batch)).await
    }

    async fn evidence(
        &self,
        model: &ModelName,
        versions: &[VersionName],
        after: i64,
        limit: u32,
    ) -> Result<Vec<EvidenceMinute>, StoreError> {
        self.crash.alive().await;
        self.inner.evidence(model, versions, after, limit).await
    }

    async fn paired_errors(
        &self,
        model: &ModelName,
        canary: &VersionName,
        stable: &VersionName,
        after: i64,
        limit: u32,
    ) -> Result<Vec<PairedError>, StoreError> {
        self.crash.alive().await;
        self.inner.paired_errors(model, canary, stable, after, limit).await
    }

    async fn labelled(
        &self,
        model: &ModelName,
        version: &VersionName,
        since: Timestamp,
    ) -> Result<LabelCounts, StoreError> {
        self.crash.alive().await;
        self.inner.labelled(model, version, since).await
    }

    async fn ripe(
        &self,
        model: &ModelName,
        canary: &VersionName,
        stable: &VersionName,
        wanted: &Ripening,
        limit: u32,
    ) -> Result<Ripe, StoreError> {
        self.crash.alive().await;
        self.inner.ripe(model, canary, stable, wanted, limit).await
    }
}
