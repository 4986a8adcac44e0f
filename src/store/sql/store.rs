//! The store itself: what it holds, and the trait, method by method.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::FutureExt as _;
use sqlx::{Pool, Transaction};
use tokio::sync::{broadcast, watch};

use super::super::{BEGIN, Db, Session, Span, push, span, tell};
use super::Committer;
use super::holders::OwnWorker;
use super::signals::Stirred;
use crate::clock::Clock;
use crate::domain::Timestamp;
use crate::domain::id::{InstanceId, RunId};
use crate::store::liveness::Liveness;
use crate::store::outage::Outage;
use crate::store::silence::Silences;
use crate::store::{Store, StoreError};

/// How many runs may wait to be told that they were told something, before all are.
const UNHEARD: usize = 64;

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
    /// Runs in hand that were told something; none where it is not known which.
    pub(super) told: broadcast::Sender<Option<RunId>>,
    pub(super) outage: Outage,
    pub(super) silences: Silences,
    /// The worker that this process registered last, until it is retired.
    pub(super) worker: Mutex<Option<OwnWorker>>,
}

impl SqlStore {
    /// Starts the store's own tasks.
    pub(crate) fn start(parts: Parts) -> Arc<Self> {
        let news = watch::Sender::new(0);
        let committer = Committer::start(&parts.writer, &parts.clock, &news);
        Arc::new(Self {
            parts,
            committer,
            news,
            told: broadcast::Sender::new(UNHEARD),
            outage: Outage::default(),
            silences: Silences::default(),
            worker: Mutex::default(),
        })
    }

    /// A transaction that may write.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Db>, StoreError> {
        Ok(self.parts.writer.begin_with(BEGIN).await?)
    }

    /// Commits, with the wake-ups of those that nobody has in the same transaction.
    pub(super) async fn commit(
        &self,
        mut tx: Transaction<'static, Db>,
        stirred: &Stirred,
    ) -> Result<(), StoreError> {
        let Stirred { woken, told } = stirred;
        if !woken.is_empty() {
            push(&mut tx, woken).await?;
        }
        if !told.is_empty() {
            tell(&mut tx, told).await?;
        }
        tx.commit().await?;
        if !woken.is_empty() {
            self.look();
        }
        for run in told {
            self.say(Some(*run));
        }
        Ok(())
    }

    /// Tells whoever has `run` in this process, or any run, that it was told something.
    pub(super) fn say(&self, run: Option<RunId>) {
        // Nobody listens where no run is advanced.
        let _ = self.told.send(run);
    }

    pub(super) fn look(&self) {
        self.news.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The time to bind: the caller's, or none where the database's own decides.
    pub(super) fn at(&self, at: Timestamp) -> Option<Timestamp> {
        super::super::bound_time(&*self.parts.clock, at)
    }

    /// The time to bind and the span, as `until!` wants them, for what is due at `then` by this process's clock: no sooner
    /// and no later where the database's own time decides.
    pub(super) fn until(&self, then: Timestamp) -> (Option<Timestamp>, Span) {
        let now = self.parts.clock.now();
        (self.at(now), span(now, (then - now).to_std().unwrap_or_default()))
    }

    /// Notes when the database is away: after an outage nobody takes another's lease for a while.
    pub(super) fn seen<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Away(_)) = &result {
            self.outage.note();
        }
        result
    }

    /// The same, of statements about a few rows: whoever goes silent in the middle is given up.
    pub(super) fn answered<T>(
        &self,
        asked: impl Future<Output = Result<T, StoreError>>,
    ) -> impl Future<Output = Result<T, StoreError>> {
        super::super::in_time(asked).map(|answer| self.seen(answer))
    }

    /// The same, of statements about many rows.
    pub(super) fn answered_of_many<T>(
        &self,
        asked: impl Future<Output = Result<T, StoreError>>,
    ) -> impl Future<Output = Result<T, StoreError>> {
        super::super::in_long_time(asked).map(|answer| self.seen(answer))
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
        self.answered(async { Ok(sqlx::query("SELECT 1").execute(&self.parts.reader).await.map(drop)?) })
            .await
    }

    async fn close(&self) {
        self.committer.close().await;
        self.parts.session.close().await;
        self.parts.reader.close().await;
        self.parts.logs.close().await;
        self.parts.writer.close().await;
    }
}
