//! Schedules: rows whose next tick is taken by compare-and-set, so that one process fires it.

use async_trait::async_trait;

use super::super::Row;
use super::rows::{self, get, text, word};
use super::signals::Stirred;
use super::store::SqlStore;
use crate::domain::event::Event;
use crate::domain::id::WorkflowName;
use crate::store::{NewRun, ScheduleRow, Schedules, StoreError};

fn schedule(row: &Row) -> Result<ScheduleRow, StoreError> {
    Ok(ScheduleRow {
        id: get(row, "id")?,
        workflow: word(row, "workflow")?,
        expression: get(row, "expression")?,
        next_fire_at: get(row, "next_fire_at")?,
    })
}

#[async_trait]
impl Schedules for SqlStore {
    async fn sync_schedules(&self, workflow: &WorkflowName, rows: &[ScheduleRow]) -> Result<(), StoreError> {
        self.answered(self.set_schedules(workflow, rows)).await
    }

    async fn schedules(&self) -> Result<Vec<ScheduleRow>, StoreError> {
        self.answered(self.list_schedules()).await
    }

    async fn fire_schedule(
        &self,
        read: &ScheduleRow,
        next: &ScheduleRow,
        submissions: Vec<(Event, Vec<NewRun>)>,
    ) -> Result<bool, StoreError> {
        self.answered(self.fire(read, next, &submissions)).await
    }
}

impl SqlStore {
    async fn set_schedules(&self, workflow: &WorkflowName, rows: &[ScheduleRow]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let known = sqlx::query(sql!("SELECT * FROM refit.schedules WHERE workflow = $1"))
            .bind(workflow.as_str())
            .fetch_all(&mut *tx)
            .await?;
        for old in rows::all(&known, schedule)? {
            if rows.iter().all(|row| row.id != old.id) {
                sqlx::query(sql!("DELETE FROM refit.schedules WHERE id = $1"))
                    .bind(&old.id)
                    .execute(&mut *tx)
                    .await?;
            }
        }
        for row in rows {
            sqlx::query(sql!(
                "INSERT INTO refit.schedules (id, workflow, expression, next_fire_at) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (id) DO UPDATE SET workflow = excluded.workflow, expression = excluded.expression,
                     next_fire_at = excluded.next_fire_at
                 WHERE schedules.expression <> excluded.expression OR schedules.workflow <> excluded.workflow"
            ))
            .bind(text(&row.id))
            .bind(workflow.as_str())
            .bind(text(&row.expression))
            .bind(row.next_fire_at)
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    async fn list_schedules(&self) -> Result<Vec<ScheduleRow>, StoreError> {
        let found = sqlx::query(sql!("SELECT * FROM refit.schedules ORDER BY id"))
            .fetch_all(&self.parts.reader)
            .await?;
        rows::all(&found, schedule)
    }

    async fn fire(
        &self,
        read: &ScheduleRow,
        next: &ScheduleRow,
        submissions: &[(Event, Vec<NewRun>)],
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let moved = sqlx::query(sql!(
            "UPDATE refit.schedules SET next_fire_at = $4, expression = $5
             WHERE id = $1 AND next_fire_at = $2 AND expression = $3"
        ))
        .bind(text(&read.id))
        .bind(read.next_fire_at)
        .bind(text(&read.expression))
        .bind(next.next_fire_at)
        .bind(text(&next.expression))
        .execute(&mut *tx)
        .await?;
        if moved.rows_affected() == 0 {
            return Ok(false);
        }
        let mut stirred = Stirred::default();
        for (event, runs) in submissions {
            self.submit_in(&mut tx, event, runs, &mut stirred).await?;
        }
        self.commit(tx, &stirred).await?;
        Ok(true)
    }
}
