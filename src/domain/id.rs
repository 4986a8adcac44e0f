//! Ids and names as types, so that a run's id is never taken for an event's
//! and a text that came from outside is checked once, at the edge.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that does not fit the rules of a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: {rule}")]
pub struct InvalidName {
    /// What was expected, such as “a model name”.
    pub what: &'static str,
    /// The text that was given.
    pub text: String,
    /// What the text should look like.
    pub rule: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id; time-ordered, so the newest sorts last in either database.
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Uuid::parse_str(text).map(Self).map_err(|_| InvalidName {
                    what: concat!("the id of ", $what),
                    text: text.to_owned(),
                    rule: "one looks like 01a204d0-9765-74fb-8a5b-69601f71fcbe",
                })
            }
        }
    };
}

uuid_id! {
    /// One execution of a workflow.
    RunId, "a run"
}
uuid_id! {
    /// Something that happened: a tick, a command, a call.
    EventId, "an event"
}
uuid_id! {
    /// One start of one refit process that works on runs; never used twice.
    WorkerId, "a process"
}
uuid_id! {
    /// One refit database; release documents carry it, so a foreign one is recognised.
    InstanceId, "a refit database"
}
uuid_id! {
    /// One canary, from its first request to its end.
    CanaryId, "a canary"
}
uuid_id! {
    /// One window without promotions.
    FreezeId, "a freeze"
}

/// What names look like.
pub const NAME_RULE: &str =
    "letters, digits, `-`, `_` and `.`, beginning with a letter or digit, at most 100 characters";

fn is_name(text: &str) -> bool {
    text.len() <= 100
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !text.contains("..")
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                text.to_owned().try_into()
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                if is_name(&text) {
                    Ok(Self(text))
                } else {
                    Err(InvalidName { what: concat!("a ", $what), text, rule: NAME_RULE })
                }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

name! {
    /// A workflow, as its file calls it.
    WorkflowName, "workflow name"
}
name! {
    /// A model: what versions, releases and evidence belong to.
    ModelName, "model name"
}
name! {
    /// A step within its workflow.
    StepId, "step id"
}
name! {
    /// A sealed (or claimed) version of a model, such as `2026-11-21` or `2026-11-21.2`.
    VersionName, "version name"
}
name! {
    /// An offline metric, such as `mae`.
    MetricName, "metric name"
}
name! {
    /// A hosting target of `refit.toml`.
    TargetName, "target name"
}
name! {
    /// An artifact store of `refit.toml`.
    StoreName, "store name"
}
name! {
    /// A notifier of `refit.toml`.
    NotifierName, "notifier name"
}
name! {
    /// A secret; the value stays in the environment or its file.
    SecretName, "secret name"
}

/// How often a run was claimed: the fencing token of everything written for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);

/// How often a release row was changed: the compare-and-set token of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub i64);

impl Generation {
    /// The generation after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
