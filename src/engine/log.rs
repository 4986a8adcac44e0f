//! A step's log: gathered, masked and kept in chunks of 64 KiB or 250 ms.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Engine;
use crate::domain::id::{RunId, StepId};
use crate::steps::context::StepLog;

const CHUNK_BYTES: usize = 64 * 1024;
const CHUNK_TIME: Duration = Duration::from_millis(250);
/// Lines are masked whole; one longer than this is masked in parts.
const LONGEST_HELD: usize = 16 * 1024;
/// Writes that wait; more than these are waited for by dropping the oldest part of none: the sender counts them.
const WAITING: usize = 1024;

/// Takes what one attempt says.
pub struct StoredLog {
    send: std::sync::Mutex<Option<mpsc::Sender<Vec<u8>>>>,
    writer: std::sync::Mutex<Option<JoinHandle<()>>>,
    progress: Arc<dyn Fn(Option<f64>, &str) + Send + Sync>,
    /// Started with the first write: most steps say nothing.
    start: Box<dyn Fn() -> (mpsc::Sender<Vec<u8>>, JoinHandle<()>) + Send + Sync>,
    dropped: std::sync::atomic::AtomicU64,
}

impl StoredLog {
    /// The log of one attempt.
    pub fn new(engine: &Arc<Engine>, run: RunId, step: StepId, attempt: u32) -> Self {
        let engine = Arc::clone(engine);
        let name = step.clone();
        let start = move || {
            let (send, receive) = mpsc::channel(WAITING);
            let writer = tokio::spawn(write(Arc::clone(&engine), run, step.clone(), attempt, receive));
            (send, writer)
        };
        let progress = move |percent: Option<f64>, message: &str| {
            tracing::info!(run.id = %run, step.name = %name, percent, "{message}");
        };
        Self {
            send: std::sync::Mutex::default(),
            writer: std::sync::Mutex::default(),
            progress: Arc::new(progress),
            start: Box::new(start),
            dropped: std::sync::atomic::AtomicU64::new(0),
        }
    }

    /// Waits until all is kept.
    pub async fn close(&self) {
        let dropped = self.dropped.swap(0, std::sync::atomic::Ordering::Relaxed);
        if dropped > 0 {
            self.note(&format!("{dropped} bytes of log came faster than they could be kept and are missing"));
        }
        let writer = {
            self.send.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
        };
        if let Some(writer) = writer
            && let Err(error) = writer.await
        {
            tracing::error!("A step's log ended early: {error}");
        }
    }
}

impl StepLog for StoredLog {
    fn write(&self, bytes: &[u8]) {
        let mut send = self.send.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let sender = send.get_or_insert_with(|| {
            let (sender, writer) = (self.start)();
            *self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(writer);
            sender
        });
        if sender.try_send(bytes.to_vec()).is_err() {
            self.dropped.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn note(&self, line: &str) {
        self.write(format!("refit: {line}\n").as_bytes());
    }

    fn progress(&self, percent: Option<f64>, message: &str) {
        (self.progress)(percent, message);
    }
}

async fn write(
    engine: Arc<Engine>,
    run: RunId,
    step: StepId,
    attempt: u32,
    mut receive: mpsc::Receiver<Vec<u8>>,
) {
    let mut held: Vec<u8> = vec![];
    let mut open = true;
    while open {
        let mut due = None;
        loop {
            let wait = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                bytes = receive.recv() => match bytes {
                    Some(bytes) => {
                        held.extend_from_slice(&bytes);
                        due.get_or_insert_with(|| tokio::time::Instant::now() + CHUNK_TIME);
                        if held.len() >= CHUNK_BYTES {
                            break;
                        }
                    }
                    None => {
                        open = false;
                        break;
                    }
                },
                () = wait => break,
            }
        }
        let whole = if open { whole_lines(&held) } else { held.len() };
        let rest = held.split_off(whole);
        let lines = std::mem::replace(&mut held, rest);
        keep(&engine, run, &step, attempt, &lines).await;
    }
}

/// The end of the last whole line: a secret is never cut in two by a chunk's end.
fn whole_lines(held: &[u8]) -> usize {
    let end = held.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if held.len() - end > LONGEST_HELD { held.len() } else { end }
}

async fn keep(engine: &Engine, run: RunId, step: &StepId, attempt: u32, lines: &[u8]) {
    if lines.is_empty() {
        return;
    }
    let masked = engine.services.secrets.mask(&String::from_utf8_lossy(lines));
    for chunk in masked.as_bytes().chunks(CHUNK_BYTES) {
        let kept = engine.store.append_log(run, step, attempt, chunk, engine.clock.now()).await;
        if let Err(error) = kept {
            tracing::warn!(run.id = %run, step.name = %step, "Part of a step's log could not be kept: {error}");
        }
    }
}
