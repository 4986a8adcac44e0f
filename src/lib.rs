//! trigger -> event -> run -> step -> checkpoint -> notify
//!
//! * `domain`: what a run, a version, a release and a verdict are, and what happens next; no IO
//! * `steps`: one file per step kind; handed what it needs, returns what it did
//! * `adapter`: the outside (targets, stores, notifiers), one trait each
//! * `trainers`: commands, started under a guard so that nothing of them is left running
//! * `store`: what must survive a crash, one trait, two databases
//! * `clock`, `secret`: time and secrets enter here

pub mod adapter;
pub mod clock;
pub mod domain;
pub mod secret;
pub mod steps;
pub mod store;
pub mod trainers;
