//! A file in parts: read one after the other, sent several at once.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::buffers::Buffers;
use super::compress::Outgoing;
use super::source::{LocalFile, SourceError};
use super::upload::CHUNK;
use crate::domain::version::ManifestFile;

/// Why an upload in parts stopped.
pub(super) enum PartError {
    Source(SourceError),
    Store(object_store::Error),
}

/// Sends `out` part by part, several at once as buffers allow.
pub(super) async fn send_parts(
    upload: &mut dyn object_store::MultipartUpload,
    (file, path): (&LocalFile, &str),
    mut out: Outgoing,
    buffers: &Arc<Buffers>,
    sent: &mut (dyn FnMut(u64) + Send),
) -> Result<ManifestFile, PartError> {
    let mut sending = JoinSet::new();
    loop {
        let buffer;
        (out, buffer) = out.next(buffers.take().await, CHUNK).await.map_err(PartError::Source)?;
        if buffer.is_empty() {
            break;
        }
        let size = buffer.len() as u64;
        let part = upload.put_part(buffer.into_payload());
        sending.spawn(async move { part.await.map(|()| size) });
        while let Some(done) = sending.try_join_next() {
            sent(joined(Some(done)).map_err(PartError::Store)?);
        }
    }
    while let Some(done) = sending.join_next().await {
        sent(joined(Some(done)).map_err(PartError::Store)?);
    }
    out.finish(file, path).await.map_err(PartError::Source)
}

/// What a task of this module came to.
pub(super) fn joined<T>(
    result: Option<Result<Result<T, object_store::Error>, tokio::task::JoinError>>,
) -> Result<T, object_store::Error> {
    match result {
        Some(Ok(result)) => result,
        Some(Err(source)) => Err(object_store::Error::JoinError { source }),
        None => Err(object_store::Error::Generic { store: "upload", source: "no task".into() }),
    }
}
