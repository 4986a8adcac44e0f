//! One file per step kind: its body, its output. Options are in
//! `domain::workflow::step`.

pub mod approve;
pub mod body;
pub mod canary;
pub mod compare;
pub mod context;
pub(crate) mod errors_file;
pub mod evaluate;
pub mod fetch;
pub mod gate;
pub mod headline;
pub mod http;
pub mod notify;
pub mod promote;
pub mod publish;
pub mod rollback;
pub mod run;
pub mod shadow;
pub mod wait;
