//! Observations over HTTP, as apps send them: NDJSON batches.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use refit::http_client;
use serde_json::Value;

use crate::Failure;

/// Rows of one batch, and batches of one rate.
const ROWS: usize = 5_000;
const BATCHES: usize = 16;
/// Senders at once: an app has a few processes.
const SENDERS: usize = 4;

/// What a row holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request that is counted.
    Counted,
    /// The same with a prediction, which is kept until its truth comes.
    Predicted,
    /// The same, and its truth follows: one row that is observed and labelled is one.
    Labelled,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Counted, Self::Predicted, Self::Labelled];

    pub fn word(self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::Predicted => "predicted",
            Self::Labelled => "labelled",
        }
    }
}

/// Sends batches to a server.
pub struct Ingest {
    client: reqwest::Client,
    /// Of the model.
    url: String,
    sent: usize,
}

impl Ingest {
    pub fn new(server: &str, model: &str) -> Result<Self, Failure> {
        let url = format!("{server}/v1/models/{model}");
        Ok(Self { client: http_client::build()?, url, sent: 0 })
    }

    /// Observations per second, from the first request to the last answer.
    pub async fn wave(&mut self, kind: Kind) -> Result<(usize, Duration), Failure> {
        // Made beforehand: an app does not share its processor with refit.
        let batches: Vec<_> = (self.sent..self.sent + BATCHES).map(|batch| Batch::new(kind, batch)).collect();
        self.sent += BATCHES;
        let begin = Instant::now();
        let senders = batches.chunks(BATCHES.div_ceil(SENDERS)).map(|batches| {
            let (batches, client, url) = (batches.to_vec(), self.client.clone(), self.url.clone());
            tokio::spawn(async move {
                for Batch { id, observations, truths } in batches {
                    send(&client, format!("{url}/observations?batch={id}"), observations).await?;
                    if let Some(truths) = truths {
                        send(&client, format!("{url}/truth?batch={id}"), truths).await?;
                    }
                }
                Ok::<_, Failure>(())
            })
        });
        for sender in futures::future::join_all(senders).await {
            sender??;
        }
        Ok((BATCHES * ROWS, begin.elapsed()))
    }
}

/// What an app sends of so many requests.
#[derive(Clone)]
struct Batch {
    id: String,
    observations: String,
    truths: Option<String>,
}

impl Batch {
    fn new(kind: Kind, number: usize) -> Self {
        let (mut observations, mut truths) = (String::new(), String::new());
        for row in 0..ROWS {
            let (version, ok) = (1 + usize::from(row % 10 == 0), row % 100 != 7);
            let latency = 20.0 + (row % 97) as f64;
            let prediction = match kind {
                Kind::Counted => String::new(),
                Kind::Predicted | Kind::Labelled => format!(",\"prediction\":{}", 3600.0 + row as f64),
            };
            let request = format!("{}-{number:08}-{row:06}", kind.word());
            // Writing to a string cannot fail.
            let _ = writeln!(
                observations,
                "{{\"request_id\":\"{request}\",\"version\":\"v{version}\",\"ok\":{ok},\"latency_ms\":{latency}{prediction}}}"
            );
            let _ = writeln!(truths, "{{\"request_id\":\"{request}\",\"truth\":{}}}", 3590.0 + row as f64);
        }
        let id = format!("{}-{number}", kind.word());
        Self { id, observations, truths: (kind == Kind::Labelled).then_some(truths) }
    }
}

async fn send(client: &reqwest::Client, url: String, body: String) -> Result<(), Failure> {
    let receipt: Value = client.post(url).body(body).send().await?.error_for_status()?.json().await?;
    // A batch that was known, or rows that are refused, would cost next to nothing.
    if receipt["accepted"] != ROWS || receipt["duplicate"] != false {
        return Err(format!("not all of a batch was counted: {receipt}").into());
    }
    Ok(())
}
