//! `kind = "smtp"`: mail, as plain text with an HTML alternative.

use std::sync::Arc;

use async_trait::async_trait;
use lettre::message::{Mailbox, MultiPart, SinglePart};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::adapter::{Adapter, AdapterError, BuildError, Deps, Message, NotSent, Notifier, options_of};
use crate::domain::id::SecretName;
use crate::http_client::{excerpt, install_crypto};

/// `kind = "smtp"`.
pub const ADAPTER: Adapter<Arc<dyn Notifier>> = Adapter { kind: "smtp", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The name of the secret that holds `smtps://user:password@host` or
    /// `smtp://user:password@host:587?tls=required`.
    url: SecretName,
    /// The sender, `refit <refit@example.com>`.
    from: String,
}

/// A server that says nothing for so long is gone.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

fn build(options: Value, deps: &Deps) -> Result<Arc<dyn Notifier>, BuildError> {
    let Options { url: name, from } = options_of(ADAPTER.kind, options)?;
    let problem = |problem: String| BuildError::Options { kind: ADAPTER.kind, problem };
    let from: Mailbox =
        from.parse().map_err(|error| problem(format!("`from` is not a mail address: {error}")))?;
    let secret = deps.secrets.get(&name)?;
    // What a parser says of it may quote it: it is not shown.
    let url = url::Url::parse(secret.reveal()).map_err(|_| {
        problem(format!("secret `{name}` is not an address such as smtps://user:password@host"))
    })?;
    let encrypted = url.scheme() == "smtps" || url.query_pairs().any(|(k, v)| k == "tls" && v == "required");
    let here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    if url.password().is_some() && !encrypted && !here {
        return Err(problem(format!(
            "secret `{name}` would send its password in the clear: use smtps://, or add ?tls=required"
        )));
    }
    install_crypto();
    let transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(secret.reveal())
        .map_err(|_| problem(format!("secret `{name}` is not an SMTP address")))?
        .timeout(Some(PATIENCE))
        .build();
    Ok(Arc::new(Smtp { transport, from }))
}

struct Smtp {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

#[async_trait]
impl Notifier for Smtp {
    async fn send(&self, message: &Message) -> Result<(), NotSent> {
        let mail = self.mail(message)?;
        self.transport.send(mail).await.map(|_| ()).map_err(|error| meaning(&error).into())
    }
}

impl Smtp {
    fn mail(&self, message: &Message) -> Result<lettre::Message, AdapterError> {
        let rejected = |cause: String| AdapterError::Rejected {
            service: "mail".to_owned(),
            action: "write a mail".to_owned(),
            cause,
        };
        let mut mail = lettre::Message::builder()
            .from(self.from.clone())
            .subject(&message.subject)
            // Mail programs show a message that came twice once.
            .message_id(Some(self.message_id(&message.id)));
        for address in &message.to {
            let to: Mailbox = address
                .parse()
                .map_err(|error| rejected(format!("{address:?} is no mail address: {error}")))?;
            mail = mail.to(to);
        }
        let built = match &message.html {
            Some(html) => {
                mail.multipart(MultiPart::alternative_plain_html(message.text.clone(), html.clone()))
            }
            None => mail.singlepart(SinglePart::plain(message.text.clone())),
        };
        built.map_err(|error| rejected(error.to_string()))
    }

    /// The same for the same message, whatever its id has in it.
    fn message_id(&self, id: &str) -> String {
        let hash = hex::encode(&Sha256::digest(id)[..16]);
        format!("<{hash}.refit@{}>", self.from.email.domain())
    }
}

/// What the server's answer means: 4xx and silence may be tried again, 5xx not.
fn meaning(error: &lettre::transport::smtp::Error) -> AdapterError {
    let (service, action, cause) = ("mail".to_owned(), "send a mail".to_owned(), excerpt(&error.to_string()));
    if error.is_client() {
        // Such as a server that takes no password as refit could give it: it will not another time.
        return AdapterError::Rejected { service, action, cause };
    }
    if !error.is_permanent() {
        return AdapterError::Unavailable { service, cause, retry_after: None };
    }
    match error.status().map(u16::from) {
        Some(530 | 534 | 535 | 538) => AdapterError::Denied { service, action, cause },
        Some(_) | None => AdapterError::Rejected { service, action, cause },
    }
}
