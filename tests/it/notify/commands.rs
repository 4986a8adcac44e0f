//! `refit notify preview` and `refit notify test`, as people type them; mail over TLS end to end.

use std::path::Path;
use std::process::{Command, Stdio};

use insta::assert_snapshot;
use serde_json::Value;

use crate::support::python;
use crate::support::slack::{Slack, TOKEN};

/// The program in `dir`, with `env` and nothing that this machine has set.
fn refit(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
    command.args(args).current_dir(dir).stdin(Stdio::null()).envs(env.iter().copied());
    for name in ["REFIT_DATABASE_URL", "RUST_LOG", "NO_COLOR"] {
        command.env_remove(name);
    }
    let output = command.output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("it ended"), text(&output.stdout), text(&output.stderr))
}

fn project(settings: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("refit.toml"), settings).expect("written");
    dir
}

#[test]
fn a_preview_needs_no_project_and_shows_every_kind() {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, out, err) = refit(dir.path(), &["notify", "preview", "rolled-back"], &[]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("Subject: race-times 2026-11-22 was rolled back\n"), "{out}");
    assert!(
        out.contains("2026-11-15 serves all traffic since 2026-11-22 10:42 UTC. Nothing has to be done.")
    );
    let (code, out, _) = refit(dir.path(), &["notify", "preview", "--json"], &[]);
    let all: Vec<Value> = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, all.len()), (0, 17));
    assert!(
        all.iter()
            .all(|message| message["html"].as_str().is_some_and(|html| html.starts_with("<!doctype html>")))
    );
    let (code, out, _) = refit(dir.path(), &["notify", "preview", "progress", "--channel", "slack"], &[]);
    assert_eq!(code, 0);
    assert!(out.contains("🐤 race-times 2026-11-22 is on canary at 10 %"), "{out}");
    let (code, out, _) = refit(dir.path(), &["notify", "preview", "held", "--out", "mails"], &[]);
    assert_eq!((code, out.as_str()), (0, "mails/held.html\nmails/held.txt\n"));
    assert!(dir.path().join("mails/held.html").exists());
    let (code, _, err) = refit(dir.path(), &["notify", "preview", "promotd"], &[]);
    assert_eq!(code, 2);
    assert_snapshot!(err, @r"
    error: there is no message of kind `promotd`
    hint: did you mean `promoted`?
    ");
}

#[test]
fn a_preview_uses_the_projects_templates_and_runs() {
    let dir = project("[templates]\ndir = \"words\"\n");
    std::fs::create_dir_all(dir.path().join("words/message")).expect("made");
    std::fs::write(dir.path().join("words/message/promoted.hbs"), "Hurra: {{version}}\nGut.\n")
        .expect("written");
    let (_, out, _) = refit(dir.path(), &["notify", "preview", "promoted"], &[]);
    assert!(out.contains("Subject: Hurra: 2026-11-22\n"), "{out}");
    let (code, _, err) = refit(dir.path(), &["notify", "preview", "--run", "last"], &[]);
    assert_eq!(code, 2);
    assert_snapshot!(err, @r"
    error: there are no runs yet
    hint: start one with `refit trigger WORKFLOW`
    ");
    let fresh = tempfile::tempdir().expect("a directory");
    assert_eq!(refit(fresh.path(), &["init"], &[]).0, 0);
    // The workflow of the template is in `advise`; a canary comes in `act` alone.
    let said = |kind: &str, words: &[&str]| {
        refit(fresh.path(), &[&["notify", "preview", kind], words].concat(), &[]).1
    };
    assert!(!said("started", &[]).contains("Mode "), "act, when no workflow is named");
    let began = said("started", &["--workflow", "retrain"]);
    assert!(began.contains("Mode advise: every step runs, and none changes what serves"), "{began}");
    assert!(!said("canary_started", &["--workflow", "retrain"]).contains("Mode "));
    let (code, _, err) = refit(fresh.path(), &["notify", "preview", "--workflow", "retrian"], &[]);
    assert_eq!((code, err.contains("did you mean `retrain`?")), (2, true), "{err}");
    assert_eq!(refit(fresh.path(), &["trigger", "retrain", "--follow"], &[]).0, 0);
    let (code, out, err) = refit(fresh.path(), &["notify", "preview", "--run", "last"], &[]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("what refit would have done") && out.contains("In `mode: act`, "), "{out}");
    assert!(out.contains("mae") && out.contains("Mode advise: refit touched no target."), "{out}");
    let (code, out, err) = refit(fresh.path(), &["notify", "preview", "progress", "--run", "last"], &[]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("✅ train"), "{out}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_message_says_what_happened() {
    let slack = Slack::start().await;
    let dir = project(&format!(
        "[notifiers.team]\nkind = \"slack-api\"\ntoken = \"TOKEN\"\nchannel = \"#models\"\nbase_url = \"{}/api\"\n",
        slack.address
    ));
    let run = |args: &'static [&'static str], token: &'static str| {
        let dir = dir.path().to_owned();
        tokio::task::spawn_blocking(move || refit(&dir, args, &[("TOKEN", token)]))
    };
    let (code, out, err) = run(&["notify", "test", "team"], TOKEN).await.expect("ran");
    assert_eq!((code, out.as_str()), (0, "sent: `team` took the message; see that it is there\n"), "{err}");
    assert_eq!(slack.messages()[0].thread_ts, None);
    assert!(slack.messages()[0].text.contains("refit: a test of [notifiers.team]"));
    let (code, out, _) = run(&["notify", "test", "team", "--json"], TOKEN).await.expect("ran");
    let said: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &said["sent"], &said["notifier"]), (0, &Value::Bool(true), &Value::from("team")));
    let (code, out, err) = run(&["notify", "test", "team"], "xoxb-expired").await.expect("ran");
    assert_eq!((code, out.as_str()), (2, ""));
    assert_snapshot!(err, @r"
    error: `team` did not take the message: Slack refused to call chat.postMessage: invalid_auth (set a bot token that is valid, `xoxb-…`, in the secret that `token` names)
    hint: check its key or token, and what that may do
    ");
    let (code, _, err) = run(&["notify", "test", "tean"], TOKEN).await.expect("ran");
    assert_eq!(code, 2);
    assert_snapshot!(err, @r"
    error: refit.toml has no notifier `tean`
    hint: did you mean `team`?
    ");
    let (_, out, _) = run(&["doctor"], TOKEN).await.expect("ran");
    assert!(out.contains("bot `refit` of workspace Example writes to #models"), "{out}");
    slack.violations.assert_none();
}

/// A certificate of an authority that nobody knows.
fn certificate(dir: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/make-cert.py");
    let made =
        Command::new(python::venv().join("bin/python")).arg(script).arg(dir).output().expect("python runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn mail_goes_over_tls_with_a_password_and_to_nobody_it_cannot_trust() {
    let dir = project(
        "[notifiers.mail]\nkind = \"smtp\"\nurl = \"SMTP_URL\"\nfrom = \"refit <refit@example.com>\"\n",
    );
    let path = |name: &str| dir.path().join(name).display().to_string();
    certificate(dir.path());
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let inbox = dir.path().join("mails");
    let login = ["--cert", &cert, "--key", &key, "--user", "u", "--password", "hunter22"];
    let starttls = python::smtp_sink(&inbox, &login);
    let implicit = python::smtp_sink(&inbox, &[login.as_slice(), &["--implicit"]].concat());
    let send = |url: &str, ca: &str| {
        let args = ["notify", "test", "mail", "--to", "team@example.com"];
        refit(dir.path(), &args, &[("SMTP_URL", url), ("SSL_CERT_FILE", ca)])
    };
    let urls = [
        format!("smtp://u:hunter22@localhost:{}?tls=required", starttls.port),
        format!("smtps://u:hunter22@localhost:{}", implicit.port),
    ];
    for (sent, url) in urls.iter().enumerate() {
        let (code, out, err) = send(url, &path("ca.pem"));
        assert_eq!(code, 0, "{url}: {err}");
        assert_eq!(out, "sent to team@example.com: `mail` took the message; see that it is there\n");
        let mails = python::mails(&inbox);
        assert_eq!(mails.len(), sent + 1);
        assert_eq!(mails[sent]["tls"], true);
        // An authority that is not trusted: nothing is said to it, and nothing is sent.
        std::fs::write(dir.path().join("other"), "").expect("made");
        let other = dir.path().join("other-ca");
        std::fs::create_dir_all(&other).expect("made");
        certificate(&other);
        let (code, out, err) = send(url, &other.join("ca.pem").display().to_string());
        assert_eq!((code, out.as_str()), (8, ""), "{err}");
        assert!(err.contains("certificate") && !err.contains("hunter22"), "{err}");
        let (code, _, err) = send(&url.replace("hunter22", "wrong-password"), &path("ca.pem"));
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("535") && !err.contains("wrong-password"), "{err}");
        assert_eq!(python::mails(&inbox).len(), sent + 1, "no other mail");
    }
}
