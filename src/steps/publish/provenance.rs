//! Where a version came from: what can be known is told, what cannot is null.
//! The project is only read: by git with its hooks and monitors off, and by
//! asking the trainer's own interpreter for its version.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::domain::id::StepId;
use crate::domain::workflow::StepKind;
use crate::steps::context::StepContext;
use crate::steps::gate::GateOutput;

/// A program that does not answer by then is not waited for.
const LONGEST: Duration = Duration::from_secs(10);
/// No lock file is longer.
const LONGEST_LOCK: u64 = 64 * 1024 * 1024;

/// Files that say exactly which packages a trainer has.
const LOCK_FILES: &[&str] = &[
    "uv.lock",
    "poetry.lock",
    "Pipfile.lock",
    "pdm.lock",
    "pixi.lock",
    "conda-lock.yml",
    "requirements.txt",
    "package-lock.json",
    "pnpm-lock.yaml",
    "yarn.lock",
    "bun.lock",
    "renv.lock",
    "Manifest.toml",
    "Gemfile.lock",
    "Cargo.lock",
];

/// Programs that pick an interpreter themselves: which one cannot be known without running them.
const PICKERS: &[&str] =
    &["uv", "uvx", "poetry", "pipenv", "pdm", "hatch", "pixi", "conda", "mamba", "docker", "podman", "ssh"];

/// What publish reads of the output of a step that fetched data.
#[derive(Debug, Clone, Deserialize)]
struct DataOutput {
    rows: u64,
    sha256: String,
}

/// Where the files of step `from` came from.
pub(super) async fn provenance(ctx: &StepContext<'_>, from: &StepId) -> Value {
    let definition = &ctx.run.definition;
    let data = ctx.latest_output::<DataOutput>();
    let trainer = ctx
        .workflow
        .step(from)
        .and_then(|step| if let StepKind::Run(run) = &step.kind { Some(run) } else { None });
    let project = &ctx.dirs.project;
    let dir = match trainer.and_then(|run| run.working_dir.as_ref()) {
        Some(below) => project.join(below),
        None => project.clone(),
    };
    let secrets = &ctx.services.secrets;
    json!({
        "workflow": {
            "name": ctx.run.workflow,
            "path": definition.path,
            "sha256": hex::encode(Sha256::digest(&definition.source)),
        },
        "parameters": secrets.mask_json(ctx.run.cause.inputs.clone()),
        "data": data.map(|(step, data)| json!({"step": step, "rows": data.rows, "sha256": data.sha256})),
        "git": git(project).await,
        "step": from,
        "command": trainer.map(|run| secrets.mask(&run.command)),
        "interpreter": match trainer {
            Some(run) => interpreter(&run.command, &dir).await,
            None => None,
        },
        "lock_files": lock_files(&dir, project).await,
        "verdicts": verdicts(ctx),
        "refit": env!("CARGO_PKG_VERSION"),
    })
}

/// What gates concluded before the version was made.
fn verdicts(ctx: &StepContext<'_>) -> Vec<Value> {
    let gates = ctx.history.iter().filter_map(|attempt| {
        let output = GateOutput::deserialize(attempt.output.as_ref()?).ok()?;
        Some(json!({
            "step": attempt.step,
            "verdict": output.verdict,
            "champion": output.champion,
            "approved_by": output.approved_by,
            "rules": output.rules.iter().map(|rule| json!({
                "rule": rule.rule, "verdict": rule.verdict, "value": rule.value, "limit": rule.limit,
                "sentence": rule.sentence,
            })).collect::<Vec<_>>(),
        }))
    });
    gates.collect()
}

/// Commit and state of the project, if it is a git repository.
async fn git(project: &Path) -> Option<Value> {
    // Settings of the repository could have git start programs.
    const SAFE: [&str; 4] = ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"];
    let ask = async |arguments: &[&str]| {
        let arguments: Vec<&str> = SAFE.iter().chain(arguments).copied().collect();
        output_of("git", &arguments, project).await
    };
    let commit = ask(&["rev-parse", "HEAD"]).await?;
    let changed = ask(&["status", "--porcelain", "--untracked-files=no"]).await;
    Some(json!({"commit": commit, "dirty": changed.map(|changed| !changed.is_empty())}))
}

/// The interpreter that a command names, and its version.
async fn interpreter(command: &str, dir: &Path) -> Option<Value> {
    let program = named_interpreter(command)?;
    let version = match program.contains('/') {
        true => output_of(&dir.join(program).display().to_string(), &["--version"], dir).await?,
        false => output_of(program, &["--version"], dir).await?,
    };
    Some(json!({"program": program, "version": version}))
}

/// The first word of a command that is an interpreter, unless something else picks one.
fn named_interpreter(command: &str) -> Option<&str> {
    let plain =
        |word: &&str| word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-'));
    for word in command.split_whitespace().filter(plain) {
        let name = word.rsplit('/').next().unwrap_or(word);
        if PICKERS.contains(&name) {
            return None;
        }
        let python = name.strip_prefix("python").or_else(|| name.strip_prefix("pypy"));
        let known = matches!(name, "node" | "bun" | "deno" | "Rscript" | "julia" | "ruby" | "java");
        if known || python.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '.')) {
            return Some(word);
        }
    }
    None
}

/// Lock files where the command runs and at the root of the project, by path and hash.
async fn lock_files(dir: &Path, project: &Path) -> Vec<Value> {
    let mut found = vec![];
    let mut places = vec![dir];
    if dir != project {
        places.push(project);
    }
    for place in places {
        for name in LOCK_FILES {
            let path = place.join(name);
            let regular = tokio::fs::symlink_metadata(&path)
                .await
                .is_ok_and(|found| found.is_file() && found.len() <= LONGEST_LOCK);
            if !regular {
                continue;
            }
            if let Ok(bytes) = tokio::fs::read(&path).await {
                let shown = path.strip_prefix(project).unwrap_or(&path).display().to_string();
                found.push(json!({"path": shown, "sha256": hex::encode(Sha256::digest(&bytes))}));
            }
        }
    }
    found
}

/// The first line that a program prints, if it is there and succeeds soon. It gets the environment of a
/// trainer and nothing else.
async fn output_of(program: &str, arguments: &[&str], dir: &Path) -> Option<String> {
    const KEPT: [&str; 5] = ["PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV"];
    let kept = KEPT.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
    let child = tokio::process::Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .envs(kept)
        // `git status` would otherwise refresh the index: the project is only read.
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LONGEST, child).await.ok()?.ok()?;
    let text = output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())?;
    Some(text.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_is_the_one_that_the_command_names() {
        assert_eq!(named_interpreter("python3 -m research.train --x=1"), Some("python3"));
        assert_eq!(
            named_interpreter("OMP_NUM_THREADS=2 .venv/bin/python3.12 t.py"),
            Some(".venv/bin/python3.12")
        );
        assert_eq!(named_interpreter("cd research && node train.js"), Some("node"));
        assert_eq!(named_interpreter("uv run python train.py"), None, "uv picks it");
        assert_eq!(named_interpreter("./train.sh pythonic"), None);
        assert_eq!(named_interpreter("$(evil)/python3 x"), None);
    }

    #[tokio::test]
    async fn lock_files_are_found_by_hash_and_links_are_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let below = dir.path().join("research");
        std::fs::create_dir(&below).expect("made");
        std::fs::write(dir.path().join("requirements.txt"), "xgboost==2.1\n").expect("written");
        std::fs::write(below.join("uv.lock"), "").expect("written");
        std::os::unix::fs::symlink("/etc/passwd", below.join("poetry.lock")).expect("linked");
        let found = lock_files(&below, dir.path()).await;
        let paths: Vec<_> = found.iter().map(|lock| lock["path"].as_str().unwrap_or_default()).collect();
        assert_eq!(paths, ["research/uv.lock", "requirements.txt"]);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(found[0]["sha256"], empty);
        assert_eq!(output_of("no-such-program", &[], dir.path()).await, None);
    }
}
