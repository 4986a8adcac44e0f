//! What a look is given.

use super::super::Timestamp;
use super::super::evidence::{EvidenceMinute, PairedError};
use super::super::workflow::units::BasisPoints;
use super::labels::{Labelled, Ripe};

/// What is new since the last look.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct News {
    /// Minutes of both versions after [`super::Analysis::cursor`].
    pub minutes: Vec<EvidenceMinute>,
    /// Pairs of errors after [`super::Analysis::paired_cursor`].
    pub pairs: Vec<PairedError>,
    /// Until [`super::Analysis::frozen`]: errors of the stable version before the canary, oldest first.
    pub stable_errors: Vec<PairedError>,
    /// What [`super::Analysis::ripening`] asked for.
    pub ripe: Option<Ripe>,
    /// Requests since the canary went out, of both versions, where no rule has a label horizon.
    pub labelled: Option<Labelled>,
    /// There is more than one look reads: nothing is concluded yet.
    pub more: bool,
    /// The share that the release gives the canary, and since when; the stage's when absent.
    pub share: Option<(BasisPoints, Timestamp)>,
}
