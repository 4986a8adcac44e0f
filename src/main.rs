//! The `refit` program.

fn main() {}
