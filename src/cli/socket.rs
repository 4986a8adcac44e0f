//! A word between processes of one machine: somebody wrote, look now. Losing
//! it is harmless: servers also look by themselves.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::store::Store;

/// The longest time a command waits for a server to take the word.
const PATIENCE: Duration = Duration::from_millis(200);
/// A listener that cannot accept tries again after this.
const PAUSE: Duration = Duration::from_secs(1);

fn path(state: &Path) -> PathBuf {
    state.join("refit.sock")
}

/// Tells the server of this project, if there is one on this machine.
pub async fn poke(state: &Path) {
    // Nobody listens, or too slowly: the write is found at the next look.
    let _unheard = tokio::time::timeout(PATIENCE, UnixStream::connect(path(state))).await;
}

/// Pokes `store` whenever another process writes, until `stop`. Without a socket (the path is too
/// long, the file system has none, another server has it) commands are noticed a little later.
pub async fn listen(state: PathBuf, store: Arc<dyn Store>, stop: CancellationToken) {
    let path = path(&state);
    if UnixStream::connect(&path).await.is_ok() {
        tracing::debug!("Another server of this project listens on {}", path.display());
        return;
    }
    // Left by a server that was killed; absent otherwise.
    let _absent = std::fs::remove_file(&path);
    let listener = match UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::debug!("Commands are noticed by polling, not at once: {}: {error}", path.display());
            return;
        }
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) => store.poke(),
            Err(error) => {
                tracing::debug!("{}: {error}", path.display());
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(PAUSE) => {}
                }
            }
        }
    }
    let _already_gone = std::fs::remove_file(&path);
}
