//! What counters grew by, minute by minute. Pure.

use std::collections::{BTreeMap, BTreeSet};

const MINUTE: i64 = 60;

/// Labels of a series.
pub(super) type Labels = BTreeMap<String, String>;

/// A counter at the beginnings of minutes; where it has no point it is not known.
pub(super) struct Series {
    pub(super) labels: Labels,
    pub(super) points: BTreeMap<i64, f64>,
}

/// What counters grew by.
#[derive(Default)]
pub(super) struct Growth {
    /// By series and the beginning of the minute.
    pub(super) series: Vec<(Labels, BTreeMap<i64, f64>)>,
    /// Minutes in which a series began anew.
    pub(super) resets: BTreeSet<(Labels, i64)>,
    /// The first and the last moment at which anything was known.
    pub(super) oldest: Option<i64>,
    pub(super) newest: Option<i64>,
    /// Since when each series is known.
    since: BTreeMap<Labels, i64>,
}

impl Growth {
    /// Whether a series was known in `minute`, or before it.
    pub(super) fn knows(&self, labels: &Labels, minute: i64) -> bool {
        self.since.get(labels).is_some_and(|since| *since <= minute + MINUTE)
    }
}

/// What `found` grew by in the minutes from `from` to `to`. `before`: the last that was known of series at `from`.
/// `begun`: since when the app is known at all; a series that appears later began at 0, as apps make most
/// series when they count the first time.
pub(super) fn growth(
    found: Vec<Series>,
    before: Vec<Series>,
    from: i64,
    to: i64,
    begun: Option<i64>,
) -> Growth {
    // `last_over_time` keeps the name or drops it, as versions of Prometheus have it.
    let nameless = |labels: &Labels| -> Labels {
        labels.iter().filter(|(name, _)| *name != "__name__").map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    let before: BTreeMap<Labels, f64> = before
        .iter()
        .filter_map(|series| Some((nameless(&series.labels), *series.points.values().last()?)))
        .collect();
    let known = |first: &dyn Fn(&Series) -> Option<i64>| found.iter().filter_map(first).min();
    let oldest =
        if before.is_empty() { known(&|series| series.points.keys().next().copied()) } else { Some(from) };
    let newest = found.iter().filter_map(|series| series.points.keys().next_back().copied()).max();
    let begun = [begun, oldest].into_iter().flatten().min();
    let mut all = Growth { oldest, newest, ..Growth::default() };
    for series in found {
        let earlier = before.get(&nameless(&series.labels)).copied();
        let mut last = series.points.get(&from).copied().or(earlier);
        let first = series.points.keys().next().copied();
        let since = if last.is_some() { Some(from) } else { first };
        all.since.extend(since.map(|since| (series.labels.clone(), since)));
        let mut grown = BTreeMap::new();
        for (at, value) in series.points.range(from + 1..=to) {
            let minute = at - MINUTE;
            let began_now = begun.is_some_and(|begun| begun < *at);
            match last {
                Some(last) if *value < last => {
                    all.resets.insert((series.labels.clone(), minute));
                }
                Some(last) => {
                    grown.insert(minute, value - last);
                }
                None if began_now => {
                    grown.insert(minute, *value);
                }
                // The first that is known of anything: how long it took to grow is not.
                None => {}
            }
            last = Some(*value);
        }
        all.series.push((series.labels, grown));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(pod: &str, points: &[(i64, f64)]) -> Series {
        let labels = [("pod".to_owned(), pod.to_owned())].into();
        Series { labels, points: points.iter().map(|(minute, value)| (minute * MINUTE, *value)).collect() }
    }

    /// What each minute of `pod` grew by, and the minutes in which it began anew.
    fn grown(growth: &Growth, pod: &str) -> (Vec<(i64, f64)>, Vec<i64>) {
        let own = |labels: &Labels| labels.get("pod").is_some_and(|it| it == pod);
        let minutes = growth.series.iter().find(|(labels, _)| own(labels)).map(|(_, minutes)| minutes);
        let minutes = minutes.into_iter().flatten().map(|(at, value)| (at / MINUTE, *value)).collect();
        let resets = growth.resets.iter().filter(|(labels, _)| own(labels)).map(|(_, at)| at / MINUTE);
        (minutes, resets.collect())
    }

    fn of(found: Vec<Series>, before: Vec<Series>) -> Growth {
        growth(found, before, 0, 5 * MINUTE, None)
    }

    #[test]
    fn a_counter_grows_by_the_difference_of_its_points() {
        let all = of(vec![series("a", &[(0, 10.0), (1, 12.0), (2, 12.0), (3, 20.0)])], vec![]);
        assert_eq!(grown(&all, "a"), (vec![(0, 2.0), (1, 0.0), (2, 8.0)], vec![]));
        assert_eq!((all.oldest, all.newest), (Some(0), Some(180)));
    }

    #[test]
    fn a_counter_that_begins_anew_says_nothing_of_that_minute() {
        let all = of(vec![series("a", &[(0, 10.0), (1, 3.0), (2, 5.0)])], vec![]);
        assert_eq!(grown(&all, "a"), (vec![(1, 2.0)], vec![0]));
    }

    #[test]
    fn a_series_that_appears_beside_others_began_at_zero() {
        let found = vec![series("a", &[(0, 10.0), (1, 11.0), (2, 12.0)]), series("b", &[(2, 4.0), (3, 6.0)])];
        assert_eq!(grown(&of(found, vec![]), "b"), (vec![(1, 4.0), (2, 2.0)], vec![]));
    }

    #[test]
    fn the_first_that_is_known_of_anything_is_no_growth() {
        let all = of(vec![series("a", &[(2, 1_000_000.0), (3, 1_000_002.0)])], vec![]);
        assert_eq!(grown(&all, "a"), (vec![(2, 2.0)], vec![]));
        assert_eq!(all.oldest, Some(120));
    }

    #[test]
    fn a_series_that_was_away_goes_on_from_where_it_was() {
        let found = || vec![series("a", &[(3, 1005.0), (4, 1006.0)]), series("b", &[(3, 2.0)])];
        let before = || vec![series("a", &[(-30, 1000.0)]), series("b", &[(-30, 500.0)])];
        let all = of(found(), before());
        assert_eq!(grown(&all, "a"), (vec![(2, 5.0), (3, 1.0)], vec![]));
        assert_eq!(grown(&all, "b"), (vec![], vec![2]), "its process began anew meanwhile");
    }

    #[test]
    fn nothing_found_is_nothing_known() {
        let all = of(vec![], vec![]);
        assert_eq!((all.oldest, all.newest, all.series.len()), (None, None, 0));
    }
}
