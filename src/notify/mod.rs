//! stub
pub mod outbox;
/// n
pub struct Notifiers;
