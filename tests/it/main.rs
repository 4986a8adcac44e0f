//! What refit promises, by behaviour: real processes, files, sockets and databases.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod docs;
mod engine;
mod http;
mod layers;
mod steps;
mod store;
mod support;
