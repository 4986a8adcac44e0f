//! When the database was last away, as this process saw it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// After an outage no lease is taken from another for one lease: its owner
/// could not renew it either.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    last: Mutex<Option<Instant>>,
}

impl Outage {
    /// The database is away.
    pub(crate) fn note(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether it was away within the last `lease`.
    pub(crate) fn within(&self, lease: Duration) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| last.elapsed() < lease)
    }
}
