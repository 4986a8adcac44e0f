//! Messages that were taken to be sent: a line for each recipient, in the order they were queued.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::held::PATIENCE;
use crate::domain::Timestamp;
use crate::domain::workflow::Recipient;

/// A message that was taken.
pub(super) struct Taken<T> {
    pub(super) message: T,
    /// By the clock that holds go by.
    pub(super) at: Timestamp,
    since: Instant,
}

/// What is next for a recipient.
pub(super) enum Next<T> {
    /// This message.
    Send(Box<Taken<T>>),
    /// Nothing that this process still holds for long enough: it is to take them again.
    TooLate(Recipient, Vec<T>),
}

pub(super) struct Lines<T>(VecDeque<Line<T>>);

struct Line<T> {
    to: Recipient,
    waiting: VecDeque<Taken<T>>,
    /// Whether something of it is under way: the next one comes after that.
    is_busy: bool,
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Lines<T> {
    /// Adds messages that were taken at `at`, after those there are.
    pub(super) fn add(&mut self, messages: impl Iterator<Item = (Recipient, T)>, at: Timestamp) {
        let since = Instant::now();
        for (to, message) in messages {
            let taken = Taken { message, at, since };
            match self.0.iter_mut().find(|line| line.to == to) {
                Some(line) => line.waiting.push_back(taken),
                None => self.0.push_back(Line { to, waiting: [taken].into(), is_busy: false }),
            }
        }
    }

    /// What is next for somebody who is sent nothing yet, and is now.
    pub(super) fn next(&mut self) -> Option<Next<T>> {
        let line = self.0.iter_mut().find(|line| !line.is_busy && !line.waiting.is_empty())?;
        line.is_busy = true;
        let first = line.waiting.pop_front()?;
        if first.since.elapsed() < PATIENCE {
            return Some(Next::Send(Box::new(first)));
        }
        let all = std::iter::once(first).chain(line.waiting.drain(..)).map(|taken| taken.message);
        Some(Next::TooLate(line.to.clone(), all.collect()))
    }

    /// Nothing is under way to `to` any more: others have their turn first.
    pub(super) fn free(&mut self, to: &Recipient) {
        if let Some(at) = self.0.iter().position(|line| line.to == *to)
            && let Some(line) = self.0.remove(at)
            && !line.waiting.is_empty()
        {
            self.0.push_back(Line { is_busy: false, ..line });
        }
    }

    /// What waits for `to`, which does not wait here any more.
    pub(super) fn rest_of(&mut self, to: &Recipient) -> Vec<T> {
        let line = self.0.iter_mut().find(|line| line.to == *to);
        line.map(|line| line.waiting.drain(..).map(|taken| taken.message).collect()).unwrap_or_default()
    }

    /// All that waits, which does not wait here any more.
    pub(super) fn rest(&mut self) -> Vec<(Recipient, Vec<T>)> {
        let lines = self.0.iter_mut().filter(|line| !line.waiting.is_empty());
        lines
            .map(|line| (line.to.clone(), line.waiting.drain(..).map(|taken| taken.message).collect()))
            .collect()
    }
}
