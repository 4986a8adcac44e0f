//! What people read of the command line.

mod eject;
mod files;
mod first_steps;
mod refit;
