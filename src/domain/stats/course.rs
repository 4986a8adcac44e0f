//! What a canary can show over a course of stages: [`super::plan`] knows one
//! share of traffic, a course several, one after the other.

use serde::Serialize;

use super::InvalidInput;
use super::plan::{Plan, Traffic};

/// A time that is not reached within this many minutes is not reached.
const LONGEST: f64 = 10.0 * 366.0 * 1440.0;
/// Enough to find a time or a ratio to the last digit that anybody reads.
const BISECTIONS: usize = 60;
/// Ratios beyond are not looked for.
const MAX_RATIO: f64 = 1e6;

/// One share of traffic for a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Leg {
    /// Its traffic.
    pub traffic: Traffic,
    /// Requests of the canary.
    pub per_minute: f64,
    /// How long, in minutes; the last leg goes on.
    pub minutes: f64,
}

/// Legs in their order; at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct Course(Vec<Leg>);

/// How long a conclusion takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Duration {
    /// Canary requests that are enough.
    pub requests: f64,
    /// The minutes they take.
    pub minutes: f64,
}

impl Course {
    /// A course of `legs`.
    ///
    /// # Errors
    /// No legs; a leg without traffic, or whose time is negative or not finite.
    pub fn new(legs: Vec<Leg>) -> Result<Self, InvalidInput> {
        if legs.is_empty() {
            return Err(InvalidInput::Empty { name: "stages" });
        }
        for leg in &legs {
            super::checked("traffic", leg.per_minute, |n| n > 0.0 && n.is_finite(), "above 0")?;
            super::checked("time", leg.minutes, |n| n >= 0.0 && n.is_finite(), "0 or more")?;
        }
        Ok(Self(legs))
    }

    /// Canary requests until `minutes`.
    pub fn requests(&self, minutes: f64) -> f64 {
        self.parts(minutes).map(|(_, requests)| requests).sum()
    }

    /// Canary requests of each leg until `minutes`.
    fn parts(&self, minutes: f64) -> impl Iterator<Item = (&Leg, f64)> {
        let last = self.0.len() - 1;
        let mut left = minutes.max(0.0);
        self.0.iter().enumerate().map(move |(index, leg)| {
            let time = if index == last { left } else { left.min(leg.minutes) };
            left -= time;
            (leg, time * leg.per_minute)
        })
    }

    /// The chance that what `plan` says of each leg adds up to a conclusion within `minutes`.
    fn chance(
        &self,
        minutes: f64,
        plan: impl Fn(&Traffic) -> Result<Plan, InvalidInput>,
    ) -> Result<f64, InvalidInput> {
        let mut total: Option<(Plan, f64)> = None;
        for (leg, requests) in self.parts(minutes) {
            let plan = plan(&leg.traffic)?;
            total = Some(match total {
                None => (plan, requests),
                Some((so_far, before)) => (so_far.followed_by(before, &plan, requests), before + requests),
            });
        }
        Ok(total.map_or(0.0, |(plan, requests)| plan.chance(requests)))
    }

    /// The chance that an equal canary is shown within `minutes` to be not worse by `margin`, at level `beta`.
    ///
    /// # Errors
    /// As [`Traffic::non_inferiority`].
    pub fn chance_to_prove(&self, minutes: f64, margin: f64, beta: f64) -> Result<f64, InvalidInput> {
        self.chance(minutes, |traffic| traffic.non_inferiority(margin, beta))
    }

    /// What that takes with a chance of `wanted`; `None` if more than ten years. The margin may grow with the minutes.
    ///
    /// # Errors
    /// As [`Traffic::non_inferiority`].
    pub fn time_to_prove(
        &self,
        wanted: f64,
        margin: impl Fn(f64) -> f64,
        beta: f64,
    ) -> Result<Option<Duration>, InvalidInput> {
        self.chance_to_prove(0.0, margin(0.0), beta)?;
        Ok(self.time(|minutes| {
            self.chance_to_prove(minutes, margin(minutes), beta).is_ok_and(|chance| chance >= wanted)
        }))
    }

    /// The chance that a canary `ratio` times worse is rolled back within `minutes`, at level `alpha`.
    ///
    /// # Errors
    /// As [`Traffic::detection`].
    pub fn chance_to_detect(&self, minutes: f64, ratio: f64, alpha: f64) -> Result<f64, InvalidInput> {
        self.chance(minutes, |traffic| traffic.detection(ratio, alpha))
    }

    /// What rolling it back takes with a chance of `wanted`; `None` if more than ten years.
    ///
    /// # Errors
    /// As [`Traffic::detection`].
    pub fn time_to_detect(
        &self,
        wanted: f64,
        ratio: f64,
        alpha: f64,
    ) -> Result<Option<Duration>, InvalidInput> {
        self.chance_to_detect(0.0, ratio, alpha)?;
        Ok(self.time(|minutes| {
            self.chance_to_detect(minutes, ratio, alpha).is_ok_and(|chance| chance >= wanted)
        }))
    }

    /// The smallest ratio that is rolled back within `minutes` with 80 % chance; `None` if not even a canary
    /// that fails every request would be.
    ///
    /// # Errors
    /// An alpha that is no probability.
    pub fn detectable_ratio(&self, minutes: f64, alpha: f64) -> Result<Option<f64>, InvalidInput> {
        if let [leg] = self.0.as_slice() {
            return leg.traffic.detectable_ratio(self.requests(minutes), alpha);
        }
        let chance = |ratio: f64| self.chance(minutes, |traffic| traffic.typical_detection(ratio, alpha));
        let highest = self.0.iter().map(|leg| leg.traffic.highest_ratio()).fold(MAX_RATIO, f64::min);
        if chance(highest)? < 0.8 {
            return Ok(None);
        }
        let (mut low, mut high) = (1.0, highest);
        for _ in 0..BISECTIONS {
            let middle = 0.5 * (low + high);
            if chance(middle)? >= 0.8 { high = middle } else { low = middle }
        }
        Ok(Some(high))
    }

    fn time(&self, reached: impl Fn(f64) -> bool) -> Option<Duration> {
        if !reached(LONGEST) {
            return None;
        }
        let (mut low, mut high) = (0.0, LONGEST);
        for _ in 0..BISECTIONS {
            let middle = 0.5 * (low + high);
            if reached(middle) { high = middle } else { low = middle }
        }
        Some(Duration { requests: self.requests(high), minutes: high })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(share: f64, minutes: f64) -> Leg {
        let traffic = Traffic::new(0.01, share, 1.0).expect("valid");
        Leg { traffic, per_minute: 100.0 * share, minutes }
    }

    fn close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
    }

    #[test]
    fn one_leg_is_the_plan_of_its_traffic() {
        let course = Course::new(vec![leg(0.1, 0.0)]).expect("valid");
        let traffic = Traffic::new(0.01, 0.1, 1.0).expect("valid");
        let prove = traffic.non_inferiority(1.5, 0.05).expect("valid");
        let time = course.time_to_prove(0.8, |_| 1.5, 0.05).expect("valid").expect("reached");
        close(time.requests, prove.likely);
        close(time.minutes, prove.likely / 10.0);
        let ratio = course.detectable_ratio(1440.0, 0.01).expect("valid").expect("detectable");
        assert_eq!((ratio * 100.0).round(), 142.0, "the table of the reference");
    }

    #[test]
    fn legs_add_up_and_a_larger_share_is_faster() {
        let halves = Course::new(vec![leg(0.1, 300.0), leg(0.1, 0.0)]).expect("valid");
        let whole = Course::new(vec![leg(0.1, 0.0)]).expect("valid");
        let growing = Course::new(vec![leg(0.1, 60.0), leg(0.5, 0.0)]).expect("valid");
        let time = |course: &Course| {
            course.time_to_prove(0.8, |_| 1.5, 0.05).expect("valid").expect("reached").minutes
        };
        close(time(&halves), time(&whole));
        assert!(time(&growing) < time(&whole) / 2.0);
        let ratio = |course: &Course| course.detectable_ratio(1440.0, 0.02).expect("valid").expect("some");
        close(ratio(&halves), ratio(&whole));
        assert!(ratio(&growing) < ratio(&whole));
        close(growing.requests(120.0), 600.0 + 3000.0);
    }

    #[test]
    fn what_is_no_course_is_refused_and_what_is_never_reached_is_none() {
        assert!(Course::new(vec![]).is_err());
        assert!(Course::new(vec![Leg { per_minute: 0.0, ..leg(0.1, 0.0) }]).is_err());
        let slow = Course::new(vec![Leg { per_minute: 1e-9, ..leg(0.1, 0.0) }]).expect("valid");
        assert_eq!(slow.time_to_prove(0.8, |_| 1.5, 0.05), Ok(None));
        assert_eq!(slow.detectable_ratio(1440.0, 0.02), Ok(None));
        assert!(slow.time_to_detect(0.8, 200.0, 0.02).is_err());
    }
}
