//! Runs, from trigger to end, on both databases.

mod basics;
mod crash;
