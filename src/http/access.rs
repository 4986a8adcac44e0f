//! Who may ask.
//!
//! On a loopback address everybody on the machine may, but not a web page of
//! another site in somebody's browser: its requests carry a foreign `Origin`,
//! and, when it had its name point here, a foreign `Host`. On any other address
//! the token decides.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use url::{Host, Url};

use super::Settings;
use super::error::ApiError;
use crate::domain::id::SecretName;
use crate::secret::{Secret, Secrets};

/// The secret that holds the token.
const TOKEN: &str = "REFIT_TOKEN";
/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;
/// What anybody may ask: whoever watches over processes has no token.
const OPEN: [&str; 2] = ["/healthz", "/readyz"];

/// Who may ask.
#[derive(Debug)]
pub(super) enum Access {
    /// Everybody on this machine.
    Local {
        /// The name people know it by, beside `localhost` and the loopback addresses.
        public_url: Option<Url>,
    },
    /// Who has the token.
    Token {
        /// Its SHA-256.
        digest: [u8; 32],
    },
}

impl Access {
    /// The rule for an address.
    pub(super) fn of(settings: &Settings, secrets: &Secrets) -> Result<Self, String> {
        let listen = settings.listen;
        if listen.ip().is_loopback() {
            return Ok(Self::Local { public_url: settings.public_url.clone() });
        }
        let name: SecretName = TOKEN.parse().map_err(|error| format!("{error}"))?;
        let token = secrets.get(&name).map_err(|missing| {
            format!("{listen} can be reached from other machines, so requests must carry a token: {missing}")
        })?;
        if token.reveal().len() < SHORTEST_TOKEN {
            return Err(format!("{TOKEN} is shorter than {SHORTEST_TOKEN} characters: it could be guessed"));
        }
        Ok(Self::Token { digest: digest(&token) })
    }

    fn allows(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        match self {
            Self::Token { .. } if OPEN.contains(&path) => Ok(()),
            Self::Token { digest } => {
                let given = bearer(headers).ok_or(ApiError::Unauthorized)?;
                if same(digest, &self::digest(&given)) { Ok(()) } else { Err(ApiError::Unauthorized) }
            }
            Self::Local { public_url } => {
                let host = text(headers, &header::HOST)?;
                if let Some(host) = host
                    && !is_own_host(host, public_url.as_ref())
                {
                    return Err(ApiError::Foreign { what: "Host" });
                }
                let writes = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
                match text(headers, &header::ORIGIN)? {
                    Some(origin) if writes && !is_own_origin(origin, host, public_url.as_ref()) => {
                        Err(ApiError::Foreign { what: "Origin" })
                    }
                    Some(_) | None => Ok(()),
                }
            }
        }
    }
}

/// Lets through what is allowed.
pub(super) async fn check(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    match access.allows(request.method(), request.uri().path(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Result<Option<&'h str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| value.to_str()).transpose();
    let first = first.map_err(|_| ApiError::invalid(format!("header `{name}` is not text"), ""))?;
    if values.next().is_some() {
        return Err(ApiError::invalid(format!("header `{name}` is given more than once"), ""));
    }
    Ok(first)
}

/// `Host` has a name or address, and perhaps a port.
fn is_own_host(host: &str, public_url: Option<&Url>) -> bool {
    let Ok(url) = Url::parse(&format!("http://{host}/")) else { return false };
    if url.path() != "/" || !url.username().is_empty() || url.password().is_some() {
        return false;
    }
    let local = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    };
    local || public_url.is_some_and(|public| public.host() == url.host())
}

/// A page of this server has its `Host` as its origin; another program's page on this machine has another port.
fn is_own_origin(origin: &str, host: Option<&str>, public_url: Option<&Url>) -> bool {
    let Ok(origin) = Url::parse(origin) else { return false };
    let own = host.and_then(|host| Url::parse(&format!("http://{host}/")).ok());
    let own = own.into_iter().chain(public_url.cloned());
    own.map(|own| own.origin()).any(|own| own.is_tuple() && own == origin.origin())
}

fn bearer(headers: &HeaderMap) -> Option<Secret> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| Secret::new(token.trim()))
}

fn digest(token: &Secret) -> [u8; 32] {
    Sha256::digest(token.reveal().as_bytes()).into()
}

/// Takes the same time wherever they differ.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> Access {
        Access::Local { public_url: Some("https://refit.example.com".parse().expect("a URL")) }
    }

    fn asked(access: &Access, method: Method, headers: &[(&str, &str)]) -> Result<(), String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                name.parse::<header::HeaderName>().expect("a header"),
                value.parse().expect("a value"),
            );
        }
        access.allows(&method, "/v1/events", &map).map_err(|error| error.to_string())
    }

    #[test]
    fn a_loopback_address_is_open_to_the_machine() {
        for host in ["localhost:7070", "127.0.0.1:7070", "127.9.9.9", "[::1]:7070", "refit.example.com"] {
            assert_eq!(asked(&local(), Method::POST, &[("host", host)]), Ok(()), "{host}");
        }
        assert_eq!(asked(&local(), Method::GET, &[]), Ok(()));
    }

    #[test]
    fn a_name_that_somebody_pointed_here_is_refused() {
        for host in
            ["evil.example", "localhost.evil.example", "1.2.3.4", "a@localhost", "localhost/x", "\"", ""]
        {
            assert!(asked(&local(), Method::GET, &[("host", host)]).is_err(), "{host}");
        }
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert!(asked(&local(), Method::GET, &twice).is_err());
    }

    #[test]
    fn a_page_of_another_site_cannot_write() {
        let host = ("host", "localhost:7070");
        for origin in ["https://evil.example", "null", "http://localhost:3000", "https://localhost:7070", ""]
        {
            let given = [host, ("origin", origin)];
            assert!(asked(&local(), Method::POST, &given).is_err(), "{origin}");
            assert!(asked(&local(), Method::DELETE, &given).is_err(), "{origin}");
            assert_eq!(asked(&local(), Method::GET, &given), Ok(()), "{origin}");
        }
        for origin in ["http://localhost:7070", "https://refit.example.com"] {
            assert_eq!(asked(&local(), Method::POST, &[host, ("origin", origin)]), Ok(()), "{origin}");
        }
    }

    #[test]
    fn other_addresses_need_the_token() {
        let settings = |listen: &str| Settings { listen: listen.parse().expect("address"), public_url: None };
        let secrets = |token: &str| {
            Secrets::fixed([(TOKEN.parse().expect("a name"), Secret::new(token))].into_iter().collect())
        };
        let none = Secrets::fixed([(TOKEN.parse().expect("a name"), Secret::new(""))].into_iter().collect());
        for listen in ["0.0.0.0:7070", "[::]:7070", "10.0.0.1:7070"] {
            let problem = Access::of(&settings(listen), &none).expect_err("refused");
            assert!(problem.contains("REFIT_TOKEN") && problem.contains(listen), "{problem}");
        }
        assert!(Access::of(&settings("0.0.0.0:1"), &secrets("short")).is_err());
        assert!(matches!(Access::of(&settings("127.0.0.1:1"), &none), Ok(Access::Local { .. })));

        let access = Access::of(&settings("0.0.0.0:1"), &secrets("0123456789abcdef")).expect("a token");
        let given = |value: &str| asked(&access, Method::GET, &[("authorization", value)]);
        assert_eq!(given("Bearer 0123456789abcdef"), Ok(()));
        assert_eq!(given("bearer 0123456789abcdef"), Ok(()));
        for wrong in ["Bearer 0123456789abcdeF", "Bearer ", "Basic 0123456789abcdef", "0123456789abcdef"] {
            assert!(given(wrong).is_err(), "{wrong}");
        }
        assert!(asked(&access, Method::GET, &[]).is_err());
        assert!(access.allows(&Method::GET, "/healthz", &HeaderMap::new()).is_ok());
        assert!(!format!("{access:?}").contains("0123456789abcdef"));
    }
}
