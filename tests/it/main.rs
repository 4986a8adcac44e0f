//! What refit promises, by behaviour: real processes, files, sockets and databases.

mod docs;
mod engine;
mod http;
mod layers;
mod steps;
mod store;
mod support;
