//! The memory of an upload: a few large buffers, each used again and again.
//!
//! A large block that was freed stays with the allocator, once for each thread that asked for one:
//! what is never freed is never kept twice.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use object_store::PutPayload;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Buffers that are not in use, and how many there may be.
pub(super) struct Buffers {
    capacity: usize,
    free: Mutex<Vec<Vec<u8>>>,
    permits: Arc<Semaphore>,
}

impl Buffers {
    /// At most `count` buffers of `capacity` bytes; none is made before it is needed.
    pub(super) fn new(count: usize, capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, free: Mutex::default(), permits: Arc::new(Semaphore::new(count)) })
    }

    /// An empty buffer, once there is one.
    pub(super) async fn take(self: &Arc<Self>) -> Buffer {
        // An error would mean that the semaphore was closed, which nobody does.
        let permit = self.permits.clone().acquire_owned().await.ok();
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = free.unwrap_or_else(|| Vec::with_capacity(self.capacity));
        Buffer { bytes, home: Arc::clone(self), _permit: permit }
    }
}

/// A buffer in use; goes home when it is dropped.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
    /// Dropped after the buffer went home.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Buffer {
    /// What is in it, to be sent; it goes home when nobody sends it any more.
    pub(super) fn into_payload(self) -> PutPayload {
        PutPayload::from(Bytes::from_owner(self))
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsMut<Vec<u8>> for Buffer {
    fn as_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.home.free.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_buffer_is_used_again_once_nobody_sends_what_is_in_it() {
        let buffers = Buffers::new(1, 16);
        let mut first = buffers.take().await;
        first.as_mut().extend_from_slice(b"model");
        let place = first.as_ptr();
        let payload = first.into_payload();
        let again = payload.clone();
        drop(payload);
        assert!(buffers.take().now_or_never().is_none(), "a clone is still on its way");
        assert_eq!(again.as_ref(), [Bytes::from_static(b"model")]);
        drop(again);
        let second = buffers.take().now_or_never().expect("free");
        assert_eq!((second.as_ptr(), second.bytes.len(), second.bytes.capacity()), (place, 0, 16));
    }
}
