//! What people read of the command line.

mod canary;
mod eject;
mod files;
mod first_steps;
pub mod refit;
mod versions;
