//! A step's log: gathered, masked and kept in chunks of 64 KiB or 250 ms.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
/// Bytes that may wait for the database; what comes beyond them is counted and dropped.
const MOST_WAITING: usize = 16 * 1024 * 1024;

/// Takes what one attempt says.
pub struct StoredLog {
    engine: Arc<Engine>,
    run: RunId,
    step: StepId,
    attempt: u32,
    /// Started with the first write: most steps say nothing.
    writer: Mutex<Option<Writer>>,
    waiting: Arc<AtomicUsize>,
    dropped: AtomicU64,
}

struct Writer {
    send: mpsc::UnboundedSender<Vec<u8>>,
    task: JoinHandle<()>,
}

impl StoredLog {
    /// The log of one attempt.
    pub fn new(engine: &Arc<Engine>, run: RunId, step: StepId, attempt: u32) -> Self {
        Self {
            engine: Arc::clone(engine),
            run,
            step,
            attempt,
            writer: Mutex::default(),
            waiting: Arc::default(),
            dropped: AtomicU64::new(0),
        }
    }

    fn start(&self) -> Writer {
        let (send, receive) = mpsc::unbounded_channel();
        let keeper = Keeper {
            engine: Arc::clone(&self.engine),
            run: self.run,
            step: self.step.clone(),
            attempt: self.attempt,
        };
        let task = tokio::spawn(write(keeper, Arc::clone(&self.waiting), receive));
        Writer { send, task }
    }

    /// Waits until all is kept.
    pub async fn close(&self) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            self.note(&format!("{dropped} bytes of log came faster than they could be kept and are missing"));
        }
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Writer { send, task }) = writer {
            drop(send);
            if let Err(error) = task.await {
                tracing::error!("A step's log ended early: {error}");
            }
        }
    }
}

impl StepLog for StoredLog {
    fn write(&self, bytes: &[u8]) {
        if self.waiting.load(Ordering::Relaxed) > MOST_WAITING {
            self.dropped.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return;
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Writer { send, .. } = writer.get_or_insert_with(|| self.start());
        self.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
        if send.send(bytes.to_vec()).is_err() {
            self.dropped.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
    }

    fn note(&self, line: &str) {
        self.write(format!("refit: {line}\n").as_bytes());
    }

    fn progress(&self, percent: Option<f64>, message: &str) {
        let message = self.engine.services.secrets.mask(message);
        tracing::info!(run.id = %self.run, step.name = %self.step, percent, "{message}");
    }
}

/// Where the log of one attempt is kept.
struct Keeper {
    engine: Arc<Engine>,
    run: RunId,
    step: StepId,
    attempt: u32,
}

async fn write(keeper: Keeper, waiting: Arc<AtomicUsize>, mut receive: mpsc::UnboundedReceiver<Vec<u8>>) {
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
                        waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
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
        keeper.keep(&lines).await;
    }
}

/// The end of the last whole line: a secret is never cut in two by a chunk's end.
fn whole_lines(held: &[u8]) -> usize {
    let end = held.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if held.len() - end > LONGEST_HELD { held.len() } else { end }
}

impl Keeper {
    async fn keep(&self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let masked = self.engine.services.secrets.mask(&String::from_utf8_lossy(lines));
        for chunk in masked.as_bytes().chunks(CHUNK_BYTES) {
            let now = self.engine.clock.now();
            let kept = self.engine.store.append_log(self.run, &self.step, self.attempt, chunk, now).await;
            if let Err(error) = kept {
                let step = &self.step;
                tracing::warn!(run.id = %self.run, step.name = %step, "Part of the log of `{step}` is lost: {error}");
            }
        }
    }
}
