//! A process that ends sends what it has in hand one by one, for as long as there is time.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// When a process that ends sends no more. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Closing(Arc<watch::Sender<Option<Times>>>);

#[derive(Debug, Clone, Copy)]
struct Times {
    begins_by: Instant,
    ends_by: Instant,
}

impl Closing {
    /// The process ends: from `begins_by` on nothing is begun, and what is being sent at `ends_by` is cut off. Said
    /// again when it turns out to end sooner.
    pub fn close(&self, begins_by: Instant, ends_by: Instant) {
        self.0.send_replace(Some(Times { begins_by, ends_by }));
    }

    /// Whether there is time to send one more.
    pub fn may_begin(&self) -> bool {
        self.0.borrow().is_none_or(|times| Instant::now() < times.begins_by)
    }

    /// Returns when what is being sent is cut off.
    pub async fn cuts_off(&self) {
        let mut times = self.0.subscribe();
        loop {
            let ends_by = times.borrow_and_update().map(|times| times.ends_by);
            let end = async {
                match ends_by {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = end => return,
                // It cannot fail: whoever sends is `self`.
                Ok(()) = times.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn nothing_is_begun_that_has_no_time_to_end() {
        let (closing, now) = (Closing::default(), Instant::now());
        let later = now + Duration::from_secs(3_600);
        let mut cut = pin!(closing.cuts_off());
        assert!(closing.may_begin() && poll!(cut.as_mut()).is_pending());
        closing.close(later, later);
        assert!(closing.may_begin() && poll!(cut.as_mut()).is_pending());
        // The runs ended sooner than they had to.
        closing.close(now, later);
        assert!(!closing.may_begin() && poll!(cut.as_mut()).is_pending());
        closing.close(now, now);
        assert!(!closing.may_begin());
        cut.await;
    }
}
