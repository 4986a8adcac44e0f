//! What people read of the command line.

mod files;
mod first_steps;
mod refit;
mod versions;
