//! What people read of the command line.

mod blob;
mod canary;
mod demo;
mod eject;
mod events;
mod evidence;
mod files;
mod first_steps;
mod freeze;
mod moved;
mod places;
pub mod refit;
mod simulations;
pub mod versions;
