//! What refit promises, by behaviour: real processes, files, sockets and databases.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod artifacts;
mod canary;
mod cli;
mod clients;
mod docs;
mod engine;
mod evidence;
mod hosting;
mod http;
mod layers;
mod notify;
mod processes;
mod raceday;
mod simulate;
mod steps;
mod store;
mod support;
mod trainer_xgboost;
