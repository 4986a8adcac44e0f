//! Bodies of steps, with real processes, files and servers.

mod evaluate;
mod fetch;
mod gate;
mod http;
mod processes;
mod shadow;
mod trainer;
