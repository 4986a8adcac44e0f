//! Vercel's REST API as far as refit calls it: one client for both targets.
//!
//! The token is in a header only. Answers are read whole and with a limit; an
//! answer that is cut is no answer.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use crate::adapter::{AdapterError, BuildError, Deps};
use crate::domain::id::SecretName;
use crate::http_client::{refusal, unreachable_service};
use crate::secret::{Secret, Secrets};

/// No answer that refit asks for is longer.
const LONGEST: usize = 16 * 1024 * 1024;
/// One request with its answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// A busy service is waited for within one request, this often and at most this long; then the step waits.
const BUSY_TRIES: u32 = 3;
const BUSY_LONGEST: Duration = Duration::from_secs(10);
/// Waited when a busy service does not say how long.
const BUSY_DEFAULT: Duration = Duration::from_secs(1);
/// What the API is called in messages.
const SERVICE: &str = "Vercel";

/// Where the API is and as whom refit speaks: `token`, `team` and `api` of both targets.
pub(in crate::hosting) struct Account {
    token: SecretName,
    team: Option<String>,
    api: Option<Url>,
}

/// The API, when settings do not say another address.
const API: &str = "https://api.vercel.com";

/// The API, spoken to as one account.
pub(in crate::hosting) struct Api {
    base: Url,
    token: Secret,
    /// The secret's name, for whoever has to renew it.
    token_name: SecretName,
    team: Option<(&'static str, String)>,
    http: reqwest::Client,
    secrets: Secrets,
}

/// Why a request did not do what was asked.
pub(in crate::hosting) enum Failure {
    /// It was answered, with a refusal.
    Refused {
        /// The status.
        status: StatusCode,
        /// Vercel's own word for it, such as `ENV_CONFLICT`.
        code: String,
        /// The refusal as messages show it.
        error: AdapterError,
    },
    /// It was not answered, or not wholly.
    Unanswered(AdapterError),
}

impl From<Failure> for AdapterError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused { error, .. } | Failure::Unanswered(error) => error,
        }
    }
}

#[derive(Default, Deserialize)]
struct ErrorBody {
    error: ErrorCode,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ErrorCode {
    code: String,
    /// Nobody is known by this token: it ran out, was revoked, or never was one.
    #[serde(default)]
    invalid_token: bool,
}

/// One request.
pub(in crate::hosting) struct Call<'c> {
    /// What it is for, as an error shows it: `read the variables`.
    pub action: &'c str,
    /// The method.
    pub method: Method,
    /// The path, in parts that are encoded.
    pub path: &'c [&'c str],
    /// The query, beside the team.
    pub query: &'c [(&'c str, &'c str)],
    /// The body.
    pub body: Option<Value>,
}

impl Account {
    /// The secret with the API token, the team that owns the project (its id, `team_…`, or its slug), and the
    /// API's address.
    pub fn of(token: SecretName, team: Option<String>, api: Option<Url>) -> Self {
        Self { token, team, api }
    }

    /// The API as this account sees it.
    pub fn open(self, kind: &'static str, deps: &Deps) -> Result<Api, BuildError> {
        let problem = |problem: &str| BuildError::Options { kind, problem: problem.to_owned() };
        let base = self.api.map_or_else(|| Url::parse(API), Ok);
        let base = base.ok().filter(|url| {
            matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.query().is_none()
        });
        let base = base.ok_or_else(|| problem("`api` is not the address of an API"))?;
        let team = self.team.map(|team| {
            let key = if team.starts_with("team_") { "teamId" } else { "slug" };
            (key, team)
        });
        let token = deps.secrets.get(&self.token)?;
        Ok(Api {
            base,
            token,
            token_name: self.token,
            team,
            http: deps.http.clone(),
            secrets: deps.secrets.clone(),
        })
    }
}

impl Api {
    /// Sends a request and reads its answer. A busy API (429) is asked again when it says so, as it has
    /// done nothing yet; nothing else is repeated here.
    pub async fn call<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T, Failure> {
        let bytes = self.bytes(call).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::Unanswered(AdapterError::Rejected {
                service: SERVICE.to_owned(),
                action: call.action.to_owned(),
                cause: format!("its answer is not what its API describes: {error}"),
            })
        })
    }

    /// Sends a request whose answer has nothing to read.
    pub async fn tell(&self, call: &Call<'_>) -> Result<(), Failure> {
        self.bytes(call).await.map(drop)
    }

    async fn bytes(&self, call: &Call<'_>) -> Result<Vec<u8>, Failure> {
        let mut tries = 1;
        loop {
            let failure = match self.once(call).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => failure,
            };
            let wait = match &failure {
                Failure::Refused {
                    status: StatusCode::TOO_MANY_REQUESTS,
                    error: AdapterError::Unavailable { retry_after, .. },
                    ..
                } => retry_after.unwrap_or(BUSY_DEFAULT),
                Failure::Refused { .. } | Failure::Unanswered(_) => return Err(failure),
            };
            if tries == BUSY_TRIES || wait > BUSY_LONGEST {
                return Err(failure);
            }
            tries += 1;
            tokio::time::sleep(wait).await;
        }
    }

    async fn once(&self, call: &Call<'_>) -> Result<Vec<u8>, Failure> {
        let unreachable = |error| Failure::Unanswered(unreachable_service(SERVICE, call.action, error));
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(call.path);
        }
        let mut request = self
            .http
            .request(call.method.clone(), url)
            .bearer_auth(self.token.reveal())
            .query(call.query)
            .query(self.team.as_slice())
            .timeout(PATIENCE);
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read(response).await;
        if status.is_success() {
            return match body {
                Ok(Some(bytes)) => Ok(bytes),
                Ok(None) => Err(Failure::Unanswered(AdapterError::Rejected {
                    service: SERVICE.to_owned(),
                    action: call.action.to_owned(),
                    cause: format!("its answer is longer than {LONGEST} bytes"),
                })),
                Err(error) => Err(unreachable(error)),
            };
        }
        let body = body.ok().flatten().unwrap_or_default();
        Err(self.refused(call.action, status, &headers, &body))
    }

    fn refused(&self, action: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
        let ErrorBody { error: ErrorCode { code, invalid_token } } =
            serde_json::from_slice(body).unwrap_or_default();
        let text = self.secrets.mask(&String::from_utf8_lossy(body));
        let mut error = refusal(SERVICE, action, status, headers, &text);
        match &mut error {
            AdapterError::Denied { cause, .. } => {
                cause.push_str(&self.way_in(status, &code, invalid_token));
            }
            AdapterError::Rejected { cause, .. } if status == StatusCode::NOT_FOUND => {
                cause.push_str(" (is its name right, and `team`?)");
            }
            AdapterError::Rejected { .. }
            | AdapterError::Unavailable { .. }
            | AdapterError::Conflict { .. } => {}
        }
        Failure::Refused { status, code, error }
    }

    /// What somebody has to do who is not let in; nothing where Vercel refuses for another reason.
    fn way_in(&self, status: StatusCode, code: &str, invalid_token: bool) -> String {
        if invalid_token || status == StatusCode::UNAUTHORIZED {
            return format!(" (set a token that is valid in the secret `{}`)", self.token_name);
        }
        match &self.team {
            _ if code != "forbidden" => String::new(),
            None => " (a project of a team needs `team`)".to_owned(),
            Some((_, team)) => format!(
                " (set `team`, which is `{team}`, to the team that owns it, or take a token that may act for that team)"
            ),
        }
    }
}

/// The whole body, or `None` when it is too long.
async fn read(mut response: Response) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut bytes = vec![];
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > LONGEST {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}
