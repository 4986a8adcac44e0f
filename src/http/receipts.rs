//! `/v1/runs/{id}/receipt` and `/v1/models/{model}/receipts/{generation}`: what a run decided and what a change did,
//! as JSON, HTML or Markdown.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Api;
use super::error::ApiError;
use super::request::{Asked, parsed};
use super::{models, runs};
use crate::domain::id::{Generation, ModelName};
use crate::receipt;
use crate::receipt::page::{Page, Pages};

/// The forms there are; the first is given to whoever wants none of them, or all alike.
const FORMS: [(&str, Form); 3] =
    [("application/json", Form::Json), ("text/html", Form::Html), ("text/markdown", Form::Markdown)];
/// A page has no script, and nothing from elsewhere.
const NOTHING_ELSE: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Html,
    Markdown,
}

/// `GET /v1/runs/{id}/receipt`.
pub(super) async fn show(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    asked: HeaderMap,
) -> Result<Response, ApiError> {
    let run = runs::find(&api, &id).await?;
    let store = api.engine.store.as_ref();
    let Some(receipt) = receipt::of(store, &run).await? else {
        let hint = "a receipt is of a version that was promoted, rolled back, rejected or held";
        return Err(ApiError::not_found(format!("run {} decided nothing", run.id), hint));
    };
    answer(&api, &receipt, &asked)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    target: Option<String>,
}

/// `GET /v1/models/{model}/receipts/{generation}`.
pub(super) async fn show_change(
    State(api): State<Arc<Api>>,
    Path((model, generation)): Path<(String, String)>,
    Asked(which): Asked<Which>,
    asked: HeaderMap,
) -> Result<Response, ApiError> {
    let model: ModelName = parsed(&model)?;
    let target = which.target.as_deref().map(parsed).transpose()?;
    let store = api.engine.store.as_ref();
    let release = models::find(&api, &model, target.as_ref()).await?;
    let receipt = match (release, generation.parse().map(Generation)) {
        (Some(release), Ok(generation)) => {
            receipt::of_change(store, &model, &release.target, generation).await?
        }
        (None, _) | (_, Err(_)) => None,
    };
    let Some(receipt) = receipt else {
        let hint = "`refit model history` lists the changes of a model";
        return Err(ApiError::not_found(format!("`{model}` has no generation {generation}"), hint));
    };
    answer(&api, &receipt, &asked)
}

fn answer<P: Page>(api: &Api, receipt: &P, asked: &HeaderMap) -> Result<Response, ApiError> {
    let form = wanted(asked);
    if form == Form::Json {
        return Ok(([(header::VARY, "accept")], Json(receipt)).into_response());
    }
    let pages = Pages::new(api.engine.settings.templates.as_deref());
    let page = pages.and_then(|pages| match form {
        Form::Html => pages.html(receipt),
        Form::Markdown | Form::Json => pages.markdown(receipt),
    });
    let page = page.map_err(|error| ApiError::Broken(error.to_string()))?;
    let kind = if form == Form::Html { "text/html; charset=utf-8" } else { "text/markdown; charset=utf-8" };
    let headers: [(HeaderName, &str); 3] = [
        (header::CONTENT_TYPE, kind),
        (header::VARY, "accept"),
        (header::CONTENT_SECURITY_POLICY, NOTHING_ELSE),
    ];
    Ok((headers, page).into_response())
}

/// The form that is wanted most: RFC 9110, 12.5.1. What names a form weighs more than `text/*` and `*/*`.
fn wanted(asked: &HeaderMap) -> Form {
    let values = asked.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<(&str, f64)> = values.flat_map(|value| value.split(',')).map(range).collect();
    let quality = |kind: &str| {
        let family = kind.split('/').next().unwrap_or(kind);
        let of = |wanted: &str| {
            ranges.iter().find(|(range, _)| range.eq_ignore_ascii_case(wanted)).map(|(_, quality)| *quality)
        };
        of(kind).or_else(|| of(&format!("{family}/*"))).or_else(|| of("*/*")).unwrap_or(0.0)
    };
    let mut best = (FORMS[0].1, quality(FORMS[0].0));
    for (kind, form) in &FORMS[1..] {
        let quality = quality(kind);
        if quality > best.1 {
            best = (*form, quality);
        }
    }
    best.0
}

/// A media range with its quality; one that cannot be read counts fully.
fn range(text: &str) -> (&str, f64) {
    let mut parts = text.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default();
    let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok());
    (kind, quality.unwrap_or(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_the_one_that_is_wanted_most() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for (accept, form) in [
            (Some(browser), Form::Html),
            (Some("text/markdown"), Form::Markdown),
            (Some("text/html;q=0.5, text/markdown"), Form::Markdown),
            (Some("application/json, text/html"), Form::Json),
            (Some("text/html, application/json;q=0"), Form::Html),
            (Some("text/*"), Form::Html),
            (Some("*/*"), Form::Json),
            (Some("image/png"), Form::Json),
            (Some("garbage;;q=x,"), Form::Json),
            (None, Form::Json),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, accept.parse().expect("a value"));
            }
            assert_eq!(wanted(&headers), form, "{accept:?}");
        }
    }
}
