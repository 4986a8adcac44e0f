//! Who looks at a canary, and whether that is enough to put one out.

use std::time::Duration;

/// Who looks, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Looks {
    /// A process that stays, or one that a human follows.
    #[default]
    Live,
    /// A process that comes at times, so far apart; without a number nobody said how far.
    Apart(Option<Duration>),
}

impl Looks {
    /// Why a canary may not go out: nobody would look at it for longer than `accepted`, or for longer than its share
    /// is `valid` unless a look renews it, which one does at half of that time.
    pub fn objection(self, accepted: Option<Duration>, valid: Duration) -> Option<String> {
        let shown = humantime::format_duration;
        match (self, accepted) {
            (Looks::Live, _) => None,
            (Looks::Apart(None), _) => {
                Some("no server watches, and how far apart the ticks are is not said".to_owned())
            }
            (Looks::Apart(Some(gap)), None) => {
                Some(format!("no server watches: nobody would look for {}", shown(gap)))
            }
            (Looks::Apart(Some(gap)), Some(accepted)) if gap > accepted => Some(format!(
                "ticks are {} apart, and the step accepts {} without a look",
                shown(gap),
                shown(accepted)
            )),
            (Looks::Apart(Some(gap)), Some(_)) if gap > valid / 2 => Some(format!(
                "ticks are {} apart, and a share is valid for {}: a look must renew it at half of that",
                shown(gap),
                shown(valid)
            )),
            (Looks::Apart(Some(_)), Some(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_needs_somebody_who_looks_often_enough() {
        const DAY: Duration = Duration::from_secs(86_400);
        const MINUTES: fn(u64) -> Duration = |minutes| Duration::from_secs(60 * minutes);
        let ticks = |minutes| Looks::Apart(Some(MINUTES(minutes)));
        assert_eq!(Looks::Live.objection(None, DAY), None);
        assert_eq!(ticks(15).objection(Some(MINUTES(15)), DAY), None);
        let objections = [
            Looks::Apart(None).objection(Some(DAY), DAY),
            ticks(15).objection(None, DAY),
            ticks(30).objection(Some(MINUTES(15)), DAY),
            ticks(13 * 60).objection(Some(DAY), DAY),
        ];
        insta::assert_snapshot!(objections.map(Option::unwrap_or_default).join("\n"), @"
        no server watches, and how far apart the ticks are is not said
        no server watches: nobody would look for 15m
        ticks are 30m apart, and the step accepts 15m without a look
        ticks are 13h apart, and a share is valid for 1day: a look must renew it at half of that
        ");
    }
}
