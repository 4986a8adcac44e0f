//! What people read of the command line.

mod files;
mod refit;
