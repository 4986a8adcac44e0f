//! A secret is used, and is nowhere to be read afterwards.

use std::path::Path;

use super::project::Project;
use crate::store::database::empty_postgres;

/// With what has to be encoded in a URL.
const TOKEN: &str = "s3cr3t+Tok/en&4711==";
const TOKEN_IN_URLS: &str = "s3cr3t%2BTok%2Fen%264711%3D%3D";
const PASSWORD: &str = "hunter22hunter";
const KEY_LINE: &str = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC";

const WORKFLOW: &str = r#"
name: leaks
model: m
steps:
  - id: prints
    run: |
      echo "the token is $TOKEN"
      echo "and here: $TOKEN" >&2
      printf '%.10s' "$TOKEN"; sleep 0.4; echo "${TOKEN#??????????}"
      echo '{"refit":"progress","pct":40,"message":"with '"$TOKEN"'"}'
      echo "$PEM" | while read -r line; do echo "$line"; sleep 0.3; done
    env: { TOKEN: "${{ secrets.APP_TOKEN }}", PEM: "${{ secrets.APP_KEY }}" }
  - id: measures
    run: 'echo "{\"mae\": 1, \"$TOKEN\": 2}" > $REFIT_METRICS; echo "MAE: 1 $TOKEN"'
    env: { TOKEN: "${{ secrets.APP_TOKEN }}" }
    metrics: { file: true }
    retry: { attempts: 1 }
on_failure:
  - { id: none, run: 'true' }
"#;

const FAILING: &[(&str, &str)] = &[
    (
        "exits",
        r#"run: 'echo "cannot log in with $TOKEN" >&2; exit 3', env: { TOKEN: "${{ secrets.APP_TOKEN }}" }"#,
    ),
    // The message is cut after so many bytes: in the middle of the secret.
    (
        "cut",
        r#"run: 'printf "%0390d" 0 >&2; echo "$TOKEN" >&2; exit 3', env: { TOKEN: "${{ secrets.APP_TOKEN }}" }"#,
    ),
    (
        "url",
        r#"uses: http, with: { url: "http://127.0.0.1:1/${{ secrets.APP_TOKEN }}?key=${{ secrets.APP_TOKEN }}" }"#,
    ),
    (
        "header",
        r#"uses: http, with: { url: "http://127.0.0.1:1/", headers: { authorization: "Bearer ${{ secrets.APP_TOKEN }}" } }"#,
    ),
    (
        "database",
        r#"uses: fetch, with: { from: { postgres: { url: "${{ secrets.APP_DATABASE_URL }}", query: select 1 } }, to: a.csv }"#,
    ),
    (
        "file",
        r#"uses: fetch, with: { from: { http: { url: "http://127.0.0.1:1/${{ secrets.APP_TOKEN }}" } }, to: a.csv }"#,
    ),
];

/// Whatever looks like a secret in `bytes`.
fn leaks(bytes: &[u8]) -> Vec<&'static str> {
    let text = String::from_utf8_lossy(bytes);
    // Half of one is too much already.
    [TOKEN, TOKEN_IN_URLS, PASSWORD, KEY_LINE, "s3cr3t+Tok"]
        .into_iter()
        .filter(|part| text.contains(part))
        .collect()
}

fn scan(dir: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        // What the test itself wrote.
        if path.ends_with("secrets") || path.ends_with("workflows") {
            continue;
        }
        if path.is_dir() {
            scan(&path, found);
        } else if path.is_file() {
            let leaks = leaks(&std::fs::read(&path).unwrap());
            // The trainer's own files are what it made them.
            if !leaks.is_empty() && !path.ends_with("metrics.json") {
                found.push(format!("{}: {leaks:?}", path.display()));
            }
        }
    }
}

/// Runs everything, and returns all that was printed.
fn shown(project: &Project, extra: &[&str]) -> Vec<(String, Vec<u8>)> {
    project.write("refit.toml", "[secrets]\nAPP_KEY = 'secrets/key'\n");
    project.write(
        "secrets/key",
        &format!("-----BEGIN PRIVATE KEY-----\n{KEY_LINE}\n-----END PRIVATE KEY-----\n"),
    );
    project.write("workflows/leaks.yaml", WORKFLOW);
    let mut workflows = vec!["leaks".to_owned()];
    for (name, step) in FAILING {
        let text =
            format!("name: {name}\nmodel: m\nsteps:\n  - {{ id: one, retry: {{ attempts: 1 }}, {step} }}\n");
        project.write(&format!("workflows/{name}.yaml"), &text);
        workflows.push((*name).to_owned());
    }
    let mut commands: Vec<Vec<String>> = vec![];
    let mut add = |args: &[&str]| commands.push(args.iter().map(|arg| (*arg).to_owned()).collect());
    add(&["validate"]);
    add(&["doctor"]);
    for workflow in &workflows {
        add(&["plan", workflow]);
        add(&["-vv", "trigger", workflow, "--follow"]);
        for args in
            [&["run", "show", "last"][..], &["run", "logs", "last"], &["run", "show", "last", "--json"]]
        {
            add(args);
        }
    }
    add(&["run", "ls", "--json"]);
    add(&["event", "ls", "--json"]);
    add(&["status"]);
    commands
        .iter()
        .map(|args| {
            let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
            args.extend(extra);
            let mut command = project.command(&args);
            command.env("APP_TOKEN", TOKEN);
            command.env("APP_DATABASE_URL", format!("postgres://app:{PASSWORD}@127.0.0.1:1/app"));
            let output = command.output().unwrap();
            (args.join(" "), [output.stdout, output.stderr].concat())
        })
        .collect()
}

fn check(project: &Project) {
    let mut found = vec![];
    let mut all = String::new();
    for (args, bytes) in shown(project, &["--no-color"]) {
        let leaks = leaks(&bytes);
        if !leaks.is_empty() {
            found.push(format!("refit {args}: {leaks:?}\n{}", String::from_utf8_lossy(&bytes)));
        }
        all.push_str(&String::from_utf8_lossy(&bytes));
    }
    scan(project.dir.path(), &mut found);
    assert!(found.is_empty(), "{}", found.join("\n"));
    // They were used, and masked rather than missing.
    assert!(all.contains("the token is ***") && all.contains("cannot log in with ***"), "{all}");
}

#[test]
fn a_secret_is_in_no_output_and_in_no_file() {
    check(&Project::sqlite());
}

/// Files of the database server are not ours to read: every table is.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_in_no_table() {
    let url = empty_postgres().await;
    let project = Project::on(url.clone()).await;
    check(&project);
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables
         WHERE schemaname IN ('refit', 'apalis', 'public')",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    assert!(tables.len() > 10, "{tables:?}");
    for table in tables {
        let query = format!("SELECT t::text FROM {table} t");
        let rows: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(&mut connection).await.unwrap();
        for row in rows {
            assert!(leaks(row.as_bytes()).is_empty(), "{table}: {row}");
        }
    }
}
