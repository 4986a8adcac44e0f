//! What refit promises, by behaviour.

mod canary;
mod store;
