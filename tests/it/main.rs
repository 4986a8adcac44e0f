//! What refit promises, by behaviour: real processes, files, sockets and databases.

mod engine;
mod steps;
mod store;
mod support;
