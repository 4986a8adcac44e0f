//! What was sent is noted, though the database is away just then: what is not noted is sent again.

use std::time::Duration;

use tokio::time::Instant;

use super::closing::Closing;
use crate::store::StoreError;

/// It is tried again and again for so long.
const NOTED_WITHIN: Duration = Duration::from_secs(20);
/// How long one try may take.
const NOTED_AT_ONCE_WITHIN: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Notes that something was sent, or is still being sent: with more tries while the database is away.
pub async fn noted<T, F>(closing: &Closing, note: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let (until, mut pause) = (Instant::now() + NOTED_WITHIN, FIRST_PAUSE);
    loop {
        // A connection that went silent answers no more: another one may.
        let answer = tokio::time::timeout(NOTED_AT_ONCE_WITHIN, note()).await;
        match answer.unwrap_or_else(|_| Err(StoreError::Away("it does not answer".to_owned()))) {
            Err(away @ StoreError::Away(_)) if Instant::now() + pause < until => {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = closing.cuts_off() => return Err(away),
                }
            }
            answer => return answer,
        }
        pause *= 2;
    }
}
