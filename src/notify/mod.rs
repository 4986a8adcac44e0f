//! Telling people: from a queued notice to a message sent.
//!
//! `facts` is what a notice can say, `render` makes a message of it, `outbox`
//! sends what is due through the notifiers of `refit.toml`, one file each.

pub mod closing;
pub mod console;
pub mod examples;
pub mod facts;
pub mod held;
mod lines;
pub mod noted;
pub mod outbox;
mod pace;
pub mod render;
pub mod resend;
mod send;
pub mod slack;
pub mod slack_api;
pub mod smtp;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::adapter::{Adapter, AdapterError, Board, BuildError, Deps, Notifier, build_of};
use crate::domain::id::NotifierName;
use crate::domain::workflow::Recipient;
use crate::templates::TemplateError;
use render::Renderer;

/// The notifiers there are.
const ADAPTERS: &[Adapter<Arc<dyn Notifier>>] =
    &[console::ADAPTER, resend::ADAPTER, slack::ADAPTER, slack_api::ADAPTER, smtp::ADAPTER];

/// Those that send mail: `email:` in a workflow means the one that there is.
const MAILERS: [&str; 2] = [resend::ADAPTER.kind, smtp::ADAPTER.kind];

/// A service's address without a slash at its end: its key is sent there, so it must be encrypted, unless it is here.
fn service_url(text: &str) -> Result<String, String> {
    let url = url::Url::parse(text).map_err(|error| format!("`base_url` is not an address: {error}"))?;
    let here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match url.scheme() {
        "https" => {}
        "http" if here => {}
        _ => return Err("`base_url` would send the key in the clear: use https://".to_owned()),
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
        return Err("`base_url` is more than a host and a path".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Makes the notifier of one table `[notifiers.*]` of `refit.toml`.
pub fn build(options: Value, deps: &Deps) -> Result<Arc<dyn Notifier>, BuildError> {
    build_of("notifier", ADAPTERS, options, deps)
}

/// Who can be told, and in which words.
pub struct Notifiers {
    named: BTreeMap<NotifierName, Arc<dyn Notifier>>,
    mail: Option<(NotifierName, Arc<dyn Notifier>)>,
    console: Arc<dyn Notifier>,
    renderer: Renderer,
}

/// Why the notifiers cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotifiersError {
    /// One table is wrong.
    #[error("[notifiers.{name}]: {cause}")]
    Table {
        /// Its name.
        name: NotifierName,
        /// What is wrong.
        cause: BuildError,
    },
    /// `email:` would not know which to use.
    #[error("[notifiers.{first}] and [notifiers.{second}] both send mail: one is enough")]
    TwoMailers {
        /// One.
        first: NotifierName,
        /// The other.
        second: NotifierName,
    },
    /// A template of the project is wrong.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

impl Notifiers {
    /// The notifiers of `[notifiers.*]`; `templates` has the files that replace built-in ones.
    pub fn build(
        tables: BTreeMap<NotifierName, Value>,
        templates: Option<&Path>,
        deps: &Deps,
    ) -> Result<Self, NotifiersError> {
        let (mut named, mut mail) = (BTreeMap::new(), None::<(NotifierName, Arc<dyn Notifier>)>);
        for (name, options) in tables {
            let kind = options.get("kind").and_then(Value::as_str);
            let sends_mail = kind.is_some_and(|kind| MAILERS.contains(&kind));
            let notifier =
                build(options, deps).map_err(|cause| NotifiersError::Table { name: name.clone(), cause })?;
            if !sends_mail {
                named.insert(name, notifier);
            } else if let Some((first, _)) = mail {
                return Err(NotifiersError::TwoMailers { first, second: name });
            } else {
                mail = Some((name, notifier));
            }
        }
        Ok(Self { named, mail, console: Arc::new(console::Console), renderer: Renderer::new(templates)? })
    }

    /// The notifier that `refit.toml` calls `name`, and whether it sends mail.
    pub fn get(&self, name: &str) -> Option<(&dyn Notifier, bool)> {
        let mailer = self.mail.as_ref().filter(|(mailer, _)| mailer.as_str() == name);
        let other = || self.named.iter().find(|(other, _)| other.as_str() == name);
        mailer
            .map(|(_, notifier)| (notifier.as_ref(), true))
            .or_else(|| other().map(|(_, notifier)| (notifier.as_ref(), false)))
    }

    /// All notifiers of `refit.toml`, by name.
    pub fn names(&self) -> Vec<&NotifierName> {
        let mut names: Vec<_> =
            self.named.keys().chain(self.mail.as_ref().map(|(mailer, _)| mailer)).collect();
        names.sort();
        names
    }

    /// Those that keep one message a run up to date.
    pub fn boards(&self) -> BTreeSet<NotifierName> {
        let boards = self.named.iter().filter(|(_, notifier)| notifier.board().is_some());
        boards.map(|(name, _)| name.clone()).collect()
    }

    /// What keeps the message about a run up to date at the notifier `name`.
    pub fn board(&self, name: &NotifierName) -> Option<&dyn Board> {
        self.named.get(name)?.board()
    }

    /// What makes messages of facts.
    pub fn renderer(&self) -> &Renderer {
        &self.renderer
    }

    /// How `recipient` is told, and at which addresses.
    fn resolve<'a>(
        &'a self,
        recipient: &'a Recipient,
    ) -> Result<(&'a dyn Notifier, &'a [String]), AdapterError> {
        let unknown = |action: String, cause: String| AdapterError::Rejected {
            service: "refit.toml".to_owned(),
            action,
            cause,
        };
        match recipient {
            Recipient::Console => Ok((self.console.as_ref(), &[])),
            Recipient::Slack(name) | Recipient::Webhook(name) => match self.named.get(name) {
                Some(notifier) => Ok((notifier.as_ref(), &[])),
                None => {
                    let known: Vec<&str> = self.named.keys().map(NotifierName::as_str).collect();
                    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                    Err(unknown(format!("find notifier `{name}`"), format!("it has {known}")))
                }
            },
            Recipient::Email(addresses) => match &self.mail {
                Some((_, notifier)) => Ok((notifier.as_ref(), addresses)),
                None => Err(unknown(
                    "find a notifier that sends mail".to_owned(),
                    "it has none: add one with kind = \"smtp\" or \"resend\"".to_owned(),
                )),
            },
        }
    }
}
