//! What refit promises, by behaviour: real processes, files, sockets and databases.

mod artifacts;
mod cli;
mod engine;
mod hosting;
mod notify;
mod steps;
mod store;
mod support;
