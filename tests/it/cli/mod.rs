//! What people read of the command line.

mod canary;
mod eject;
mod files;
mod first_steps;
mod refit;
mod versions;
