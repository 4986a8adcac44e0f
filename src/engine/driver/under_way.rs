//! The checkpoint that is on its way to the disk: at most one. It stands still until it is settled, and with it what it
//! holds of the store: nothing is waited for in between.

use std::task::Poll;

use tokio_util::sync::ReusableBoxFuture;

use crate::store::StoreError;

/// What was sent and not answered yet. (A boxed future that is `Sync`: a driver is shared with what it awaits.)
#[derive(Default)]
pub(super) struct UnderWay(Option<ReusableBoxFuture<'static, Result<(), StoreError>>>);

impl UnderWay {
    /// Begins to write, once what was sent before is written: the database gets one after the other.
    pub(super) async fn send(
        &mut self,
        write: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    ) -> Result<(), StoreError> {
        let mut write = ReusableBoxFuture::new(write);
        self.settle().await?;
        match futures::poll!(&mut write) {
            Poll::Ready(written) => written,
            Poll::Pending => {
                self.0 = Some(write);
                Ok(())
            }
        }
    }

    /// Returns once all is written that was sent.
    pub(super) async fn settle(&mut self) -> Result<(), StoreError> {
        match self.0.take() {
            Some(write) => write.await,
            None => Ok(()),
        }
    }
}
