//! What refit promises, by behaviour.

mod store;
