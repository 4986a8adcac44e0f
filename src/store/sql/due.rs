//! What waits for its time, over all that refit does by time.

use std::collections::BTreeSet;

use super::holders::InHand;
use super::rows::{self, get};
use super::store::SqlStore;
use crate::domain::Timestamp;
use crate::domain::id::RunId;
use crate::store::{Awaited, Due, StoreError};

impl SqlStore {
    pub(super) async fn what_is_due(&self, at: Timestamp) -> Result<Due, StoreError> {
        // A run goes from being leased or asleep to being due, and then leaves messages: what is looked for in that order
        // is not missed while others act.
        let lease = self.soonest_silent_lease().await?;
        let wakes = self
            .soonest(
                sql!(concat!(
                    "SELECT wake_at FROM refit.runs WHERE poke_at IS NOT NULL AND lease_owner IS NULL AND wake_at > ",
                    now!("$1"),
                    " ORDER BY wake_at LIMIT 1"
                )),
                Some(at),
            )
            .await?;
        let due = sqlx::query(sql!(concat!(
            "SELECT id FROM refit.runs r WHERE poke_at IS NOT NULL AND lease_owner IS NULL
                 AND (wake_at <= ",
            now!("$1"),
            " OR signal_seq > signal_seen)
                 AND NOT (status = 'queued' AND cancel IS NULL AND EXISTS (
                     SELECT 1 FROM refit.concurrency c WHERE c.key = r.concurrency_key AND c.run <> r.id))
             ORDER BY poke_at"
        )))
        .bind(self.at(at))
        .fetch_all(&self.parts.reader)
        .await?;
        let runs = rows::all(&due, |row| Ok(RunId(get(row, "id")?)))?;
        let soonest = [
            (Awaited::Lease, lease),
            (Awaited::Run, wakes),
            (
                Awaited::Look,
                self.soonest(
                    sql!(
                        "SELECT next_look_at FROM refit.canaries WHERE state IN ('watching', 'baking')
                     ORDER BY next_look_at LIMIT 1"
                    ),
                    None,
                )
                .await?,
            ),
            (
                Awaited::Message,
                self.soonest_in_hand(
                    InHand::Messages,
                    sql!("SELECT due_at FROM refit.outbox WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1"),
                    at,
                )
                .await?,
            ),
            (
                Awaited::Board,
                self.soonest_in_hand(
                    InHand::Boards,
                    sql!("SELECT due_at FROM refit.boards WHERE due_at IS NOT NULL ORDER BY due_at LIMIT 1"),
                    at,
                )
                .await?,
            ),
        ];
        Ok(Due { runs, soonest: soonest.into_iter().filter_map(|(what, at)| Some((what, at?))).collect() })
    }

    /// The one time that `sql` finds; `after` is its `$1`, where it has one.
    async fn soonest(
        &self,
        sql: &'static str,
        after: Option<Timestamp>,
    ) -> Result<Option<Timestamp>, StoreError> {
        let query = sqlx::query_scalar::<_, Timestamp>(sql);
        let query = match after {
            Some(after) => query.bind(self.at(after)),
            None => query,
        };
        Ok(query.fetch_optional(&self.parts.reader).await?)
    }

    /// The same; what a dead worker has in hand is due now.
    async fn soonest_in_hand(
        &self,
        what: InHand,
        sql: &'static str,
        at: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        if self.is_held_by_the_dead(what).await? {
            return Ok(Some(at));
        }
        self.soonest(sql, None).await
    }

    /// When a lease ends whose holder does not live: then its run can go on here.
    async fn soonest_silent_lease(&self) -> Result<Option<Timestamp>, StoreError> {
        let known = self.registered().await?;
        let live: BTreeSet<_> = known
            .into_iter()
            .filter(|it| !self.is_dead(it.id, it.machine.as_deref()))
            .map(|it| it.id.0)
            .collect();
        let leases = sqlx::query(sql!(
            "SELECT lease_owner, lease_until FROM refit.runs WHERE lease_owner IS NOT NULL ORDER BY lease_until"
        ))
        .fetch_all(&self.parts.reader)
        .await?;
        let leases = rows::all(&leases, |row| Ok((get(row, "lease_owner")?, get(row, "lease_until")?)))?;
        Ok(leases.into_iter().find(|(owner, _)| !live.contains(owner)).map(|(_, until)| until))
    }
}
