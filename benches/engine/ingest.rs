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
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Counted, Self::Predicted];

    pub fn word(self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::Predicted => "predicted",
        }
    }
}

/// Sends batches to a server.
pub struct Ingest {
    client: reqwest::Client,
    url: String,
    sent: usize,
}

impl Ingest {
    pub fn new(server: &str, model: &str) -> Result<Self, Failure> {
        let url = format!("{server}/v1/models/{model}/observations");
        Ok(Self { client: http_client::build()?, url, sent: 0 })
    }

    /// Observations per second, from the first request to the last answer.
    pub async fn wave(&mut self, kind: Kind) -> Result<(usize, Duration), Failure> {
        // Made beforehand: an app does not share its processor with refit.
        let bodies: Vec<_> =
            (0..BATCHES).map(|batch| (self.sent + batch, body(kind, self.sent + batch))).collect();
        self.sent += BATCHES;
        let begin = Instant::now();
        let senders = bodies.chunks(BATCHES.div_ceil(SENDERS)).map(|bodies| {
            let (bodies, client, url) = (bodies.to_vec(), self.client.clone(), self.url.clone());
            tokio::spawn(async move {
                for (number, body) in bodies {
                    let url = format!("{url}?batch={}-{number}", kind.word());
                    let answer = client.post(url).body(body).send().await?.error_for_status()?;
                    let receipt: Value = answer.json().await?;
                    // A batch that was known, or rows that are refused, would cost next to nothing.
                    if receipt["accepted"] != ROWS || receipt["duplicate"] != false {
                        return Err(format!("not all of a batch was counted: {receipt}").into());
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

fn body(kind: Kind, batch: usize) -> String {
    let mut text = String::new();
    for row in 0..ROWS {
        let (version, ok) = (1 + usize::from(row % 10 == 0), row % 100 != 7);
        let latency = 20.0 + (row % 97) as f64;
        let prediction = match kind {
            Kind::Counted => String::new(),
            Kind::Predicted => format!(",\"prediction\":{}", 3600.0 + row as f64),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{{\"request_id\":\"{batch:08}-{row:06}\",\"version\":\"v{version}\",\"ok\":{ok},\"latency_ms\":{latency}{prediction}}}"
        );
    }
    text
}
