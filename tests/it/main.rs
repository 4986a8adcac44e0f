//! Behaviour of refit from outside its modules: real processes, files, sockets and databases.

mod steps;
mod support;
