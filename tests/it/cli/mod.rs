//! What people read of the command line.

mod blob;
mod canary;
mod eject;
mod events;
mod files;
mod first_steps;
mod freeze;
pub mod refit;
mod simulations;
mod versions;
