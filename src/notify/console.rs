//! `kind = "console"`: the log of the process.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;

use crate::adapter::{Adapter, BuildError, Deps, Message, NotSent, Notifier, options_of};

/// `kind = "console"`.
pub const ADAPTER: Adapter<Arc<dyn Notifier>> = Adapter { kind: "console", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {}

fn build(options: Value, _: &Deps) -> Result<Arc<dyn Notifier>, BuildError> {
    let Options {} = options_of(ADAPTER.kind, options)?;
    Ok(Arc::new(Console))
}

/// Writes messages to the log.
#[derive(Debug, Clone, Copy)]
pub struct Console;

#[async_trait]
impl Notifier for Console {
    async fn send(&self, message: &Message) -> Result<(), NotSent> {
        tracing::info!(message.id, "{}\n{}", message.subject, message.text.trim_end());
        Ok(())
    }
}
