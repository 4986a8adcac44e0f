//! Many checkpoints, one transaction.

use std::sync::Arc;

use sqlx::SqlitePool;
use tokio::sync::watch;

use super::sql::{Pending, write_checkpoint};
use super::{BEGIN, push};
use crate::clock::Clock;
use crate::domain::id::RunId;
use crate::store::{Checkpoint, StoreError};

/// Writes groups of checkpoints.
pub(crate) struct GroupWriter {
    pool: SqlitePool,
    clock: Arc<dyn Clock>,
    news: watch::Sender<u64>,
}

impl GroupWriter {
    pub(crate) fn new(pool: SqlitePool, clock: Arc<dyn Clock>, news: watch::Sender<u64>) -> Self {
        Self { pool, clock, news }
    }

    /// Writes the group in one transaction; one that is fenced writes nothing and does not disturb the others.
    /// When one is refused for another reason, each is written alone.
    pub(crate) async fn write(&mut self, group: Vec<Pending>) {
        let checkpoints: Vec<&Checkpoint> = group.iter().map(|pending| &pending.checkpoint).collect();
        match self.write_all(&checkpoints).await {
            Ok(results) => {
                group.into_iter().zip(results).for_each(|(pending, result)| pending.answer(result))
            }
            Err(StoreError::Broken(_)) if group.len() > 1 => {
                for pending in group {
                    let alone = self.write_all(&[&pending.checkpoint]).await;
                    pending.answer(alone.and_then(|mut results| results.pop().unwrap_or(Ok(()))));
                }
            }
            Err(error) => group.into_iter().for_each(|pending| pending.answer(Err(error.same()))),
        }
    }

    async fn write_all(
        &self,
        checkpoints: &[&Checkpoint],
    ) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let mut tx = self.pool.begin_with(BEGIN).await?;
        let mut woken: Vec<RunId> = Vec::new();
        let mut results = Vec::with_capacity(checkpoints.len());
        for checkpoint in checkpoints {
            match write_checkpoint(&mut tx, checkpoint, Some(self.clock.now())).await {
                Ok(runs) => {
                    woken.extend(runs);
                    results.push(Ok(()));
                }
                Err(StoreError::Fenced) => results.push(Err(StoreError::Fenced)),
                Err(error) => return Err(error),
            }
        }
        push(&mut tx, &woken).await?;
        tx.commit().await?;
        if !woken.is_empty() {
            self.news.send_modify(|count| *count = count.wrapping_add(1));
        }
        Ok(results)
    }
}
