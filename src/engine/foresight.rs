//! What a canary can show, asked before it goes out: the first look of the
//! controller at the traffic so far. What is fetched for it is kept, as at any
//! look; what the look came to is not.

use super::Engine;
use crate::domain::canary::{CanaryRecord, Foreseen, look};
use crate::domain::release::Release;
use crate::store::StoreError;

/// Fetches before the answer. What a source has beyond them is read once the canary is out.
const FETCHES: usize = 5;

impl Engine {
    /// What `canary` could show if it went out now; none when too little is known of the traffic.
    pub(super) async fn foresee(
        &self,
        mut canary: CanaryRecord,
        release: &Release,
    ) -> Result<Option<Foreseen>, StoreError> {
        let now = canary.started_at;
        for _ in 0..FETCHES {
            if !self.pull(&canary, now).await? {
                break;
            }
        }
        loop {
            let news = self.news(&canary, release, now).await?;
            let looked = look(&canary, &news, now);
            if looked.forecast.is_some() || !news.more {
                return Ok(looked.forecast);
            }
            canary = looked.record;
        }
    }
}
