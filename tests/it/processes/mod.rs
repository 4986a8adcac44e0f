//! What the program promises when it is really started, really killed and really cut off.
#![cfg(target_os = "linux")]

mod databases;
mod file_writes;
mod followers;
mod http;
mod killed;
mod limits;
mod outage;
pub mod project;
mod schedules;
mod secrets;
mod shutdown;
mod tick;
mod workers;
