//! `evidence:`: where refit fetches the observations of a canary that the app
//! does not push.

use std::collections::BTreeMap;
use std::time::Duration;

use super::StepKind;
use super::decode::Draft;
use super::decode_step::query;
use super::diagnostic::Diagnostic;
use super::keys::{HTTP_ROOTS, ROW_FIELDS};
use super::node::Node;
use super::step::OnlineMetric;
use crate::domain::expr::{Expr, Template};

/// Rows that arrive this much later than their own time are still found, when the file does not say.
const OVERLAP: Duration = Duration::from_secs(5 * 60);
/// A reread of more is no overlap any more.
const LONGEST_OVERLAP: Duration = Duration::from_secs(24 * 3600);
/// A minute of a counter is whole this long after its end: two scrapes of 15 s, when the file does not say.
const DELAY: Duration = Duration::from_secs(30);
const LONGEST_DELAY: Duration = Duration::from_secs(600);

/// Where evidence is fetched.
#[derive(Debug, Clone)]
pub enum Pull {
    /// Rows of a query over the app's own table.
    Sql(SqlPull),
    /// Counters.
    Prometheus(PrometheusPull),
    /// Rows of a JSON answer.
    Http(HttpPull),
}

impl Pull {
    /// What the file calls it.
    pub fn word(&self) -> &'static str {
        match self {
            Pull::Sql(_) => "sql",
            Pull::Prometheus(_) => "prometheus",
            Pull::Http(_) => "http",
        }
    }

    /// What a position is a position in, without values of secrets.
    pub fn definition(&self) -> Vec<&str> {
        match self {
            Pull::Sql(sql) => vec!["sql", sql.url.source(), &sql.query],
            Pull::Prometheus(counters) => vec!["prometheus", counters.url.source(), &counters.requests],
            Pull::Http(http) => {
                let next = http.next.iter().flatten().map(String::as_str);
                ["http", http.url.source()].into_iter().chain(next).collect()
            }
        }
    }

    /// Whether its cursor is the only thing that says where it goes on; else a list that broke off begins anew.
    pub fn goes_by_cursor(&self) -> bool {
        match self {
            Pull::Http(http) => !http.url.expressions().any(|expr| expr.mentions("since")),
            Pull::Sql(_) | Pull::Prometheus(_) => false,
        }
    }

    /// How much is read again at every look.
    pub fn overlap(&self) -> Duration {
        match self {
            Pull::Sql(SqlPull { overlap, .. }) | Pull::Http(HttpPull { overlap, .. }) => *overlap,
            // A minute is read once, when it is whole.
            Pull::Prometheus(_) => Duration::ZERO,
        }
    }
}

/// `sql:`.
#[derive(Debug, Clone)]
pub struct SqlPull {
    /// `postgres://…`, or `sqlite:` and a path in the project.
    pub url: Template,
    /// The query, without its window of time.
    pub query: String,
    /// What counts as an error, over `row`; column `ok` when absent.
    pub error_if: Option<Expr>,
    /// How much is read again at every look, for rows that arrive late.
    pub overlap: Duration,
}

/// `prometheus:`.
#[derive(Debug, Clone)]
pub struct PrometheusPull {
    /// The server, without `/api/v1`.
    pub url: Template,
    /// Request headers.
    pub headers: BTreeMap<String, Template>,
    /// Selects the counter of requests.
    pub requests: String,
    /// How the errors among them are found.
    pub errors: CounterErrors,
    /// Selects the buckets of a latency histogram.
    pub latency: Option<String>,
    /// Milliseconds of one unit of its `le`.
    pub latency_unit_ms: f64,
    /// The label that holds the version.
    pub version: String,
    /// How long after its end a minute is read.
    pub delay: Duration,
}

/// Errors among counted requests.
#[derive(Debug, Clone)]
pub enum CounterErrors {
    /// Series of the requests whose labels, as `row`, fulfil this.
    Labelled(Expr),
    /// A counter of their own.
    Counter(String),
}

/// `http:`.
#[derive(Debug, Clone)]
pub struct HttpPull {
    /// The address, over `since` and `cursor`.
    pub url: Template,
    /// Request headers.
    pub headers: BTreeMap<String, Template>,
    /// The path to the list of rows; empty when the answer is the list.
    pub rows: Vec<String>,
    /// The path to the cursor of the next page.
    pub next: Option<Vec<String>>,
    /// Paths within a row, by the name of what they lead to.
    pub fields: BTreeMap<String, Vec<String>>,
    /// What counts as an error, over `row`; field `ok` when absent.
    pub error_if: Option<Expr>,
    /// How much is read again at every look, for rows that arrive late.
    pub overlap: Duration,
}

/// The pull source that `evidence:` names, if any; shapes were checked before.
pub(super) fn pull(
    evidence: &Node,
    files: &BTreeMap<String, String>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<Pull> {
    let kinds = ["sql", "prometheus", "http"];
    let mut given = evidence.entries().iter().filter(|entry| kinds.contains(&entry.key.as_str()));
    let first = given.next()?;
    for second in given {
        let message = format!("evidence comes from `{}` and `{}`", first.key, second.key);
        let hint = "a request that both know would count twice; keep one of them";
        diagnostics.push(Diagnostic::error(second.key_at, message).hint(hint));
    }
    let node = &first.value;
    match first.key.as_str() {
        "sql" => Some(Pull::Sql(SqlPull {
            url: node.template("url")?,
            query: query(node, files, diagnostics)?,
            error_if: node.condition("error_if"),
            overlap: overlap(node, diagnostics),
        })),
        "prometheus" => prometheus(node, diagnostics).map(Pull::Prometheus),
        _ => http(node, diagnostics).map(Pull::Http),
    }
}

/// Rules that the source brings nothing for.
pub(super) fn unfed(pull: &Pull, steps: &[Draft<'_>], diagnostics: &mut Vec<Diagnostic>) {
    let has_latency = match pull {
        Pull::Prometheus(counters) => counters.latency.is_some(),
        Pull::Sql(_) | Pull::Http(_) => true,
    };
    // A fetched row has what one version said; a rule on errors needs both on one request.
    let scores_both = steps.iter().any(|draft| draft.kind == Some("shadow"));
    let compares = steps.iter().filter_map(|draft| match draft.step.as_ref().map(|step| &step.kind) {
        Some(StepKind::Compare(compare)) => Some(compare),
        _ => None,
    });
    for rule in compares.flat_map(|compare| &compare.rules) {
        let (lacks, hint) = match rule.metric {
            OnlineMetric::ErrorRate => continue,
            OnlineMetric::LatencySlowShare if has_latency => continue,
            OnlineMetric::LatencySlowShare => ("no latencies", "add `latency:` to `prometheus`"),
            OnlineMetric::AbsError if scores_both => continue,
            OnlineMetric::AbsError => (
                "no predictions of both versions",
                "add a `shadow` step, or let the app push its requests with what the other version says (`shadow`)",
            ),
        };
        let message = format!("the evidence has {lacks} for this rule");
        diagnostics.push(Diagnostic::warning(rule.at, message).hint(hint));
    }
}

fn overlap(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Duration {
    bounded(node, "overlap", OVERLAP, LONGEST_OVERLAP, diagnostics)
}

fn bounded(
    node: &Node,
    key: &str,
    absent: Duration,
    longest: Duration,
    diagnostics: &mut Vec<Diagnostic>,
) -> Duration {
    let given = node.duration(key).unwrap_or(absent);
    if let Some(place) = node.get(key).filter(|_| given > longest) {
        let message = format!("`{key}` is at most {}", humantime::format_duration(longest));
        diagnostics.push(Diagnostic::error(place.at, message));
    }
    given
}

fn prometheus(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Option<PrometheusPull> {
    for key in ["requests", "errors", "latency"] {
        let Some(selector) = node.get(key) else { continue };
        let text = selector.text().unwrap_or_default();
        // A rate or a sum over counters hides when one of them began anew.
        if text.split(['{', '[']).next().is_some_and(|head| head.contains('(')) || text.contains('[') {
            let message = format!("`{key}` is not a plain selector of counters");
            let hint = "write the counter, such as `predictions_total{job=\"app\"}`: refit takes the increase of \
                        each series and adds them up by version";
            diagnostics.push(Diagnostic::error(selector.at, message).hint(hint));
        }
    }
    let unit = match node.get("latency_unit").and_then(Node::text) {
        Some("ms") => 1.0,
        Some(_) | None => 1000.0,
    };
    let errors = match (node.condition("error_if"), node.text_of("errors")) {
        (Some(condition), _) => CounterErrors::Labelled(condition),
        (None, counter) => CounterErrors::Counter(counter?),
    };
    Some(PrometheusPull {
        url: node.template("url")?,
        headers: node.templates("headers"),
        requests: node.text_of("requests")?,
        errors,
        latency: node.text_of("latency"),
        latency_unit_ms: unit,
        version: node.text_of("version").unwrap_or_else(|| "version".to_owned()),
        delay: bounded(node, "delay", DELAY, LONGEST_DELAY, diagnostics),
    })
}

fn http(node: &Node, diagnostics: &mut Vec<Diagnostic>) -> Option<HttpPull> {
    let url = node.template("url")?;
    let wants = |root: &str| url.expressions().any(|expr| expr.mentions(root));
    if let Some(place) = node.get("url").filter(|_| !HTTP_ROOTS.iter().any(|root| wants(root))) {
        let message = "`url` asks for the same rows at every look";
        let hint = "give it the beginning of what is new: `?since=${{ since }}`, or `?after=${{ cursor }}` with `next`";
        diagnostics.push(Diagnostic::error(place.at, message).hint(hint));
    }
    let next = node.text_of("next").map(|path| segments(&path));
    if let Some(place) = node.get("url").filter(|_| wants("cursor") && next.is_none()) {
        let diagnostic =
            Diagnostic::error(place.at, "`url` uses `cursor`, and nothing says where the next one is");
        diagnostics.push(diagnostic.hint("add `next: <path>`, where the answer has it"));
    }
    if let Some(place) = node.get("next").filter(|_| !wants("cursor")) {
        let diagnostic = Diagnostic::error(place.at, "`next` is read, and `url` does not use it");
        diagnostics.push(diagnostic.hint("put it into the address: `&cursor=${{ cursor }}`"));
    }
    let mut fields = BTreeMap::new();
    for (name, path) in node.pairs("fields") {
        if !ROW_FIELDS.contains(&name) && node.get("error_if").is_none() {
            let diagnostic = Diagnostic::warning(path.at, format!("nothing reads the field `{name}`"));
            diagnostics
                .push(diagnostic.hint(format!("refit reads {}, and `error_if` any", ROW_FIELDS.join(", "))));
        }
        fields.insert(name.to_owned(), segments(path.text()?));
    }
    Some(HttpPull {
        url,
        headers: node.templates("headers"),
        rows: node.text_of("rows").map(|path| segments(&path)).unwrap_or_default(),
        next,
        fields,
        error_if: node.condition("error_if"),
        overlap: overlap(node, diagnostics),
    })
}

fn segments(path: &str) -> Vec<String> {
    path.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}
