//! Telling people: from a queued notice to a message sent.
//!
//! `facts` is what a notice can say, `render` makes a message of it, `outbox`
//! sends what is due through the notifiers of `refit.toml`, one file each.

pub mod console;
pub mod facts;
pub mod outbox;
pub mod render;
pub mod slack;
pub mod smtp;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::adapter::{Adapter, AdapterError, BuildError, Deps, Notifier, build_of};
use crate::domain::id::NotifierName;
use crate::domain::workflow::Recipient;
use render::{Renderer, TemplateError};

/// The notifiers there are.
const ADAPTERS: &[Adapter<Arc<dyn Notifier>>] = &[console::ADAPTER, slack::ADAPTER, smtp::ADAPTER];

/// Makes the notifier of one table `[notifiers.*]` of `refit.toml`.
pub fn build(options: Value, deps: &Deps) -> Result<Arc<dyn Notifier>, BuildError> {
    build_of("notifier", ADAPTERS, options, deps)
}

/// Who can be told, and in which words.
pub struct Notifiers {
    named: BTreeMap<NotifierName, Arc<dyn Notifier>>,
    mail: Option<Arc<dyn Notifier>>,
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
            let sends_mail = options.get("kind").and_then(Value::as_str) == Some(smtp::ADAPTER.kind);
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
        Ok(Self {
            named,
            mail: mail.map(|(_, notifier)| notifier),
            console: Arc::new(console::Console),
            renderer: Renderer::new(templates)?,
        })
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
                Some(notifier) => Ok((notifier.as_ref(), addresses)),
                None => Err(unknown(
                    "find a notifier that sends mail".to_owned(),
                    "it has none: add one with kind = \"smtp\"".to_owned(),
                )),
            },
        }
    }
}
