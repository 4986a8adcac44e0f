//! What the controller would make of a version that has no traffic, by its
//! prediction errors alone.

use super::super::Timestamp;
use super::super::evidence::PairedError;
use super::{CanaryRecord, News, look};

/// The canary as the controller would know it at `now`, had it gone out: one look at all pairs of errors since it
/// began. The scale of the errors is learnt from the first of them.
pub fn by_errors(record: &CanaryRecord, mut pairs: Vec<PairedError>, now: Timestamp) -> CanaryRecord {
    pairs.retain(|pair| pair.at >= record.started_at);
    for pair in &mut pairs {
        // In the order in which they come to count, so that a later look finds what an earlier one did, and more.
        let served_at = pair.served_at.take();
        pair.at = served_at.zip(record.label_horizon()).map_or(pair.at, |(at, age)| pair.at.max(at + age));
    }
    pairs.retain(|pair| pair.at <= now);
    pairs.sort_by_key(|pair| (pair.at, pair.seq));
    for (pair, seq) in pairs.iter_mut().zip(1..) {
        pair.seq = seq;
    }
    let unseen = CanaryRecord { analysis: serde_json::Value::Null, ..record.clone() };
    look(&unseen, &News { pairs, ..News::default() }, now).record
}
