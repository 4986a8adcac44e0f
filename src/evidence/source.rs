//! From what a workflow says to a source that can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use chrono::TimeDelta;
use reqwest::{Client, RequestBuilder};
use serde_json::{Map, Value};

use super::http::HttpSource;
use super::prometheus::PrometheusSource;
use super::sql::SqlSource;
use crate::adapter::{AdapterError, EvidenceSource};
use crate::domain::Timestamp;
use crate::domain::expr::{Scope, Template};
use crate::domain::pull::{Page, Wanted};
use crate::domain::workflow::evidence::Pull;
use crate::secret::{Secret, Secrets};

/// What sources are made with.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Where `refit.toml` is: relative paths begin here.
    pub project: &'a Path,
    /// Secrets by name.
    pub secrets: &'a Secrets,
    /// The client for plain HTTP.
    pub http: &'a Client,
}

/// The source that a workflow names.
///
/// # Errors
/// A secret that is not set, or an address that makes no sense.
pub fn source(pull: &Pull, place: Place<'_>) -> Result<Box<dyn EvidenceSource>, AdapterError> {
    match pull {
        Pull::Sql(sql) => {
            let url = rendered(&sql.url, &place)?;
            Ok(Box::new(SqlSource::new(&url, &sql.query, sql.error_if.clone(), place.project)?))
        }
        Pull::Prometheus(counters) => Ok(Box::new(PrometheusSource {
            address: Address::new(rendered(&counters.url, &place)?, &counters.headers, &place)?,
            counters: counters.clone(),
            http: place.http.clone(),
            secrets: place.secrets.clone(),
        })),
        Pull::Http(rows) => {
            let scope = secrets_of(&rows.url, place.secrets)?;
            let empty = scope.clone().with("since", Value::from("")).with("cursor", Value::from(""));
            let url = rows.url.render(&empty).map_err(|error| refused(error.to_string()))?;
            Ok(Box::new(HttpSource {
                address: Address::new(url, &rows.headers, &place)?,
                scope,
                rows: rows.clone(),
                http: place.http.clone(),
                secrets: place.secrets.clone(),
            }))
        }
    }
}

/// Where requests go, and how that is shown.
pub(super) struct Address {
    pub(super) url: String,
    /// Without what may be secret in it: user, password, query.
    pub(super) shown: String,
    headers: Vec<(String, Secret)>,
}

impl Address {
    fn new(
        url: String,
        headers: &BTreeMap<String, Template>,
        place: &Place<'_>,
    ) -> Result<Self, AdapterError> {
        let parsed = url::Url::parse(&url).ok().filter(|parsed| matches!(parsed.scheme(), "http" | "https"));
        let Some(parsed) = parsed else {
            return Err(refused("its `url` begins with neither `http://` nor `https://`".to_owned()));
        };
        let port = parsed.port().map(|port| format!(":{port}")).unwrap_or_default();
        let host = parsed.host_str().unwrap_or_default();
        let shown = format!("{}://{host}{port}{}", parsed.scheme(), parsed.path());
        let headers =
            headers.iter().map(|(name, value)| Ok((name.clone(), Secret::new(rendered(value, place)?))));
        Ok(Self { url, shown, headers: headers.collect::<Result<_, AdapterError>>()? })
    }

    pub(super) fn with_headers(&self, request: RequestBuilder) -> RequestBuilder {
        self.headers.iter().fold(request, |request, (name, value)| request.header(name, value.reveal()))
    }
}

/// An answer that makes no sense.
pub(super) fn unreadable(service: &str, cause: &str) -> AdapterError {
    AdapterError::Rejected {
        service: service.to_owned(),
        action: "be read".to_owned(),
        cause: cause.to_owned(),
    }
}

fn refused(cause: String) -> AdapterError {
    AdapterError::Rejected {
        service: "the evidence source".to_owned(),
        action: "be set up".to_owned(),
        cause,
    }
}

/// `template` with its secrets.
fn rendered(template: &Template, place: &Place<'_>) -> Result<String, AdapterError> {
    template.render(&secrets_of(template, place.secrets)?).map_err(|error| refused(error.to_string()))
}

/// A scope with the secrets that `template` names.
fn secrets_of(template: &Template, secrets: &Secrets) -> Result<Scope, AdapterError> {
    let mut values = Map::new();
    for name in template.secret_names() {
        let known = name.parse().map_err(|error| refused(format!("secrets.{name}: {error}")))?;
        let secret = secrets.get(&known).map_err(|missing| refused(missing.to_string()))?;
        values.insert(name, Value::String(secret.reveal().to_owned()));
    }
    Ok(Scope::new().with("secrets", Value::Object(values)))
}

/// What a look at a source found (`refit doctor`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// How many requests, of which versions, in plain words.
    pub said: String,
    /// The versions in it.
    pub versions: BTreeSet<String>,
    /// What keeps some of it from being evidence.
    pub problem: Option<String>,
}

fn refused_of(page: &Page) -> u64 {
    page.refused + page.untimed.len() as u64
}

/// Reads one page of the last hour, and of the last day if that has none; keeps nothing.
///
/// # Errors
/// The source cannot be read.
pub async fn checked(source: &dyn EvidenceSource, now: Timestamp) -> Result<Checked, AdapterError> {
    let (until, mut page, mut span) = (now + TimeDelta::minutes(1), None, "hour");
    for (hours, name) in [(1, "hour"), (24, "day")] {
        let wanted = Wanted { since: now - TimeDelta::hours(hours), until, through: None, cursor: None, now };
        let found = source.read(&wanted).await?;
        let empty = found.observations.is_empty() && found.minutes.is_empty() && refused_of(&found) == 0;
        (page, span) = (Some(found), name);
        if !empty {
            break;
        }
    }
    let page = page.unwrap_or_default();
    let counted =
        page.observations.len() as u64 + page.minutes.iter().map(|minute| minute.counts.n).sum::<u64>();
    let versions: BTreeSet<String> = page
        .observations
        .iter()
        .map(|observation| observation.version.to_string())
        .chain(page.minutes.iter().map(|minute| minute.version.to_string()))
        .collect();
    let least = if page.more { "at least " } else { "" };
    let of = if versions.is_empty() {
        String::new()
    } else {
        format!(" of {}", versions.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
    };
    let refused = refused_of(&page);
    let refused = page.refusal.map(|refusal| format!("{refused} make no sense: {refusal}"));
    Ok(Checked {
        said: format!("{least}{counted} requests{of} in the last {span}"),
        versions,
        problem: page.problem.or(refused),
    })
}
