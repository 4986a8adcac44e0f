//! The store itself: what it holds, and the trait, method by method.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use sqlx::{Pool, Transaction};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::super::{BEGIN, Connection, Db, Session, push};
use super::Committer;
use crate::adapter::Posted;
use crate::clock::Clock;
use crate::domain::Timestamp;
use crate::domain::canary::{CanaryRecord, CanaryState, Ripe, Ripening};
use crate::domain::event::Event;
use crate::domain::evidence::LabelCounts;
use crate::domain::history::ChangedBy;
use crate::domain::id::{
    CanaryId, Epoch, EventId, Generation, InstanceId, ModelName, NotifierName, RunId, StepId, TargetName,
    VersionName, WorkerId, WorkflowName,
};
use crate::domain::pull::{PullState, PulledBatch};
use crate::domain::release::Release;
use crate::domain::run::{Attempt, CancelRequest, Intent, Outcome, Run, SignalKind};
use crate::domain::version::{Manifest, VersionRecord, VersionState};
use crate::store::liveness::Liveness;
use crate::store::outage::Outage;
use crate::store::{
    BatchReceipt, BoardEntry, Checkpoint, ClaimResult, Due, EvidenceMinute, LogChunk, NewRun, Notice,
    ObservationBatch, OnWake, OutboxEntry, PairedError, Planner, Pulled, ReleaseAudit, ReleaseWrite,
    ReleaseWritten, Renewal, Reservation, RunFilter, RunSummary, ScheduleRow, ScoredRows, Store, StoreError,
    Submitted, TruthBatch, VersionNamer,
};

/// What a database's `open` has made.
pub(crate) struct Parts {
    /// Where writes go; one connection on SQLite.
    pub writer: Pool<Db>,
    /// Where reads go.
    pub reader: Pool<Db>,
    /// Where step logs are.
    pub logs: Pool<Db>,
    /// This database's id.
    pub instance: InstanceId,
    /// What `label` says.
    pub label: String,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// The lock files of this machine's workers; none where they cannot be trusted.
    pub liveness: Option<Liveness>,
    /// What keeps this process' workers known to the database.
    pub session: Session,
}

/// A store over one of the two databases.
pub(crate) struct SqlStore {
    pub(super) parts: Parts,
    pub(super) committer: Committer,
    /// Counts wake-ups written by this process, and pokes by others.
    pub(super) news: watch::Sender<u64>,
    pub(super) outage: Outage,
}

impl SqlStore {
    /// Starts the store's own tasks.
    pub(crate) fn start(parts: Parts) -> Arc<Self> {
        let news = watch::Sender::new(0);
        let committer = Committer::start(&parts.writer, &parts.clock, &news);
        Arc::new(Self { parts, committer, news, outage: Outage::default() })
    }

    /// A transaction that may write.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Db>, StoreError> {
        Ok(self.parts.writer.begin_with(BEGIN).await?)
    }

    /// Commits, with the wake-ups of `runs` in the same transaction.
    pub(super) async fn commit(
        &self,
        mut tx: Transaction<'static, Db>,
        runs: &[RunId],
    ) -> Result<(), StoreError> {
        self.push(&mut tx, runs).await?;
        tx.commit().await?;
        if !runs.is_empty() {
            self.look();
        }
        Ok(())
    }

    async fn push(&self, connection: &mut Connection, runs: &[RunId]) -> Result<(), StoreError> {
        if runs.is_empty() { Ok(()) } else { push(connection, runs).await }
    }

    fn look(&self) {
        self.news.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The time to bind: the caller's, or none where the database's own decides.
    pub(super) fn at(&self, at: Timestamp) -> Option<Timestamp> {
        super::super::bound_time(&*self.parts.clock, at)
    }

    /// Notes when the database is away: after an outage nobody takes another's lease for a while.
    pub(super) fn seen<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Away(_)) = &result {
            self.outage.note();
        }
        result
    }
}

#[async_trait]
impl Store for SqlStore {
    fn instance(&self) -> InstanceId {
        self.parts.instance
    }

    fn label(&self) -> String {
        self.parts.label.clone()
    }

    fn is_shared(&self) -> bool {
        super::super::IS_SHARED
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.seen(
            sqlx::query("SELECT 1").execute(&self.parts.reader).await.map(|_| ()).map_err(StoreError::from),
        )
    }

    async fn close(&self) {
        self.committer.close().await;
        self.parts.session.close().await;
        self.parts.reader.close().await;
        self.parts.logs.close().await;
        self.parts.writer.close().await;
    }

    async fn submit(&self, event: &Event, runs: Vec<NewRun>) -> Result<Vec<Submitted>, StoreError> {
        self.seen(self.submit_event(event, &runs).await)
    }

    async fn event(&self, id: EventId) -> Result<Option<Event>, StoreError> {
        self.seen(self.read_event(id).await)
    }

    async fn events(&self, before: Option<EventId>, limit: u32) -> Result<Vec<Event>, StoreError> {
        self.seen(self.list_events(before, limit).await)
    }

    async fn run(&self, id: RunId) -> Result<Option<Run>, StoreError> {
        self.seen(self.read_run(id).await)
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunSummary>, StoreError> {
        self.seen(self.list_runs(filter).await)
    }

    async fn attempts(&self, run: RunId) -> Result<Vec<Attempt>, StoreError> {
        self.seen(self.list_attempts(run).await)
    }

    async fn intents(&self, run: RunId) -> Result<Vec<Intent>, StoreError> {
        self.seen(self.list_intents(run).await)
    }

    async fn previous_output(
        &self,
        workflow: &WorkflowName,
        before: RunId,
        step: &StepId,
    ) -> Result<Option<Value>, StoreError> {
        self.seen(self.output_before(workflow, before, step).await)
    }

    async fn recent_outcomes(&self, workflow: &WorkflowName, limit: u32) -> Result<Vec<Outcome>, StoreError> {
        self.seen(self.list_outcomes(workflow, limit).await)
    }

    async fn register_worker(
        &self,
        worker: WorkerId,
        labels: &[String],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.seen(self.enter_worker(worker, labels, at).await)
    }

    async fn live_workers(&self) -> Result<u32, StoreError> {
        self.seen(self.count_live().await)
    }

    async fn retire_worker(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.seen(self.leave_worker(worker).await)
    }

    async fn claim(
        &self,
        run: RunId,
        worker: WorkerId,
        lease: Duration,
        at: Timestamp,
        plan: Planner<'_>,
    ) -> Result<ClaimResult, StoreError> {
        self.seen(self.claim_run(run, worker, lease, at, plan).await)
    }

    async fn renew(
        &self,
        run: RunId,
        epoch: Epoch,
        lease: Duration,
        at: Timestamp,
    ) -> Result<Renewal, StoreError> {
        self.seen(self.renew_lease(run, epoch, lease, at).await)
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<(), StoreError> {
        self.seen(self.committer.write(checkpoint).await)
    }

    async fn release_lease(&self, run: RunId, epoch: Epoch) -> Result<(), StoreError> {
        self.seen(self.give_back(run, epoch).await)
    }

    async fn intend(&self, run: RunId, epoch: Epoch, intent: &Intent) -> Result<Intent, StoreError> {
        self.seen(self.record_intent(run, epoch, intent).await)
    }

    async fn settle(&self, run: RunId, epoch: Epoch, key: &str, result: &Value) -> Result<(), StoreError> {
        self.seen(self.settle_intent(run, epoch, key, result).await)
    }

    async fn queue_notices(&self, notices: &[Notice], at: Timestamp) -> Result<(), StoreError> {
        self.seen(self.add_notices(notices, at).await)
    }

    async fn signal(
        &self,
        run: RunId,
        kind: &SignalKind,
        actor: &str,
        reason: Option<&str>,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        self.seen(self.send_signal(run, kind, actor, reason, at).await)
    }

    async fn request_cancel(&self, run: RunId, request: &CancelRequest) -> Result<bool, StoreError> {
        self.seen(self.ask_to_cancel(run, request).await)
    }

    async fn reap(&self, at: Timestamp) -> Result<(usize, Option<Timestamp>), StoreError> {
        self.seen(self.wake_due(at).await)
    }

    async fn deliver_wakeups(&self, to: Arc<dyn OnWake>, concurrency: usize, stop: CancellationToken) {
        self.deliver(to, concurrency, stop).await;
    }

    fn poke(&self) {
        self.look();
    }

    fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    async fn due(&self, at: Timestamp) -> Result<Due, StoreError> {
        self.seen(self.what_is_due(at).await)
    }

    async fn rest(&self) {
        self.committer.rest().await;
        self.parts.session.rest().await;
        super::super::close_idle(&self.parts.writer).await;
    }

    async fn sync_schedules(&self, workflow: &WorkflowName, rows: &[ScheduleRow]) -> Result<(), StoreError> {
        self.seen(self.set_schedules(workflow, rows).await)
    }

    async fn schedules(&self) -> Result<Vec<ScheduleRow>, StoreError> {
        self.seen(self.list_schedules().await)
    }

    async fn fire_schedule(
        &self,
        id: &str,
        read_at: Timestamp,
        next: Timestamp,
        submissions: Vec<(Event, Vec<NewRun>)>,
    ) -> Result<bool, StoreError> {
        self.seen(self.fire(id, read_at, next, &submissions).await)
    }

    async fn take_outbox(
        &self,
        limit: u32,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        self.seen(self.take_notices(limit, hold, at).await)
    }

    async fn hold_outbox(
        &self,
        id: i64,
        held_until: Option<Timestamp>,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        self.seen(self.hold_notice(id, held_until, hold, at).await)
    }

    async fn outbox_waits(&self, entries: &[&OutboxEntry], due_at: Timestamp) -> Result<(), StoreError> {
        self.seen(self.notices_were_not_tried(entries, due_at).await)
    }

    async fn outbox_sent(&self, id: i64, at: Timestamp) -> Result<(), StoreError> {
        self.seen(self.notice_sent(id, at).await)
    }

    async fn outbox_failed(
        &self,
        entry: &OutboxEntry,
        error: &str,
        retry_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        self.seen(self.notice_failed(entry, error, retry_at).await)
    }

    async fn outbox_of(&self, run: RunId) -> Result<Vec<OutboxEntry>, StoreError> {
        self.seen(self.notices_of(run).await)
    }

    async fn touch_boards(
        &self,
        run: RunId,
        boards: &[NotifierName],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.seen(self.add_boards(run, boards, at).await)
    }

    async fn take_boards(
        &self,
        limit: u32,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Vec<BoardEntry>, StoreError> {
        self.seen(self.take_due_boards(limit, hold, at).await)
    }

    async fn board_shown(
        &self,
        board: &BoardEntry,
        place: &Posted,
        shows: &str,
        again_at: Timestamp,
    ) -> Result<(), StoreError> {
        self.seen(self.board_is_shown(board, place, shows, again_at).await)
    }

    async fn board_failed(
        &self,
        board: &BoardEntry,
        error: &str,
        retry_at: Option<Timestamp>,
        again_at: Timestamp,
    ) -> Result<(), StoreError> {
        self.seen(self.board_is_stale(board, error, retry_at, again_at).await)
    }

    async fn hold_board(
        &self,
        run: RunId,
        notifier: &NotifierName,
        held_until: Timestamp,
        hold: Duration,
        at: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        self.seen(self.hold_due_board(run, notifier, held_until, hold, at).await)
    }

    async fn board_waits(&self, board: &BoardEntry, due_at: Timestamp) -> Result<(), StoreError> {
        self.seen(self.board_was_not_tried(board, due_at).await)
    }

    async fn board_of(&self, run: RunId, notifier: &NotifierName) -> Result<Option<Posted>, StoreError> {
        self.seen(self.board_place(run, notifier).await)
    }

    async fn append_log(
        &self,
        run: RunId,
        step: &StepId,
        attempt: u32,
        bytes: &[u8],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.seen(self.write_log(run, step, attempt, bytes, at).await)
    }

    async fn read_log(
        &self,
        run: RunId,
        step: Option<&StepId>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<LogChunk>, StoreError> {
        self.seen(self.list_log(run, step, after, limit).await)
    }

    async fn reserve_version(
        &self,
        by: &Reservation,
        name_of: VersionNamer<'_>,
    ) -> Result<VersionRecord, StoreError> {
        self.seen(self.reserve(by, name_of).await)
    }

    async fn set_version_state(
        &self,
        model: &ModelName,
        version: &VersionName,
        state: VersionState,
        sealed: Option<(&Manifest, &str, &str)>,
        fence: Option<(RunId, Epoch)>,
    ) -> Result<(), StoreError> {
        self.seen(self.change_version(model, version, state, sealed, fence).await)
    }

    async fn adopt_version(&self, record: &VersionRecord, by: &ChangedBy) -> Result<(), StoreError> {
        self.seen(self.adopt(record, by).await)
    }

    async fn version(
        &self,
        model: &ModelName,
        version: &VersionName,
    ) -> Result<Option<VersionRecord>, StoreError> {
        self.seen(self.read_version(model, version).await)
    }

    async fn versions(&self, model: &ModelName) -> Result<Vec<VersionRecord>, StoreError> {
        self.seen(self.list_versions(model).await)
    }

    async fn models(&self) -> Result<Vec<ModelName>, StoreError> {
        self.seen(self.list_models().await)
    }

    async fn release(&self, model: &ModelName, target: &TargetName) -> Result<Option<Release>, StoreError> {
        self.seen(self.read_release(model, target).await)
    }

    async fn releases(&self, model: Option<&ModelName>) -> Result<Vec<Release>, StoreError> {
        self.seen(self.list_releases(model).await)
    }

    async fn write_release(&self, write: ReleaseWrite) -> Result<ReleaseWritten, StoreError> {
        self.seen(self.change_release(&write).await)
    }

    async fn release_applied(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
    ) -> Result<(), StoreError> {
        self.seen(self.mark_applied(model, target, generation).await)
    }

    async fn extend_canary_validity(
        &self,
        model: &ModelName,
        target: &TargetName,
        generation: Generation,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        self.seen(self.extend_validity(model, target, generation, until).await)
    }

    async fn release_history(
        &self,
        model: &ModelName,
        target: &TargetName,
        limit: u32,
    ) -> Result<Vec<ReleaseAudit>, StoreError> {
        self.seen(self.list_history(model, target, limit).await)
    }

    async fn open_canary(&self, epoch: Epoch, canary: &CanaryRecord) -> Result<CanaryRecord, StoreError> {
        self.seen(self.record_canary(epoch, canary).await)
    }

    async fn canary_of(&self, run: RunId) -> Result<Option<CanaryRecord>, StoreError> {
        self.seen(self.read_canary_of(run).await)
    }

    async fn live_canaries(&self, due_at: Option<Timestamp>) -> Result<Vec<CanaryRecord>, StoreError> {
        self.seen(self.list_live(due_at).await)
    }

    async fn take_look(&self, id: CanaryId, read: Timestamp, next: Timestamp) -> Result<bool, StoreError> {
        self.seen(self.claim_look(id, read, next).await)
    }

    async fn save_look(
        &self,
        before: &CanaryRecord,
        after: &CanaryRecord,
        notices: &[Notice],
    ) -> Result<bool, StoreError> {
        self.seen(self.write_look(before, after, notices).await)
    }

    async fn end_bake(&self, id: CanaryId, at: Timestamp) -> Result<CanaryRecord, StoreError> {
        self.seen(self.finish_bake(id, at).await)
    }

    async fn set_canary_state(
        &self,
        id: CanaryId,
        state: CanaryState,
        bake_until: Option<Timestamp>,
        reason: &str,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        self.seen(self.change_canary(id, state, bake_until, reason, at).await)
    }

    async fn observe(&self, batch: &ObservationBatch) -> Result<BatchReceipt, StoreError> {
        self.seen(self.add_observations(batch).await)
    }

    async fn add_truth(&self, batch: &TruthBatch) -> Result<BatchReceipt, StoreError> {
        self.seen(self.add_truths(batch).await)
    }

    async fn add_scored(
        &self,
        run: RunId,
        epoch: Epoch,
        model: &ModelName,
        scored: &ScoredRows,
    ) -> Result<u64, StoreError> {
        self.seen(self.add_scored_rows(run, epoch, model, scored).await)
    }

    async fn pulls(&self, model: Option<&ModelName>) -> Result<Vec<Pulled>, StoreError> {
        self.list_pulls(model).await
    }

    async fn keep_pulled(&self, batch: &PulledBatch) -> Result<Option<PullState>, StoreError> {
        self.seen(self.keep_page(batch).await)
    }

    async fn evidence(
        &self,
        model: &ModelName,
        versions: &[VersionName],
        after: i64,
        limit: u32,
    ) -> Result<Vec<EvidenceMinute>, StoreError> {
        self.seen(self.list_evidence(model, versions, after, limit).await)
    }

    async fn paired_errors(
        &self,
        model: &ModelName,
        canary: &VersionName,
        stable: &VersionName,
        after: i64,
        limit: u32,
    ) -> Result<Vec<PairedError>, StoreError> {
        self.seen(self.list_pairs(model, canary, stable, after, limit).await)
    }

    async fn labelled(
        &self,
        model: &ModelName,
        version: &VersionName,
        since: Timestamp,
    ) -> Result<LabelCounts, StoreError> {
        self.seen(self.count_labels(model, version, since).await)
    }

    async fn ripe(
        &self,
        model: &ModelName,
        canary: &VersionName,
        stable: &VersionName,
        wanted: &Ripening,
        limit: u32,
    ) -> Result<Ripe, StoreError> {
        self.seen(self.list_ripe(model, canary, stable, wanted, limit).await)
    }
}
