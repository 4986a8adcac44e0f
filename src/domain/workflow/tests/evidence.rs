//! `evidence:`: what is read of it, and what people get wrong.

use super::*;
use crate::domain::workflow::evidence::{CounterErrors, Pull};

/// A workflow with this `evidence:`, from its third line on.
fn with(evidence: &str) -> String {
    format!("name: w\nmodel: m\nevidence: {{ {evidence} }}\nsteps: [{{run: x}}]\n")
}

fn read(evidence: &str) -> Pull {
    let (workflow, warnings) = parse("w.yaml", &with(evidence), &BTreeMap::new()).expect("valid");
    assert_eq!(warnings, []);
    workflow.evidence.expect("a source")
}

#[test]
fn every_kind_of_source_is_read() {
    let Pull::Sql(sql) = read("sql: { url: 'sqlite:app.db', query: SELECT 1 }") else { panic!("not sql") };
    assert_eq!((sql.query.as_str(), sql.error_if.is_none(), sql.overlap.as_secs()), ("SELECT 1", true, 300));
    let text = "prometheus: { url: 'http://x', headers: { a: 'b ${{ secrets.T }}' }, requests: 'n{a=\"b\"}', \
                error_if: row.status >= '500', latency: n_bucket, latency_unit: ms, version: v, delay: 1m }";
    let Pull::Prometheus(counters) = read(text) else { panic!("not prometheus") };
    assert_eq!((counters.requests.as_str(), counters.version.as_str()), ("n{a=\"b\"}", "v"));
    assert_eq!((counters.latency_unit_ms, counters.delay.as_secs()), (1.0, 60));
    assert!(matches!(counters.errors, CounterErrors::Labelled(_)));
    let text = "prometheus: { url: 'http://x', requests: n_total, errors: 'e_total{a=~\"b(c|d)\"}' }";
    let Pull::Prometheus(counters) = read(text) else { panic!("not prometheus") };
    assert_eq!((counters.latency_unit_ms, counters.version.as_str()), (1000.0, "version"));
    let text = "http: { url: 'http://x?a=${{ since }}&b=${{ cursor }}', rows: a.b, next: c.d, \
                fields: { request_id: e.f, at: g }, overlap: 1h }";
    let Pull::Http(http) = read(text) else { panic!("not http") };
    assert_eq!(
        (http.rows.join("/"), http.next.map(|next| next.join("/"))),
        ("a/b".to_owned(), Some("c/d".to_owned()))
    );
    assert_eq!((http.fields["request_id"].join("/").as_str(), http.overlap.as_secs()), ("e/f", 3600));
}

#[test]
fn a_query_of_evidence_is_read_from_its_file() {
    let source = with("sql: { url: 'sqlite:app.db', query_file: sql/served.sql }");
    assert_eq!(referenced_files(&source), ["sql/served.sql"]);
    let files = BTreeMap::from([("sql/served.sql".to_owned(), "SELECT 2".to_owned())]);
    let (workflow, _) = parse("w.yaml", &source, &files).expect("valid");
    let Some(Pull::Sql(sql)) = workflow.evidence else { panic!("not sql") };
    assert_eq!(sql.query, "SELECT 2");
}

#[test]
fn secrets_of_evidence_are_secrets_of_the_workflow() {
    let source = with("sql: { url: '${{ secrets.APP_DB }}', query: SELECT 1 }");
    let (workflow, _) = parse("w.yaml", &source, &BTreeMap::new()).expect("valid");
    assert_eq!(workflow.secrets.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["APP_DB"]);
}

#[test]
fn typical_mistakes() {
    let sources = [
        "sql: { query: SELECT 1 }",
        "sql: { url: x }",
        "sql: { url: x, query_file: nowhere.sql }",
        "sql: { url: x, query: 'SELECT ${{ inputs.a }}' }",
        "sql: { url: '${{ inputs.a }}', query: SELECT 1 }",
        "sql: { url: x, query: SELECT 1, error_if: status >= 500 }",
        "sql: { url: x, query: SELECT 1, overlap: 7d }",
        "sql: { url: x, query: SELECT 1 }, http: { url: 'http://x?${{ since }}' }",
        "prometheus: { url: 'http://x', requests: n_total }",
        "prometheus: { url: 'http://x', requests: 'sum by (version) (rate(n_total[1m]))', errors: e_total }",
        "http: { url: 'http://x' }",
        "http: { url: 'http://x?${{ cursor }}' }",
        "http: { url: 'http://x?${{ since }}', next: a }",
        "http: { url: 'http://x?${{ since }}', fields: { status: a } }",
        "promtheus: {}",
    ];
    let rules = "steps:\n  - { uses: compare, with: { rules: [{ metric: abs_error }, { metric: latency_slow_share }] } }\n";
    let unfed =
        with("prometheus: { url: 'http://x', requests: n, errors: e }").replace("steps: [{run: x}]\n", rules);
    for lacks in ["no predictions of both versions", "no latencies"] {
        assert!(
            brief(&unfed).contains(&format!("warning: the evidence has {lacks} for this rule")),
            "{lacks}"
        );
    }
    // Rows of a table say what one version predicted.
    let lacks = "warning: the evidence has no predictions of both versions for this rule";
    for source in ["sql: { url: x, query: SELECT 1 }", "http: { url: 'http://x?${{ since }}' }"] {
        let fetched = brief(&with(source).replace("steps: [{run: x}]\n", rules));
        assert!(fetched.contains(lacks) && !fetched.contains("no latencies"), "{fetched}");
        let shadow = "steps:\n  - { uses: shadow, with: { run: p, from: { file: r.csv }, for: 1h } }\n";
        let scored = brief(&with(source).replace("steps: [{run: x}]\n", &rules.replace("steps:\n", shadow)));
        assert!(!scored.contains(lacks), "{scored}");
    }
    let said: Vec<String> =
        sources.iter().map(|source| format!("[{source}]\n{}", brief(&with(source)))).collect();
    insta::assert_snapshot!(said.join("\n"), @r#"
    [sql: { query: SELECT 1 }]
    3:18 error: `sql` has no `url` (add `url:` (`postgres://…`, or `sqlite:` and a path in the project))
    [sql: { url: x }]
    3:18 error: `sql` needs exactly one of `query`, `query_file`
    [sql: { url: x, query_file: nowhere.sql }]
    3:40 error: `nowhere.sql` cannot be read (paths are relative to the project, not to this file)
    [sql: { url: x, query: 'SELECT ${{ inputs.a }}' }]
    3:35 error: no expression is allowed inside a query (select the rows here and filter in the trainer)
    [sql: { url: '${{ inputs.a }}', query: SELECT 1 }]
    3:25 error: `url` cannot use `inputs` (here there are: secrets)
    [sql: { url: x, query: SELECT 1, error_if: status >= 500 }]
    3:55 error: `error_if`: there is no `status` (there are: row)
    [sql: { url: x, query: SELECT 1, overlap: 7d }]
    3:54 error: `overlap` is at most 1day
    [sql: { url: x, query: SELECT 1 }, http: { url: 'http://x?${{ since }}' }]
    3:47 error: evidence comes from `sql` and `http` (a request that both know would count twice; keep one of them)
    [prometheus: { url: 'http://x', requests: n_total }]
    3:25 error: `prometheus` needs exactly one of `errors`, `error_if`
    [prometheus: { url: 'http://x', requests: 'sum by (version) (rate(n_total[1m]))', errors: e_total }]
    3:54 error: `requests` is not a plain selector of counters (write the counter, such as `predictions_total{job="app"}`: refit takes the increase of each series and adds them up by version)
    [http: { url: 'http://x' }]
    3:26 error: `url` asks for the same rows at every look (give it the beginning of what is new: `?since=${{ since }}`, or `?after=${{ cursor }}` with `next`)
    [http: { url: 'http://x?${{ cursor }}' }]
    3:26 error: `url` uses `cursor`, and nothing says where the next one is (add `next: <path>`, where the answer has it)
    [http: { url: 'http://x?${{ since }}', next: a }]
    3:57 error: `next` is read, and `url` does not use it (put it into the address: `&cursor=${{ cursor }}`)
    [http: { url: 'http://x?${{ since }}', fields: { status: a } }]
    3:69 warning: nothing reads the field `status` (refit reads at, request_id, unit, version, ok, latency_ms, prediction, cold, and `error_if` any)
    [promtheus: {}]
    3:13 error: unknown key `promtheus` in `evidence` (did you mean `prometheus`?)
    "#);
}
