//! What can go wrong between a client and the service, and when.

use std::time::Duration;

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
        !matches!(self, Op::List | Op::Head | Op::Download)
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

/// What happens instead of the answer.
#[derive(Debug, Clone)]
pub enum Fault {
    /// 429, with these seconds in `Retry-After`.
    RateLimited(u64),
    /// A status and a code; nothing is done.
    Refused(u16, &'static str),
    /// The line is cut before anything is read.
    CutBefore,
    /// The line is cut in the middle of the request's body.
    CutHalfway,
    /// It is done, and the line is cut before the answer.
    CutAfter,
    /// It is done, and the answer is cut in its middle.
    Torn,
    /// It is done after this time.
    Slow(Duration),
    /// The token is not valid any more.
    Expired,
}

/// A fault for some requests.
pub struct Rule {
    matches: Box<dyn Fn(&Call) -> bool + Send>,
    skip: usize,
    times: usize,
    fault: Fault,
}

impl Rule {
    /// For every request that `matches`.
    pub fn on(fault: Fault, matches: impl Fn(&Call) -> bool + Send + 'static) -> Self {
        Self { matches: Box::new(matches), skip: 0, times: usize::MAX, fault }
    }

    /// Not for the first `skip` of them.
    pub fn after(mut self, skip: usize) -> Self {
        self.skip = skip;
        self
    }

    /// For this many of them.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Its fault, if it is about `call` and due.
    pub fn take(&mut self, call: &Call) -> Option<Fault> {
        if self.times == 0 || !(self.matches)(call) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.fault.clone())
    }
}
