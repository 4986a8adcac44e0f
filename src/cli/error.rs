//! What went wrong, for people and for scripts: what was attempted, on what,
//! the cause, the next thing to do.

use serde_json::{Value, json};

use super::Exit;
use super::freeze::how_to_lift;
use super::output::plain;
use crate::config::ConfigError;
use crate::engine::release::ReleaseError;
use crate::store::{StoreError, while_away};
use crate::trigger::TriggerError;

/// Why a command did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    /// What the shell is told.
    pub exit: Exit,
    /// What was attempted, on what, and the cause.
    pub message: String,
    /// The next thing to do.
    pub hint: Option<String>,
}

impl CliError {
    /// An error that the caller can mend: arguments, files, settings.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// An error that ends the command with `exit`.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// The same with what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with what was attempted in front of the cause.
    fn doing(mut self, what: &str) -> Self {
        self.message = format!("cannot {what}: {}", self.message);
        self
    }

    /// For `--json`.
    pub fn to_json(&self) -> Value {
        json!({"error": self.message, "hint": self.hint, "exit": self.exit as u8})
    }

    /// `error:` and `hint:` lines; a cause of several lines stands below its first.
    pub fn to_text(&self) -> String {
        let mut text = format!("error: {}", plain(self.message.trim_end()));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("\nhint: {}", plain(hint)));
        }
        text
    }
}

/// Adds what was attempted to an error.
pub trait Doing<T> {
    /// `what` completes “cannot …”.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, CliError>;
}

impl<T, E: Into<CliError>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, CliError> {
        self.map_err(|error| error.into().doing(&what()))
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::Away(why) => Self::new(Exit::Unreachable, text).hint(while_away(&why)),
            StoreError::Unusable { hint, .. } => Self::usage(text).hint(hint),
            StoreError::Fenced => Self::new(Exit::Busy, text).hint("look at it with `refit run show last`"),
            StoreError::Broken(_) => {
                Self::new(Exit::StepFailed, text).hint("check the database with `refit doctor`")
            }
        }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        let text = error.to_string();
        match error {
            ConfigError::NoProject { .. } => Self::usage(text)
                .hint("start a project here with `refit init`, or name its directory with -C DIR"),
            ConfigError::Unreadable { path, .. } => {
                Self::usage(text).hint(format!("does {} exist, and may you read it?", path.display()))
            }
            ConfigError::Mistake { .. } => {
                Self::usage(text).hint("mend the file; `refit validate` checks it")
            }
            // What to do about a secret is said by the error.
            ConfigError::Adapter { is_secret: true, .. } => {
                Self::usage(text).hint("`refit doctor` checks the settings")
            }
            ConfigError::Adapter { table, is_secret: false, .. } => {
                Self::usage(text).hint(format!("mend [{table}] in refit.toml; `refit doctor` checks it"))
            }
        }
    }
}

impl From<TriggerError> for CliError {
    fn from(error: TriggerError) -> Self {
        let text = error.to_string();
        match error {
            TriggerError::Store(error) => error.into(),
            TriggerError::UnknownInput { input, known, .. } => {
                let error = Self::usage(text);
                match super::pick::nearest(&input, known.iter().map(String::as_str)) {
                    Some(near) => error.hint(format!("did you mean `{near}`?")),
                    None => error,
                }
            }
            TriggerError::MissingInput { .. } | TriggerError::WrongInput { .. } => Self::usage(text),
            TriggerError::Key(_) => {
                Self::usage(text).hint("`refit validate` checks the expressions of a workflow")
            }
        }
    }
}

impl From<ReleaseError> for CliError {
    fn from(error: ReleaseError) -> Self {
        let text = error.to_string();
        match error {
            ReleaseError::Store(error) => error.into(),
            ReleaseError::NoRelease { .. } => Self::usage(text).hint(
                "`refit status` lists what is served; `refit adopt` takes what serves today as champion",
            ),
            ReleaseError::UnknownTarget { target } => {
                Self::usage(text).hint(format!("add [targets.{target}] to refit.toml"))
            }
            ReleaseError::UnknownVersion { model, .. } => {
                Self::usage(text).hint(format!("`refit model ls {model}` lists its versions"))
            }
            ReleaseError::NothingLeft { model, .. } => Self::usage(text).hint(format!(
                "name one that was marked bad if it must be: `refit rollback VERSION --model {model}`"
            )),
            ReleaseError::Busy { version, .. } => Self::new(Exit::Busy, text)
                .hint(format!("wait for its verdict (`refit status`), or drop {version} with --supersede")),
            ReleaseError::Frozen { freeze, .. } => Self::new(Exit::Busy, text).hint(format!(
                "wait, lift it with `{}`, or promote all the same with --despite-freeze; \
                 `refit rollback` goes back to what served before, whatever is frozen",
                how_to_lift(&freeze),
            )),
            ReleaseError::Changed { .. } => Self::new(Exit::Busy, text)
                .hint("nothing was changed; `refit status` shows what serves now: decide again"),
            ReleaseError::Outside(error) => {
                let exit = if error.is_transient() { Exit::Unreachable } else { Exit::StepFailed };
                Self::new(exit, text).hint("`refit doctor` checks stores and targets")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_was_attempted_the_cause_and_what_to_do() {
        let away: Result<(), StoreError> = Err(StoreError::Away("connection refused".to_owned()));
        let error = away.doing(|| "list runs".to_owned()).expect_err("away");
        assert_eq!(error.exit, Exit::Unreachable);
        insta::assert_snapshot!(error.to_text(), @r"
        error: cannot list runs: the database is away: connection refused
        hint: is it running, and is its address right? See `refit doctor`
        ");
        assert_eq!(error.to_json()["exit"], 8);
    }
}
