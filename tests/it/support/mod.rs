//! What tests share.

pub mod crash;
pub mod steps;
pub mod world;
