//! Pairs of prediction errors on their way into bets: one block (one race, one
//! day) is one bet, however many requests it has.

use std::collections::VecDeque;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::super::Timestamp;
use super::super::evidence::PairedError;
use super::super::workflow::step::BLOCK_COMPLETE_AFTER;

/// A block of which nothing came for this long gets no more.
const COMPLETE_AFTER: TimeDelta = TimeDelta::seconds(BLOCK_COMPLETE_AFTER.as_secs().cast_signed());
/// Names of closed blocks that are remembered, so that a late truth does not make a second bet.
const REMEMBERED: usize = 4096;
/// Blocks that the clip bound needs: of several requests each, and of single ones.
const CLIP_BLOCKS: (usize, usize) = (7, 50);
/// The share of stable blocks whose mean error is not clipped.
const CLIP_QUANTILE: f64 = 0.995;

/// What tells that a block with a name gets no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    /// A later block began after its last truth, or nothing of it came for 24 h: truths come block by block.
    Next,
    /// Nothing of it came for 24 h: requests come of age one by one, those of several blocks in turn.
    Quiet,
}

/// A block that may still get truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct OpenBlock {
    name: Option<String>,
    pairs: u64,
    canary: f64,
    stable: f64,
    first_seq: i64,
    last_seq: i64,
    #[serde(default)]
    first_at: Timestamp,
    last_at: Timestamp,
}

impl OpenBlock {
    /// When nothing came of it for so long that it gets no more.
    fn quiet_at(&self) -> Timestamp {
        let wait = if self.name.is_some() { COMPLETE_AFTER } else { TimeDelta::zero() };
        self.last_at.checked_add_signed(wait).unwrap_or(Timestamp::MAX_UTC)
    }
}

/// Mean errors of one block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bet {
    pub(super) canary: f64,
    pub(super) stable: f64,
    pub(super) pairs: u64,
    /// The pairs share a block by name.
    pub(super) named: bool,
}

/// Blocks of one stream of pairs.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Blocks {
    open: Vec<OpenBlock>,
    closed: VecDeque<String>,
    /// The number of the last pair: as it was read, or one more where it had to wait for its turn.
    #[serde(default)]
    last: i64,
    /// Pairs that came after their block was bet on.
    pub(super) late: u64,
}

impl Blocks {
    /// Takes in a pair, which counts since `at`; what is no error (negative, not a number) is left out.
    pub(super) fn add(&mut self, pair: &PairedError, at: Timestamp) {
        if !(pair.canary >= 0.0 && pair.stable >= 0.0) {
            return;
        }
        let seq = pair.seq.max(self.last.saturating_add(1));
        self.last = seq;
        if pair.block.as_ref().is_some_and(|name| self.closed.contains(name)) {
            self.late += 1;
            return;
        }
        let known =
            pair.block.as_ref().and_then(|_| self.open.iter_mut().find(|open| open.name == pair.block));
        match known {
            // It is complete, whether or not anybody looked since.
            Some(open) if open.quiet_at() <= at => self.late += 1,
            Some(open) => {
                open.pairs += 1;
                open.canary += pair.canary;
                open.stable += pair.stable;
                open.last_seq = seq;
                open.last_at = open.last_at.max(at);
            }
            None => self.open.push(OpenBlock {
                name: pair.block.clone(),
                pairs: 1,
                canary: pair.canary,
                stable: pair.stable,
                first_seq: seq,
                last_seq: seq,
                first_at: at,
                last_at: at,
            }),
        }
    }

    /// Named blocks that may still get truth.
    pub(super) fn waiting(&self) -> usize {
        self.open.iter().filter(|open| open.name.is_some()).count()
    }

    /// Blocks that are complete at `now`, in the order they began or, by [`Closing::Quiet`], in that in which they
    /// were complete: then it does not matter how often one looks. A pair without a block is complete at once.
    pub(super) fn close(&mut self, now: Timestamp, by: Closing) -> Vec<Bet> {
        let newest = self.open.iter().filter(|open| open.name.is_some()).map(|open| open.first_seq).max();
        let complete = |open: &OpenBlock| {
            open.name.is_none()
                || open.quiet_at() <= now
                || match by {
                    Closing::Next => newest.is_some_and(|newest| open.last_seq < newest),
                    Closing::Quiet => false,
                }
        };
        let (mut done, open): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.open).into_iter().partition(complete);
        self.open = open;
        match by {
            Closing::Next => {}
            Closing::Quiet => done.sort_by_key(OpenBlock::quiet_at),
        }
        let bets = done.into_iter().map(|block| {
            let bet = Bet {
                canary: block.canary / block.pairs as f64,
                stable: block.stable / block.pairs as f64,
                pairs: block.pairs,
                named: block.name.is_some(),
            };
            self.closed.extend(block.name);
            bet
        });
        let bets = bets.collect();
        self.closed.drain(..self.closed.len().saturating_sub(REMEMBERED));
        bets
    }

    /// Blocks from before a canary that went out at `end`, of which none was closed. Those that the window of the
    /// history may have cut are left out: what is left of one may be a single pair.
    pub(super) fn past(mut self, end: Timestamp, by: Closing) -> Vec<Bet> {
        let Some(oldest) = self.open.first() else { return vec![] };
        let (first, named) = (oldest.first_at, oldest.name.is_some());
        match by {
            Closing::Next => {
                self.open.drain(..usize::from(named));
                // The last one is as complete as it gets.
                self.close(Timestamp::MAX_UTC, by)
            }
            Closing::Quiet => {
                self.open.retain(|open| open.name.is_none() || open.first_at - first >= COMPLETE_AFTER);
                self.close(end, by)
            }
        }
    }
}

/// The bound beyond which a block's mean error is not worse: the 99.5 % quantile (nearest rank) of the stable
/// version's blocks, from before the canary or else from the first blocks, which are then not bet on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Clip {
    blocks: Vec<f64>,
    named: bool,
    bound: Option<f64>,
}

impl Clip {
    pub(super) fn bound(&self) -> Option<f64> {
        self.bound
    }

    /// Blocks that were learnt from, while the bound is not frozen.
    #[cfg(test)]
    pub(super) fn learnt(&self) -> usize {
        self.blocks.len()
    }

    /// Learns from a block, while the bound is not frozen.
    pub(super) fn learn(&mut self, bet: &Bet) {
        if self.bound.is_none() && bet.stable.is_finite() {
            self.named |= bet.named;
            self.blocks.push(bet.stable);
        }
    }

    /// Freezes the bound, if enough is known.
    pub(super) fn freeze(&mut self) {
        let needed = if self.named { CLIP_BLOCKS.0 } else { CLIP_BLOCKS.1 };
        if self.bound.is_some() || self.blocks.len() < needed {
            return;
        }
        self.blocks.sort_unstable_by(f64::total_cmp);
        let rank = (CLIP_QUANTILE * self.blocks.len() as f64).ceil() as usize;
        let bound = self.blocks.get(rank.saturating_sub(1)).copied();
        // A stable version that was never wrong gives no scale.
        self.bound = bound.filter(|bound| bound.is_normal());
        if self.bound.is_some() {
            self.blocks.clear();
        }
    }
}
