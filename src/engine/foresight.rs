//! What a canary can show, asked before it goes out: the first look of the
//! controller at the traffic so far, of which nothing is kept.

use super::Engine;
use crate::domain::canary::{CanaryRecord, Foreseen, look};
use crate::domain::release::Release;
use crate::store::StoreError;

impl Engine {
    /// What `canary` could show if it went out now; none when too little is known of the traffic.
    pub(super) async fn foresee(
        &self,
        mut canary: CanaryRecord,
        release: &Release,
    ) -> Result<Option<Foreseen>, StoreError> {
        let now = canary.started_at;
        loop {
            let news = self.news(&canary, release).await?;
            let looked = look(&canary, &news, now);
            if looked.forecast.is_some() || !news.more {
                return Ok(looked.forecast);
            }
            canary = looked.record;
        }
    }
}
