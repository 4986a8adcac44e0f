//! One file per step kind: its body, its output. Options are in
//! `domain::workflow::step`.

pub mod context;
pub mod fetch;
pub mod gate;
pub mod http;
pub mod run;
