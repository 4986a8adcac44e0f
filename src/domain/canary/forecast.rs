//! What a canary can show, before it goes out: from traffic, shares, rates and
//! rules. With much traffic by formula (`stats::course`); with little, where
//! tables wait for requests, by playing it through with the tables and tests
//! that will decide.

use serde::Serialize;
use statrs::distribution::{DiscreteCDF, Poisson};

use super::super::stats::acceptance::odds_ratio_of_points;
use super::super::stats::course::{Course, Duration, Leg};
use super::super::stats::interval::ODDS_RATIO_MAX;
use super::super::stats::plan::Traffic;
use super::super::stats::{Arm, InvalidInput, RateBound};
use super::super::verdict::Verdict;
use super::super::workflow::step::{Compare, CompareRule, Margin, OnlineMetric, Role, Stage};
use super::look::weights;
use super::minutes::MinTable;
use super::play::{self, End, Play};
use super::rules::acceptance_level;

/// A chance to conclude below this is too little.
const HALF: f64 = 0.5;
/// The chance at which something counts as shown.
const LIKELY: f64 = 0.8;
/// How much worse a canary may be that the forecast speaks of.
const RATIOS: [f64; 5] = [1.5, 2.0, 3.0, 5.0, 10.0];

/// What is expected of the app.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Expected {
    /// Requests of both versions together.
    pub requests_per_day: f64,
    /// Errors per request of the stable version.
    pub error_rate: f64,
    /// Slow requests per request of the stable version: the threshold is set for 5 %.
    pub slow_share: f64,
    /// How much more errors vary than independent requests would; 1 when nothing is known.
    pub dispersion: f64,
}

/// What a canary can show until its deadline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// What it stands on.
    pub expected: Expected,
    /// The last share of the stages.
    pub share: f64,
    /// The time to decide.
    pub hours: f64,
    /// Requests of the canary until then.
    pub canary_requests: f64,
    /// How long a table of evidence waits for its requests, at the first share.
    pub table_minutes: f64,
    /// Whether it was played through, as traffic is small; else it is a formula.
    pub simulated: bool,
    /// Times each canary was played through; none of a formula.
    pub runs: Option<u32>,
    /// How far a chance may be off, in 19 of 20 cases, for having been played so many times.
    pub precision: Option<f64>,
    /// Tables of evidence that were judged for it.
    pub judged: u64,
    /// By rule on a rate, in the order of the file.
    pub rules: Vec<RuleForecast>,
    /// There is a rule on prediction errors, which depends on truth, not on traffic.
    pub needs_truth: bool,
    /// That rule decides, as others may beside it.
    pub truth_decides: bool,
    /// A canary that is no worse, by the rules on rates alone.
    pub equal: Equal,
    /// Canaries with more errors; none where errors do not decide.
    pub worse: Vec<Worse>,
}

/// What one rule can show.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleForecast {
    /// The metric.
    pub metric: OnlineMetric,
    /// Whether it decides.
    pub role: Role,
    /// Its margin.
    pub margin: Margin,
    /// The stable version's rate.
    pub base_rate: f64,
    /// The smallest ratio that is rolled back by the deadline with 80 % chance; none if not even a canary
    /// that fails every request would be.
    pub detectable_ratio: Option<f64>,
    /// What showing an equal canary to be not worse by the margin takes on average.
    pub to_prove: Option<Duration>,
    /// What it takes with 80 % chance.
    pub to_prove_likely: Option<Duration>,
    /// The chance to show it by the deadline, or that its rate is acceptable.
    pub chance_to_prove: f64,
}

/// What becomes of a canary that is no worse.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Equal {
    /// It passes by the deadline.
    pub promoted: f64,
    /// Neither by the deadline.
    pub inconclusive: f64,
    /// It is rolled back all the same, at most.
    pub rolled_back: f64,
    /// The hours in which 8 of 10 pass; none if more than the time there is.
    pub hours: Option<f64>,
}

/// What becomes of a canary that is worse.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Worse {
    /// Its errors, as a ratio to the stable version's.
    pub ratio: f64,
    /// It fails every request.
    pub fails_everything: bool,
    /// It is rolled back by the deadline.
    pub rolled_back: f64,
    /// The hours in which 8 of 10 are; none if more than the time there is.
    pub hours: Option<f64>,
}

impl Forecast {
    /// What a canary with these stages shows by the rules within `hours`; played through where traffic is small.
    ///
    /// # Errors
    /// A rate, share, traffic or time that has no meaning; no stages.
    pub fn new(
        rules: &Compare,
        stages: &[Stage],
        hours: f64,
        expected: Expected,
        min_table: MinTable,
    ) -> Result<Self, InvalidInput> {
        Self::of(rules, stages, hours, expected, min_table, true)
    }

    /// The same by formula alone, in no time.
    ///
    /// # Errors
    /// As [`Forecast::new`].
    pub fn reckoned(
        rules: &Compare,
        stages: &[Stage],
        hours: f64,
        expected: Expected,
    ) -> Result<Self, InvalidInput> {
        Self::of(rules, stages, hours, expected, MinTable::default(), false)
    }

    fn of(
        rules: &Compare,
        stages: &[Stage],
        hours: f64,
        expected: Expected,
        min_table: MinTable,
        play: bool,
    ) -> Result<Self, InvalidInput> {
        let outline = Outline { rules, stages, minutes: 60.0 * hours, expected, min_table };
        let errors = outline.course(expected.error_rate)?;
        let share = stages.last().map_or(0.0, |stage| stage.share.fraction());
        let table_minutes = outline.table_minutes();
        let mut forecast = Self {
            expected,
            share,
            hours,
            canary_requests: errors.requests(outline.minutes),
            table_minutes,
            simulated: false,
            runs: None,
            precision: None,
            judged: 0,
            rules: outline.rules()?,
            needs_truth: rules.rules.iter().any(|rule| rule.metric == OnlineMetric::AbsError),
            truth_decides: gates(rules, OnlineMetric::AbsError),
            equal: Equal { promoted: 0.0, inconclusive: 1.0, rolled_back: rules.alpha, hours: None },
            worse: vec![],
        };
        let everything = expected.error_rate.recip() * (1.0 - f64::EPSILON);
        let ratios = RATIOS.into_iter().filter(|ratio| ratio * expected.error_rate < 0.9);
        let ratios = ratios.map(|ratio| (ratio, false)).chain([(everything, true)]);
        // Errors that are only observed roll nothing back.
        let ratios: Vec<(f64, bool)> = ratios.filter(|_| gates(rules, OnlineMetric::ErrorRate)).collect();
        let cases = 1 + ratios.len();
        let play = play
            .then(|| Play::of(rules, stages, outline.minutes, expected, min_table, cases))
            .transpose()?
            .flatten();
        let Some(mut play) = play else {
            forecast.equal = outline.reckon_equal(&forecast.rules);
            for (ratio, fails_everything) in ratios {
                forecast.worse.push(outline.reckon_worse(&errors, ratio, fails_everything)?);
            }
            return Ok(forecast);
        };
        let earliest = outline.earliest();
        forecast.equal = played_equal(play.all(1.0, earliest)?, earliest);
        for (ratio, fails_everything) in ratios {
            let ends = play.all(ratio, earliest)?;
            forecast.worse.push(Worse { ratio, fails_everything, ..played_worse(ends) });
        }
        forecast.simulated = true;
        forecast.runs = Some(play.runs);
        forecast.precision = Some(f64::from(play.runs).sqrt().recip());
        forecast.judged = play.judged;
        Ok(forecast)
    }

    /// The canary will more probably stay undecided than pass. What only prediction errors decide does not depend on
    /// traffic: of it nothing is known.
    pub fn is_underpowered(&self) -> bool {
        self.rates_decide() && self.equal.promoted < HALF
    }

    /// Whether a rule on a rate decides.
    pub fn rates_decide(&self) -> bool {
        self.rules.iter().any(|rule| rule.role == Role::Gating)
    }

    /// What the canary can show, in a sentence.
    pub fn sentence(&self) -> String {
        let Expected { requests_per_day, error_rate, .. } = self.expected;
        let seen = format!("at {requests_per_day:.0} requests a day with {:.2} % errors", 100.0 * error_rate);
        if !self.rates_decide() {
            return match self.truth_decides {
                true => format!(
                    "{seen}; prediction errors decide, as their truth arrives: how soon, traffic does not say"
                ),
                false => format!("{seen}; no rule decides"),
            };
        }
        let sees = self.sees().map(|sees| format!("; {sees}")).unwrap_or_default();
        let truth =
            if self.truth_decides { "; prediction errors decide too, as their truth arrives" } else { "" };
        let advice = self.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
        format!(
            "{seen}, a canary that is no worse passes within {:.0} h with a chance of {:.0} %{sees}{truth}{advice}",
            self.hours,
            100.0 * self.equal.promoted,
        )
    }

    /// How much worse a canary must be to be rolled back; none where errors do not decide.
    fn sees(&self) -> Option<String> {
        let worst = self.worse.iter().find(|worse| worse.rolled_back >= LIKELY);
        let Some(worst) = worst else {
            let nothing = "not even one that fails everything is surely rolled back".to_owned();
            return (!self.worse.is_empty()).then_some(nothing);
        };
        let which = match worst.fails_everything {
            true => "one that fails everything".to_owned(),
            false => format!("one with {}x the errors", worst.ratio),
        };
        let after = worst.hours.map(|hours| format!(", in 8 of 10 cases within {hours:.1} h"));
        Some(format!("{which} is rolled back{}", after.unwrap_or_default()))
    }

    /// What would help a canary that will probably stay undecided; none when there is nothing to say.
    pub fn advice(&self) -> Option<String> {
        if !self.is_underpowered() {
            return None;
        }
        let slowest = self.rules.iter().filter(|rule| rule.role == Role::Gating);
        let needed =
            slowest.map(|rule| rule.to_prove_likely.map(|time| time.minutes)).reduce(|a, b| Some(a?.max(b?)));
        let time = match needed.flatten() {
            Some(minutes) if minutes > 60.0 * self.hours && minutes < 90.0 * 1440.0 => {
                format!("{:.0} days instead of {:.1}", (minutes / 1440.0).ceil(), self.hours / 24.0)
            }
            Some(_) | None => "more time".to_owned(),
        };
        let share = if self.share < 0.5 { "a larger share, " } else { "" };
        Some(format!(
            "a canary that is no worse will probably stay undecided (chance to pass {:.0} %): give it {share}{time}, \
             a wider `worse_by_at_most`, or an `acceptable_below`",
            100.0 * self.equal.promoted
        ))
    }
}

fn gates(rules: &Compare, metric: OnlineMetric) -> bool {
    rules.rules.iter().any(|rule| rule.metric == metric && rule.role == Role::Gating)
}

/// What a forecast is of.
struct Outline<'o> {
    rules: &'o Compare,
    stages: &'o [Stage],
    minutes: f64,
    expected: Expected,
    min_table: MinTable,
}

impl Outline<'_> {
    fn per_minute(&self) -> f64 {
        self.expected.requests_per_day / 1440.0
    }

    /// The stages' minimum times, after which a canary may pass.
    fn earliest(&self) -> f64 {
        self.stages.iter().map(|stage| stage.min_time.as_secs_f64() / 60.0).sum()
    }

    fn course(&self, rate: f64) -> Result<Course, InvalidInput> {
        let leg = |stage: &Stage| {
            let share = stage.share.fraction();
            Ok(Leg {
                traffic: Traffic::new(rate, share, self.expected.dispersion)?,
                per_minute: share * self.per_minute(),
                minutes: stage.min_time.as_secs_f64() / 60.0,
            })
        };
        Course::new(self.stages.iter().map(leg).collect::<Result<_, _>>()?)
    }

    /// At least a minute, at most a day.
    fn table_minutes(&self) -> f64 {
        let share = self.stages.first().map_or(0.0, |stage| stage.share.fraction());
        play::table_minutes(share, self.per_minute(), self.min_table)
    }

    fn rate(&self, metric: OnlineMetric) -> Option<f64> {
        match metric {
            OnlineMetric::ErrorRate => Some(self.expected.error_rate),
            OnlineMetric::LatencySlowShare => Some(self.expected.slow_share),
            OnlineMetric::AbsError => None,
        }
    }

    /// The part of alpha that a rule has; all of it for one that only observes.
    fn alpha(&self, metric: OnlineMetric) -> f64 {
        let gating = self.rules.rules.iter().filter(|rule| rule.role == Role::Gating);
        let mut weighted = gating.zip(weights(&self.rules.rules));
        let weight = weighted.find(|(rule, _)| rule.metric == metric).map_or(1.0, |(_, weight)| weight);
        self.rules.alpha * weight
    }

    fn rules(&self) -> Result<Vec<RuleForecast>, InvalidInput> {
        let mut forecasts = vec![];
        for rule in &self.rules.rules {
            let Some(rate) = self.rate(rule.metric) else { continue };
            let course = self.course(rate)?;
            let level = acceptance_level(rule, self.rules.beta);
            let floor = self.chance_below_floor(rule, rate, level, course.requests(self.minutes))?;
            let margin = |minutes: f64| self.odds_ratio(rule.margin, rate, level, &course, minutes);
            let level = match rule.margin {
                Margin::Ratio(_) => level,
                Margin::Points { .. } => level / 2.0,
            };
            let proved = course.chance_to_prove(self.minutes, margin(self.minutes), level)?;
            forecasts.push(RuleForecast {
                metric: rule.metric,
                role: rule.role,
                margin: rule.margin,
                base_rate: rate,
                detectable_ratio: course.detectable_ratio(self.minutes, self.alpha(rule.metric))?,
                to_prove: course.time_to_prove(HALF, margin, level)?,
                to_prove_likely: course.time_to_prove(LIKELY, margin, level)?,
                chance_to_prove: proved.max(floor),
            });
        }
        Ok(forecasts)
    }

    /// The odds ratio that a margin comes to after so many minutes: points are judged at the bound of the stable rate,
    /// which comes down to it with its requests.
    fn odds_ratio(&self, margin: Margin, rate: f64, level: f64, course: &Course, minutes: f64) -> f64 {
        match margin {
            Margin::Ratio(ratio) => ratio,
            Margin::Points { points } => {
                let stable = (self.per_minute() * minutes - course.requests(minutes)).max(0.0);
                let mut bound = RateBound::default();
                if let Ok(arm) = Arm::new(stable as u64, (stable * rate) as u64) {
                    bound.observe(arm, self.expected.dispersion.max(1.0).recip());
                }
                odds_ratio_of_points(bound.upper(level / 2.0), points).min(ODDS_RATIO_MAX)
            }
        }
    }

    /// The chance that so many requests show the rate to be below the rule's floor.
    fn chance_below_floor(
        &self,
        rule: &CompareRule,
        rate: f64,
        level: f64,
        requests: f64,
    ) -> Result<f64, InvalidInput> {
        let (Some(floor), true) = (rule.acceptable_below, requests >= 1.0) else { return Ok(0.0) };
        let exponent = self.expected.dispersion.max(1.0).recip();
        let shows = |errors: u64| {
            let mut bound = RateBound::default();
            bound.observe(Arm::new(requests as u64, errors)?, exponent);
            Ok::<_, InvalidInput>(bound.is_below(floor, level))
        };
        if !shows(0)? {
            return Ok(0.0);
        }
        let (mut enough, mut too_many) = (0, requests as u64);
        while too_many - enough > 1 {
            let middle = enough + (too_many - enough) / 2;
            if shows(middle)? { enough = middle } else { too_many = middle }
        }
        Ok(Poisson::new(requests * rate).map_or(0.0, |errors| errors.cdf(enough)))
    }

    /// Every gating rule must hold: at least the chance that none of them stays open.
    fn reckon_equal(&self, rules: &[RuleForecast]) -> Equal {
        let gating = || rules.iter().filter(|rule| rule.role == Role::Gating);
        let open: f64 = gating().map(|rule| 1.0 - rule.chance_to_prove).sum();
        let promoted = if gating().next().is_none() || self.earliest() > self.minutes {
            0.0
        } else {
            (1.0 - open).max(0.0)
        };
        let slowest = gating()
            .map(|rule| rule.to_prove_likely.map(|time| time.minutes))
            .reduce(|a, b| Some(a?.max(b?)));
        let minutes = slowest.flatten().map(|minutes| minutes.max(self.earliest()));
        Equal {
            promoted,
            inconclusive: 1.0 - promoted,
            rolled_back: self.rules.alpha,
            hours: minutes.filter(|minutes| *minutes <= self.minutes).map(|minutes| minutes / 60.0),
        }
    }

    fn reckon_worse(
        &self,
        errors: &Course,
        ratio: f64,
        fails_everything: bool,
    ) -> Result<Worse, InvalidInput> {
        let alpha = self.alpha(OnlineMetric::ErrorRate);
        let time = errors.time_to_detect(LIKELY, ratio, alpha)?.map(|time| time.minutes);
        // A look decides over whole tables.
        let time = time.map(|minutes| (minutes / self.table_minutes()).ceil() * self.table_minutes());
        Ok(Worse {
            ratio,
            fails_everything,
            rolled_back: errors.chance_to_detect(self.minutes, ratio, alpha)?,
            hours: time.filter(|minutes| *minutes <= self.minutes).map(|minutes| minutes / 60.0),
        })
    }
}

fn share(ends: &[End], verdict: Verdict) -> f64 {
    ends.iter().filter(|(found, _)| *found == verdict).count() as f64 / ends.len() as f64
}

fn played_equal(mut ends: Vec<End>, earliest: f64) -> Equal {
    let (promoted, rolled_back) = (share(&ends, Verdict::Pass), share(&ends, Verdict::Fail));
    let hours = within(&mut ends, Verdict::Pass, earliest);
    Equal { promoted, inconclusive: 1.0 - promoted - rolled_back, rolled_back, hours }
}

fn played_worse(mut ends: Vec<End>) -> Worse {
    let rolled_back = share(&ends, Verdict::Fail);
    let hours = within(&mut ends, Verdict::Fail, 0.0);
    Worse { ratio: 1.0, fails_everything: false, rolled_back, hours }
}

/// The hours in which 8 of 10 of all ended with `verdict`.
fn within(ends: &mut [End], verdict: Verdict, earliest: f64) -> Option<f64> {
    let time = |(found, minutes): &End| {
        if *found == verdict { minutes.max(earliest) } else { f64::INFINITY }
    };
    ends.sort_by(|a, b| time(a).total_cmp(&time(b)));
    let place = (LIKELY * ends.len() as f64).ceil() as usize;
    let minutes = ends.get(place.saturating_sub(1)).map(time)?;
    minutes.is_finite().then_some(minutes / 60.0)
}
