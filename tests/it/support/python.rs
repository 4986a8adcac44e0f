//! Python programs that tests talk to: a real S3 server, a real SMTP server.
//! They run in `target/test-venv`, which `tests/support/python-env` makes.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// The virtual environment; made when it is not there.
pub fn venv() -> &'static Path {
    static VENV: OnceLock<PathBuf> = OnceLock::new();
    VENV.get_or_init(|| {
        let made = Command::new(support().join("python-env")).output().expect("python-env runs");
        assert!(made.status.success(), "python-env: {}", String::from_utf8_lossy(&made.stderr));
        PathBuf::from(String::from_utf8(made.stdout).expect("text").trim())
    })
}

fn support() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support")
}

/// A program that lives as long as this value.
pub struct Program {
    child: Child,
    pub port: u16,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A real SMTP server that writes mails as lines of JSON to `mails`.
pub fn smtp_sink(mails: &Path, options: &[&str]) -> Program {
    let mut child = Command::new(venv().join("bin/python"))
        .arg(support().join("smtp-sink.py"))
        .arg(mails)
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python runs");
    let mut port = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut port).expect("a port");
    Program { port: port.trim().parse().expect("a port"), child }
}

/// The mails that came in.
pub fn mails(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// moto takes any signature's form; this one is never checked.
pub const S3_CREDENTIAL: &str = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, \
                                 SignedHeaders=host, Signature=0";

/// A real S3 server (moto) with one empty bucket, `models`.
pub async fn s3() -> Program {
    // moto prints its address to standard error once it listens; with port 0 that is the only place.
    let mut child = Command::new(venv().join("bin/moto_server"))
        .args(["-H", "127.0.0.1", "-p", "0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("moto runs");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let port = loop {
        let line = lines.next().expect("moto listens").expect("text");
        if let Some((_, rest)) = line.split_once("http://127.0.0.1:") {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            break digits.parse().expect("a port");
        }
    };
    // Its log must go on being read, or it blocks.
    std::thread::spawn(move || for _ in lines {});
    let program = Program { child, port };
    let client = refit::http_client::build().expect("a client");
    let bucket = format!("http://127.0.0.1:{port}/models");
    let made = client
        .put(bucket)
        .header("Authorization", S3_CREDENTIAL)
        .timeout(Duration::from_secs(20))
        .send()
        .await
        .expect("moto answers");
    assert!(made.status().is_success(), "{}", made.status());
    program
}
