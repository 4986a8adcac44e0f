//! The line to a service that keeps objects: its requests as what they want of which object, and faults for some
//! of them, in the service's own words.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::request::Parts;

use super::faults::{Fault, Rule, Server};

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Put,
    Begin,
    Part,
    Complete,
    List,
    Head,
    Delete,
    Copy,
    Rename,
    Download,
}

impl Op {
    /// Whether it brings or changes something.
    pub fn writes(self) -> bool {
        match self {
            Op::Put | Op::Begin | Op::Part | Op::Complete | Op::Delete | Op::Copy | Op::Rename => true,
            Op::List | Op::Head | Op::Download => false,
        }
    }
}

/// A request that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub op: Op,
    pub pathname: String,
    /// Of an upload in parts, from 1.
    pub part: Option<usize>,
}

/// How a service is asked, and how it refuses.
#[derive(Clone, Copy)]
pub struct Dialect {
    /// What a request wants; none when it makes no sense.
    pub call: fn(&Parts) -> Option<Call>,
    /// The body that says no with a code.
    pub refusal: fn(&str) -> String,
    /// Status and body for a token that is no good any more.
    pub expired: fn() -> (u16, String),
}

/// A service on a port of its own, and what is to go wrong.
pub struct Line {
    pub port: u16,
    server: Server,
    dialect: Dialect,
    /// How many requests are forgotten.
    forgotten: AtomicUsize,
}

impl Line {
    /// `make` is told the port.
    pub fn start(dialect: Dialect, make: impl FnOnce(u16) -> Router) -> Self {
        let mut port = 0;
        let server = Server::start_with(|url| {
            port = url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
            make(port)
        });
        Self { port, server, dialect, forgotten: AtomicUsize::new(0) }
    }

    /// `fault` for the calls that `matches`, once it is given to `fault`.
    pub fn on(&self, fault: Fault, matches: impl Fn(&Call) -> bool + Send + 'static) -> Rule {
        let call = self.dialect.call;
        Rule::on(fault, move |request| call(request).is_some_and(|call| matches(&call)))
    }

    /// From now on, until `mend`.
    pub fn fault(&self, rule: Rule) {
        self.server.fault(rule);
    }

    /// No more faults.
    pub fn mend(&self) {
        self.server.mend();
    }

    /// A status and a code; nothing is done.
    pub fn refused(&self, status: u16, code: &str) -> Fault {
        Fault::Answer(status, vec![], (self.dialect.refusal)(code))
    }

    /// 429, with these seconds in `Retry-After`.
    pub fn rate_limited(&self, seconds: &'static str) -> Fault {
        Fault::Answer(429, vec![("retry-after", seconds)], (self.dialect.refusal)("rate_limited"))
    }

    /// The token is not valid any more.
    pub fn expired(&self) -> Fault {
        let (status, body) = (self.dialect.expired)();
        Fault::Answer(status, vec![], body)
    }

    /// Every call that came in, and whether it was answered with success.
    fn seen(&self) -> Vec<(Call, bool)> {
        let seen = self.server.seen().into_iter().skip(self.forgotten.load(Ordering::Relaxed));
        seen.filter_map(|seen| Some(((self.dialect.call)(&seen.parts)?, seen.done))).collect()
    }

    /// Every call that came in.
    pub fn calls(&self) -> Vec<Call> {
        self.seen().into_iter().map(|(call, _)| call).collect()
    }

    /// How often objects whose path ends so were brought whole: by put, or by an upload that was completed.
    pub fn brought(&self, ending: &str) -> usize {
        let whole =
            |call: &Call| matches!(call.op, Op::Put | Op::Complete) && call.pathname.ends_with(ending);
        self.seen().iter().filter(|(call, done)| *done && whole(call)).count()
    }

    pub fn forget_calls(&self) {
        self.forgotten.store(self.server.count(), Ordering::Relaxed);
    }
}
