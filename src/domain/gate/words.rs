//! Numbers and comparisons as sentences have them.

use crate::domain::words::number;
use crate::domain::workflow::step::VsChampion;

pub(super) fn tolerance(vs: &VsChampion) -> String {
    if vs.worse_by_at_most < 0.0 {
        format!("must be better than the champion by {}", percent(-vs.worse_by_at_most))
    } else {
        format!("may be worse than the champion by {}", percent(vs.worse_by_at_most))
    }
}

pub(super) fn in_words(worse: f64) -> String {
    if worse == 0.0 {
        "equal".to_owned()
    } else if worse.is_infinite() {
        "any amount".to_owned()
    } else if worse > 0.0 {
        format!("{} worse", percent(worse))
    } else {
        format!("{} better", percent(-worse))
    }
}

pub(super) fn at_most(worse: f64) -> String {
    if worse < 0.0 { format!("at least {}", in_words(worse)) } else { format!("at most {}", in_words(worse)) }
}

pub(super) fn at_least(worse: f64) -> String {
    if worse < 0.0 { format!("at most {}", in_words(worse)) } else { format!("at least {}", in_words(worse)) }
}

pub(super) fn percent(fraction: f64) -> String {
    format!("{} %", number((fraction * 10_000.0).round() / 100.0))
}
