//! What several tests need.

pub mod python;
