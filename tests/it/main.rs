//! Integration tests, by behaviour.

mod artifacts;
mod hosting;
mod notify;
mod support;
