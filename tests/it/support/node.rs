//! Node programs that tests talk to: the vendors' own clients, which judge the emulators.
//! Their packages are in `target/test-node`, which `tests/support/node-env` makes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

/// Where `bin/node` and `node_modules` are; made when they are not there.
pub fn home() -> &'static Path {
    static HOME: OnceLock<PathBuf> = OnceLock::new();
    HOME.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/node-env");
        let made = Command::new(script).output().expect("node-env runs");
        assert!(made.status.success(), "node-env: {}", String::from_utf8_lossy(&made.stderr));
        PathBuf::from(String::from_utf8(made.stdout).expect("text").trim())
    })
}

/// Runs an ES module given as text, which may import the installed packages, and
/// returns what it printed as JSON. `env` is added to a nearly empty environment.
pub async fn run(module: &str, env: &[(&str, &str)]) -> Value {
    // Imports are resolved from where a file is.
    let file = tempfile::Builder::new().suffix(".mjs").tempfile_in(home()).expect("a file");
    std::fs::write(&file, module).expect("written");
    let mut node = tokio::process::Command::new(home().join("bin/node"));
    node.arg(file.path()).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    node.envs(env.iter().copied()).kill_on_drop(true);
    let done = node.output().await.expect("node runs");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{out}\n{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}\n{err}"))
}

#[tokio::test]
async fn the_vendors_clients_are_installed() {
    let module = "import { WebClient } from '@slack/web-api';
        import { put } from '@vercel/blob';
        import { Vercel } from '@vercel/sdk';
        import { createClient } from '@vercel/global-config';
        import { Resend } from 'resend';
        console.log(JSON.stringify([WebClient, put, Vercel, createClient, Resend].map(x => typeof x)));";
    assert_eq!(run(module, &[]).await, serde_json::json!(vec!["function"; 5]));
}
