//! trigger -> event -> run -> step -> checkpoint -> notify
//!
//! * `domain`: what a run, a version, a release and a verdict are, and what happens next; no IO
//! * `trigger`: from what happened to the runs it starts
//! * `engine`: does what `domain` decided, then checkpoints it
//! * `steps`: one file per step kind; handed what it needs, returns what it did
//! * `evidence`: what apps report, read from text
//! * `store`: what must survive a crash, one trait, two databases
//! * `artifacts`, `hosting`, `notify`, `trainers`: the outside, one file each, behind `adapter`
//! * `simulate`: past weeks, replayed under other rules
//! * `receipt`: what was decided on which evidence, as a page
//! * `http`, `cli`: the ways in
//! * `clock`, `secret`, `config`, `http_client`, `app_database`: time, secrets, settings, HTTP and databases of
//!   apps enter here

pub mod adapter;
pub mod app_database;
pub mod artifacts;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod domain;
pub mod engine;
pub mod evidence;
pub mod hosting;
pub mod http;
pub mod http_client;
pub mod notify;
pub mod receipt;
pub mod secret;
pub mod simulate;
pub mod steps;
pub mod store;
pub mod trainers;
pub mod trigger;
