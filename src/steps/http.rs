//! `uses: http`: one request, recorded before it is made and not repeated once
//! it was answered well.

use std::time::Duration;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::context::{StepContext, StepError, StepResult, to_json};
use super::fetch::http::{of_reqwest, refused, shown};
use crate::adapter::AdapterError;
use crate::domain::workflow::step::Http;

/// What was answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HttpOutput {
    /// The status.
    pub status: u16,
    /// The body: JSON where it is, else text, cut at 64 KiB.
    pub body: Value,
    /// Whether the body was longer.
    pub cut: bool,
}

/// Bytes of the body that are kept.
const BODY: usize = 64 * 1024;
/// No answer for this long: the service is away. The step's `timeout` may be shorter.
const PATIENCE: Duration = Duration::from_secs(300);
const OPERATION: &str = "request";

/// Sends the request; the key it carries is the same on every attempt.
pub async fn run(spec: &Http, ctx: &StepContext<'_>) -> Result<StepResult, StepError> {
    let address = ctx.render(&spec.url)?;
    let shown = shown(&address);
    let method = Method::from_bytes(spec.method.as_bytes())
        .map_err(|_| StepError::permanent(format!("`{}` is not a method", spec.method)))?;
    let mut request =
        ctx.services.http.request(method, &address).header("Idempotency-Key", ctx.key(OPERATION));
    for (name, value) in &spec.headers {
        request = request.header(name, ctx.render(value)?);
    }
    if let Some(body) = &spec.body {
        request = request.body(ctx.render(body)?);
    }
    let request = request.build().map_err(|error| masked(of_reqwest(&shown, "be asked", error), ctx))?;

    let detail = json!({ "method": spec.method, "url": shown });
    let intent = ctx.ledger.intend(OPERATION, detail, None).await?;
    if let Some(answered) = intent.result {
        return Ok(StepResult::Done { output: answered });
    }
    let output = tokio::select! {
        answer = send(request, spec, ctx, &shown) => answer?,
        () = ctx.cancel.cancelled() => return Err(StepError::Interrupted),
    };
    let output = ctx.services.secrets.mask_json(to_json(output)?);
    ctx.ledger.settle(OPERATION, output.clone()).await?;
    Ok(StepResult::Done { output })
}

async fn send(
    request: reqwest::Request,
    spec: &Http,
    ctx: &StepContext<'_>,
    shown: &str,
) -> Result<HttpOutput, StepError> {
    let unavailable = |cause: String| {
        masked(AdapterError::Unavailable { service: shown.to_owned(), cause, retry_after: None }, ctx)
    };
    let answer = timeout(PATIENCE, ctx.services.http.execute(request))
        .await
        .map_err(|_| unavailable(format!("no answer within {PATIENCE:?}")))?;
    let mut response = answer.map_err(|error| masked(of_reqwest(shown, "answer", error), ctx))?;
    let status = response.status();
    let headers = response.headers().clone();
    let mut body = Vec::new();
    while body.len() <= BODY {
        let chunk = timeout(PATIENCE, response.chunk())
            .await
            .map_err(|_| unavailable("it stopped in the middle of its answer".to_owned()))?;
        match chunk.map_err(|error| masked(of_reqwest(shown, "answer", error), ctx))? {
            Some(chunk) => body.extend_from_slice(&chunk),
            None => break,
        }
    }
    let cut = body.len() > BODY;
    body.truncate(BODY);
    let text = String::from_utf8_lossy(&body);
    let expected =
        if spec.expect.is_empty() { status.is_success() } else { spec.expect.contains(&status.as_u16()) };
    if !expected {
        let beginning: String = text.chars().take(300).collect();
        ctx.log.note(&ctx.services.secrets.mask(&format!("{shown} answered {status}: {beginning}")));
        return Err(masked(refused(shown, status, &headers, ctx.clock.now()), ctx));
    }
    let json = if cut { None } else { serde_json::from_slice(&body).ok() };
    let body = json.unwrap_or_else(|| Value::String(text.into_owned()));
    Ok(HttpOutput { status: status.as_u16(), body, cut })
}

fn masked(error: AdapterError, ctx: &StepContext<'_>) -> StepError {
    let mut error = StepError::from(error);
    if let StepError::Failed { failure, .. } = &mut error {
        failure.message = ctx.services.secrets.mask(&failure.message);
    }
    error
}
