//! A connection may be gone without a word: a router on the way forgot it, the server moved to another machine, a cable was
//! pulled. The kernel gives it up after a quarter of an hour; here it is given up when it does not answer soon.

use std::time::Duration;

use futures::FutureExt as _;
use sqlx::{Connection as _, PgConnection};

use crate::store::StoreError;

/// Whoever is asked whether they are still there answers within this.
const IS_THERE_WITHIN: Duration = Duration::from_secs(2);
/// Whoever was asked something long that nobody waits for any more, within this.
const IS_READY_WITHIN: Duration = Duration::from_secs(5);
/// Statements about a few rows are answered within this, whatever lock they wait for.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// And those about many, such as a batch of evidence or all labels of a version.
const MANY_ANSWERED_WITHIN: Duration = Duration::from_secs(300);

/// Whether the other end answers.
pub(super) async fn is_there(connection: &mut PgConnection) -> bool {
    matches!(soon(connection.ping()).await, Some(Ok(())))
}

/// Whether it takes another statement: what nobody waited for the end of is waited for, and undone where it was a
/// transaction. One whose statements were all answered is not asked.
pub(super) async fn is_ready(connection: &mut PgConnection) -> bool {
    matches!(tokio::time::timeout(IS_READY_WITHIN, connection.flush()).await, Ok(Ok(())))
}

/// What comes of it, if that is known soon.
pub(super) async fn soon<T>(asked: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(IS_THERE_WITHIN, asked).await.ok()
}

/// What comes of statements about a few rows. Without an answer nobody knows whether they were carried out, as when a
/// connection breaks; the connection is dropped with them.
pub(crate) fn in_time<T>(
    asked: impl Future<Output = Result<T, StoreError>>,
) -> impl Future<Output = Result<T, StoreError>> {
    within(ANSWERED_WITHIN, asked)
}

/// The same of statements about many.
pub(crate) fn in_long_time<T>(
    asked: impl Future<Output = Result<T, StoreError>>,
) -> impl Future<Output = Result<T, StoreError>> {
    within(MANY_ANSWERED_WITHIN, asked)
}

/// No `async fn`: each one around a future doubles its size, and what is asked is moved often.
fn within<T>(
    limit: Duration,
    asked: impl Future<Output = Result<T, StoreError>>,
) -> impl Future<Output = Result<T, StoreError>> {
    let late =
        move || StoreError::Away(format!("a statement was not answered within {} seconds", limit.as_secs()));
    tokio::time::timeout(limit, asked).map(move |answer| answer.unwrap_or_else(|_| Err(late())))
}
