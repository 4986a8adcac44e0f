//! What refit promises, by behaviour.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod docs;
mod http;
mod layers;
mod store;
