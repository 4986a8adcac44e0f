//! What tests share.

pub mod crash;
pub mod python;
pub mod steps;
pub mod world;
