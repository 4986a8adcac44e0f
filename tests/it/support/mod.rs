//! What tests share.

pub mod contract;
pub mod crash;
pub mod crashing_store;
pub mod faults;
pub mod instance;
pub mod ledger;
pub mod line;
pub mod log;
pub mod node;
pub mod prometheus;
pub mod python;
pub mod resend;
pub mod s3_line;
pub mod slack;
pub mod small_disk;
pub mod steps;
pub mod vercel;
pub mod vercel_blob;
pub mod wire;
pub mod world;
