//! Freezes: windows without promotions. What is on canary goes on, and every way
//! back stays open; no version becomes the one that serves everybody.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::id::{FreezeId, ModelName};

/// A window in which nothing is promoted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// Its id.
    pub id: FreezeId,
    /// The model; every model when absent.
    pub model: Option<ModelName>,
    /// When it begins.
    pub from: Timestamp,
    /// When it is over by itself; when it is lifted, if absent.
    pub until: Option<Timestamp>,
    /// Why, in plain words.
    pub reason: String,
    /// Who said so.
    pub by: String,
    /// When they said so.
    pub at: Timestamp,
    /// Who lifted it, if somebody did.
    pub lifted: Option<Lifted>,
}

/// The end of a freeze by a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifted {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// A freeze as somebody asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreezeWish {
    /// The model; every model when absent.
    pub model: Option<ModelName>,
    /// When it begins; at once when absent.
    pub from: Option<Timestamp>,
    /// How it ends.
    pub end: FreezeEnd,
    /// Why.
    pub reason: String,
    /// Who asks.
    pub by: String,
}

/// Ends that are at most so far apart are one: nobody who asks twice in a minute asks for a minute more.
const SAME_END: TimeDelta = TimeDelta::minutes(1);

/// A begin is at most so far past: the date of today is, wherever it is written and however late.
const LONGEST_PAST: TimeDelta = TimeDelta::hours(48);

/// How a freeze ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeEnd {
    /// It does not: somebody lifts it.
    Never,
    /// At a time.
    At(Timestamp),
    /// So long after it began.
    After(TimeDelta),
}

/// Why there cannot be such a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FreezeError {
    /// It would be over already.
    #[error("its end, {}, is past", until.format("%F %H:%M UTC"))]
    Over {
        /// Its end.
        until: Timestamp,
    },
    /// It would never be in force.
    #[error("its end, {}, is not after its begin, {}", until.format("%F %H:%M UTC"), from.format("%F %H:%M UTC"))]
    Empty {
        /// Its begin.
        from: Timestamp,
        /// Its end.
        until: Timestamp,
    },
    /// It would say of days that are over that nothing could be promoted then.
    #[error("its begin, {}, is more than {} hours past", from.format("%F %H:%M UTC"), LONGEST_PAST.num_hours())]
    Begun {
        /// Its begin.
        from: Timestamp,
    },
}

/// Which freezes are lifted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FreezeScope {
    /// Those of every model; one that names its model stays.
    EveryModel,
    /// Those that name this model.
    Model(ModelName),
    /// One.
    One(FreezeId),
}

impl FreezeWish {
    /// The freeze that it becomes when it is asked for at `now`, while those in `open` are not over.
    ///
    /// # Errors
    /// It would be over already, end before it begins, or begin long ago though no open freeze of its scope began then.
    pub fn granted(&self, id: FreezeId, now: Timestamp, open: &[Freeze]) -> Result<Freeze, FreezeError> {
        let from = self.from.unwrap_or(now);
        let until = self.end_after(from);
        match until {
            Some(until) if until <= from => return Err(FreezeError::Empty { from, until }),
            Some(until) if until <= now => return Err(FreezeError::Over { until }),
            Some(_) | None => {}
        }
        let extends = |freeze: &Freeze| freeze.model == self.model && freeze.from == from;
        if now.signed_duration_since(from) > LONGEST_PAST && !open.iter().any(extends) {
            return Err(FreezeError::Begun { from });
        }
        Ok(Freeze {
            id,
            model: self.model.clone(),
            from,
            until,
            reason: self.reason.clone(),
            by: self.by.clone(),
            at: now,
            lifted: None,
        })
    }

    fn end_after(&self, from: Timestamp) -> Option<Timestamp> {
        match self.end {
            FreezeEnd::Never => None,
            FreezeEnd::At(until) => Some(until),
            // Durations that can be typed are at most ten years.
            FreezeEnd::After(lasts) => Some(from.checked_add_signed(lasts).unwrap_or(Timestamp::MAX_UTC)),
        }
    }

    /// Whether `freeze`, which is not over, is what is asked for at `now`: the same model, begin, end and reason. One
    /// that began when it was asked for is the same as one that shall begin at once; so asking twice is asking once.
    /// One that shall last so long from now on is another one once it would end noticeably later: it renews the first.
    pub fn is_granted_by(&self, freeze: &Freeze, now: Timestamp) -> bool {
        let begins_so = match self.from {
            None => freeze.from == freeze.at,
            Some(from) => freeze.from == from,
        };
        let renews = match (self.end, freeze.until) {
            (FreezeEnd::After(_), Some(until)) => self
                .end_after(self.from.unwrap_or(now))
                .is_some_and(|end| end.signed_duration_since(until) > SAME_END),
            (FreezeEnd::After(_), None) | (FreezeEnd::Never | FreezeEnd::At(_), _) => false,
        };
        begins_so
            && !renews
            && freeze.lifted.is_none()
            && freeze.model == self.model
            && freeze.reason == self.reason
            && freeze.until == self.end_after(freeze.from)
    }
}

impl Freeze {
    /// Whether it is, or will be, about `model`.
    pub fn covers(&self, model: &ModelName) -> bool {
        self.model.as_ref().is_none_or(|named| named == model)
    }

    /// Whether it was not lifted and its end is to come.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.lifted.is_none() && self.until.is_none_or(|until| now < until)
    }

    /// Whether it keeps promotions back at this time.
    pub fn is_in_force(&self, now: Timestamp) -> bool {
        self.is_open(now) && self.from <= now
    }

    /// The part that matters to who waits: `until 2026-11-30 00:00 UTC, by ana: Black Friday`.
    pub fn terms(&self) -> String {
        let until = match self.until {
            Some(until) => format!("until {}", until.format("%F %H:%M UTC")),
            None => "until somebody lifts it".to_owned(),
        };
        format!("{until}, by {}: {}", self.by, self.reason)
    }
}

impl std::fmt::Display for Freeze {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "frozen {}", self.terms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: &str) -> Timestamp {
        format!("2026-11-{time}:00Z").parse().expect("a time")
    }

    fn wish(from: Option<Timestamp>, end: FreezeEnd) -> FreezeWish {
        let model = Some("race-times".parse().expect("a name"));
        FreezeWish { model, from, end, reason: "Black Friday".to_owned(), by: "ana".to_owned() }
    }

    fn granted(wish: &FreezeWish, now: Timestamp) -> Freeze {
        wish.granted(FreezeId::generate(), now, &[]).expect("granted")
    }

    #[test]
    fn a_freeze_is_in_force_from_its_begin_until_its_end() {
        let freeze = granted(&wish(Some(at("27T08:00")), FreezeEnd::At(at("30T00:00"))), at("20T00:00"));
        let in_force =
            ["27T07:59", "27T08:00", "29T23:59", "30T00:00"].map(|now| freeze.is_in_force(at(now)));
        assert_eq!(in_force, [false, true, true, false]);
        assert_eq!(freeze.to_string(), "frozen until 2026-11-30 00:00 UTC, by ana: Black Friday");
        let lifted = Freeze { lifted: Some(Lifted { by: "bo".to_owned(), at: at("28T00:00") }), ..freeze };
        assert!(!lifted.is_in_force(at("28T00:00")));
        let endless = granted(&wish(None, FreezeEnd::Never), at("20T00:00"));
        assert!(endless.is_in_force(at("30T00:00")));
        assert_eq!(endless.terms(), "until somebody lifts it, by ana: Black Friday");
    }

    #[test]
    fn a_freeze_that_would_never_be_in_force_is_refused() {
        let now = at("20T00:00");
        let refused = |from: Option<Timestamp>, end| {
            wish(from, end).granted(FreezeId::generate(), now, &[]).expect_err("refused").to_string()
        };
        let past = FreezeEnd::At(at("19T00:00"));
        assert_eq!(refused(Some(at("18T00:00")), past), "its end, 2026-11-19 00:00 UTC, is past");
        let empty = "its end, 2026-11-19 00:00 UTC, is not after its begin, 2026-11-20 00:00 UTC";
        assert_eq!(refused(None, past), empty);
        let (later, at_once) = (Some(at("21T00:00")), FreezeEnd::After(TimeDelta::zero()));
        assert!(refused(later, at_once).contains("is not after its begin"));
        let begun = refused(Some(at("17T23:59")), FreezeEnd::Never);
        assert_eq!(begun, "its begin, 2026-11-17 23:59 UTC, is more than 48 hours past");
    }

    #[test]
    fn a_freeze_that_begins_today_may_be_asked_for_wherever_it_is_today() {
        // The date of today just before midnight, twelve hours west of UTC.
        granted(&wish(Some(at("20T00:00")), FreezeEnd::Never), at("21T11:59"));
        // "Now", written a minute before midnight and read after it.
        granted(&wish(Some(at("20T23:59")), FreezeEnd::Never), at("21T00:00"));
    }

    #[test]
    fn a_freeze_may_be_extended_however_long_it_is_in_force() {
        let friday = Some(at("20T00:00"));
        let first = granted(&wish(friday, FreezeEnd::At(at("28T00:00"))), at("19T00:00"));
        let longer = wish(friday, FreezeEnd::At(at("30T00:00")));
        let at_end = |wish: &FreezeWish, open: &[Freeze]| {
            wish.granted(FreezeId::generate(), at("27T00:00"), open).map(|freeze| freeze.from)
        };
        assert_eq!(at_end(&longer, std::slice::from_ref(&first)), Ok(at("20T00:00")));
        let begun = Err(FreezeError::Begun { from: at("20T00:00") });
        assert_eq!(at_end(&longer, &[]), begun);
        let of_all = FreezeWish { model: None, ..longer };
        assert_eq!(at_end(&of_all, &[first]), begun, "it froze one model");
    }

    #[test]
    fn asking_twice_is_asking_once() {
        let hours = FreezeEnd::After(TimeDelta::hours(6));
        let first = granted(&wish(None, hours), at("20T00:00"));
        let soon = at("20T00:01");
        assert!(wish(None, hours).is_granted_by(&first, soon));
        assert!(wish(None, FreezeEnd::At(at("20T06:00"))).is_granted_by(&first, soon));
        assert!(!wish(None, FreezeEnd::Never).is_granted_by(&first, soon), "another end");
        assert!(!wish(Some(at("20T01:00")), hours).is_granted_by(&first, soon), "another begin");
        let other = FreezeWish { reason: "a fair".to_owned(), ..wish(None, hours) };
        assert!(!other.is_granted_by(&first, soon), "another reason");
        let everybody = FreezeWish { model: None, ..wish(None, hours) };
        assert!(!everybody.is_granted_by(&first, soon), "more than this model");
        let lifted = Freeze { lifted: Some(Lifted { by: "bo".to_owned(), at: at("20T01:00") }), ..first };
        assert!(!wish(None, hours).is_granted_by(&lifted, soon), "it was lifted");
    }
    #[test]
    fn asking_again_for_so_many_hours_renews_a_freeze() {
        let day = FreezeEnd::After(TimeDelta::days(1));
        let first = granted(&wish(None, day), at("20T00:00"));
        for later in ["20T00:02", "20T18:00", "20T23:59"] {
            assert!(!wish(None, day).is_granted_by(&first, at(later)), "at {later} it would end later");
        }
        // An end that was named, or reckoned from a begin that was, is the same whenever it is asked for.
        let (end, begin) = (FreezeEnd::At(at("21T00:00")), Some(at("20T00:00")));
        assert!(wish(None, end).is_granted_by(&first, at("20T23:59")));
        assert!(wish(begin, day).is_granted_by(&first, at("20T23:59")));
        let endless = granted(&wish(None, FreezeEnd::Never), at("20T00:00"));
        assert!(wish(None, FreezeEnd::Never).is_granted_by(&endless, at("29T00:00")));
    }
}
