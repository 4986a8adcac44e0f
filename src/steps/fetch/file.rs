//! Rows of a file.

use std::path::Path;

use bytes::BytesMut;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::Sink;
use crate::steps::context::StepError;

const CHUNK: usize = 256 * 1024;

pub(super) async fn send(path: &Path, sink: &Sink) -> Result<(), StepError> {
    let cannot = |error: std::io::Error| {
        StepError::permanent(format!("cannot read the file {}: {error}", path.display()))
    };
    // Opening a pipe would wait for whoever writes into it.
    let found = tokio::fs::metadata(path).await.map_err(cannot)?;
    if !found.is_file() {
        return Err(StepError::permanent(format!("{} is not a regular file", path.display())));
    }
    let mut file = File::open(path).await.map_err(cannot)?;
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        if file.read_buf(&mut chunk).await.map_err(cannot)? == 0 {
            return Ok(());
        }
        if sink.send(chunk.freeze()).await.is_err() {
            return Ok(());
        }
    }
}
