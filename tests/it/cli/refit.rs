//! Runs the program as people do, and shows what they see.

use std::path::Path;
use std::process::{Command, Stdio};

/// The program in `dir`, with a quiet environment.
pub fn refit(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_refit"));
    command.args(args).current_dir(dir).stdin(Stdio::null());
    for name in ["REFIT_DATABASE_URL", "RUST_LOG", "NO_COLOR"] {
        command.env_remove(name);
    }
    let output = command.env("USER", "sam").output().expect("the program starts");
    let mut text = format!("exit code: {}\n", output.status.code().expect("it ended by itself"));
    for (name, bytes) in [("stdout", output.stdout), ("stderr", output.stderr)] {
        if !bytes.is_empty() {
            text.push_str(&format!("--- {name}\n{}", String::from_utf8_lossy(&bytes)));
        }
    }
    text
}

/// Ids, times, durations and paths replaced by words.
pub fn steady() -> Vec<(&'static str, &'static str)> {
    vec![
        (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "[id]"),
        (r"\b(run|resume|approve|logs|show|cancel) [0-9a-f]{8}\b", "$1 [run]"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "[time]"),
        (r"\d{4}-\d\d-\d\d(\.\d+)?\b", "[version]"),
        (r" +\d+(\.\d+)?m?s\b", " [took]"),
        (r"/[^ ]*/tmp[^ /]*|/tmp/\.tmp[^ /]*", "[dir]"),
    ]
}
