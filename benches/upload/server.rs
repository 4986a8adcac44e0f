//! A local S3 server with one bucket, `models`.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{Failure, process};

/// A server; ended when dropped.
pub struct S3 {
    pub program: &'static str,
    port: u16,
    child: Child,
}

impl S3 {
    pub async fn start(place: &Path) -> Result<Self, Failure> {
        if process::is_there("s3s-fs") { Self::s3s(place).await } else { Self::moto().await }
    }

    /// Keeps a bucket in a directory.
    async fn s3s(place: &Path) -> Result<Self, Failure> {
        let root = place.join("s3s");
        std::fs::create_dir_all(root.join("models"))?;
        // Free now; taken by nobody else in this moment.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let child = Command::new("s3s-fs")
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--access-key", "test", "--secret-key", "test"])
            .arg(root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let server = Self { program: "s3s-fs", port, child };
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Ok(server);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err("s3s-fs does not listen".into())
    }

    async fn moto() -> Result<Self, Failure> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let made = Command::new(root.join("tests/support/python-env")).output()?;
        let venv = String::from_utf8(made.stdout)?;
        let mut child = Command::new(Path::new(venv.trim()).join("bin/moto_server"))
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().ok_or("piped")?).lines();
        let port = loop {
            let line = lines.next().ok_or("moto does not listen")??;
            if let Some((_, rest)) = line.split_once("http://127.0.0.1:") {
                break rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse()?;
            }
        };
        // Its log must go on being read, or it blocks.
        std::thread::spawn(move || for _ in lines {});
        let server = Self { program: "moto", port, child };
        let authorization = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        let bucket = format!("http://127.0.0.1:{port}/models");
        let request = refit::http_client::build()?.put(bucket).header("Authorization", authorization);
        request.send().await?.error_for_status()?;
        Ok(server)
    }

    pub fn settings(&self) -> Value {
        settings(self.port)
    }

    /// The remote `bench:` for rclone.
    pub fn rclone<'c>(&self, command: &'c mut tokio::process::Command) -> &'c mut tokio::process::Command {
        command
            .env("RCLONE_CONFIG_BENCH_TYPE", "s3")
            .env("RCLONE_CONFIG_BENCH_PROVIDER", "Other")
            .env("RCLONE_CONFIG_BENCH_ENDPOINT", format!("http://127.0.0.1:{}", self.port))
            .env("RCLONE_CONFIG_BENCH_ACCESS_KEY_ID", "test")
            .env("RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY", "test")
            .env("RCLONE_CONFIG_BENCH_REGION", "us-east-1")
            .arg("--s3-no-check-bucket")
    }
}

/// Of `[stores.*]`, for the server at `port`.
pub fn settings(port: u16) -> Value {
    json!({
        "kind": "s3", "bucket": "models", "prefix": "refit", "endpoint": format!("http://127.0.0.1:{port}"),
        "access_key_id": "S3_ID", "secret_access_key": "S3_KEY",
    })
}

impl Drop for S3 {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
