//! Numbers and comparisons as sentences have them.

use crate::domain::words::number;
use crate::domain::workflow::step::VsChampion;

/// A rule's margin.
pub(super) fn tolerance(vs: &VsChampion) -> String {
    margin(vs.worse_by_at_most, &percent(vs.worse_by_at_most.abs()))
}

/// By how much a value is worse, and by how much it may be: two texts that differ where the numbers do.
pub(super) fn compared(worse: f64, vs: &VsChampion) -> String {
    let allowed = vs.worse_by_at_most;
    let (is, may_be) = percents_apart(worse.abs(), allowed.abs());
    format!("{}; {}", change(worse, &is), margin(allowed, &may_be))
}

fn margin(allowed: f64, percent: &str) -> String {
    if allowed < 0.0 {
        format!("must be better than the champion by {percent}")
    } else {
        format!("may be worse than the champion by {percent}")
    }
}

pub(super) fn in_words(worse: f64) -> String {
    change(worse, &percent(worse.abs()))
}

fn change(worse: f64, percent: &str) -> String {
    if worse == 0.0 {
        "equal".to_owned()
    } else if worse.is_infinite() {
        "any amount".to_owned()
    } else if worse > 0.0 {
        format!("{percent} worse")
    } else {
        format!("{percent} better")
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

/// Two numbers as people read them, with as many digits as it takes to tell them apart.
pub(super) fn apart(one: f64, other: f64) -> (String, String) {
    /// No exact number that people write is longer.
    const LONG: usize = 24;
    let exact = |value: f64| {
        let plain = value.to_string();
        if plain.len() <= LONG { plain } else { format!("{value:e}") }
    };
    if one != other && number(one) == number(other) {
        return (exact(one), exact(other));
    }
    (number(one), number(other))
}

/// Two fractions in percent, with as many decimals as it takes to tell them apart.
fn percents_apart(one: f64, other: f64) -> (String, String) {
    if one == other || percent(one) != percent(other) {
        return (percent(one), percent(other));
    }
    let (one, other) = (one * 100.0, other * 100.0);
    let mut texts = (3..=15).map(|decimals| (format!("{one:.decimals$}"), format!("{other:.decimals$}")));
    let (one, other) = texts.find(|(one, other)| one != other).unwrap_or_else(|| apart(one, other));
    let short = |text: String| match text.contains('.') && !text.contains('e') {
        true => format!("{} %", text.trim_end_matches('0').trim_end_matches('.')),
        false => format!("{text} %"),
    };
    (short(one), short(other))
}
