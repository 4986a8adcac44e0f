//! Commands that train: started under a guard of refit's own, so that nothing
//! of them outlives its step.
//!
//! * `command`: starts one, streams what it prints, stops it
//! * `guard`: the process between refit and the command (`refit __guard`)
//! * `process_tree`: what Linux and macOS tell of the processes below one

pub mod command;
pub mod guard;
mod process_tree;
