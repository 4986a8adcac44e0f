//! What tests share.

pub mod contract;
pub mod crash;
pub mod crashing_store;
pub mod faulty_server;
pub mod node;
pub mod python;
pub mod steps;
pub mod vercel;
pub mod world;
