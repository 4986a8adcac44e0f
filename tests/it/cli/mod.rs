//! What people read of the command line.

mod canary;
mod files;
mod first_steps;
mod refit;
