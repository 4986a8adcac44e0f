//! `kind = "command"`: a host that programs of the team's own speak to.
//!
//! `read` prints the release document it finds, or nothing; `apply` gets the
//! new one on its standard input and in variables. Both run under refit's
//! guard: after the timeout, a cancel or the end of refit nothing of them runs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;

use super::span::Span;
use super::succession::{Step, fingerprint, next, understood};
use crate::adapter::{Adapter, AdapterError, BuildError, Deps, Observed, Target, TargetTraits, options_of};
use crate::domain::id::{InstanceId, ModelName, SecretName};
use crate::domain::release::{Release, ReleaseDocument};
use crate::http_client::excerpt;
use crate::secret::{Secret, Secrets};
use crate::trainers::command::{Command, Finished, GuardCommand, Listener, Stop, run};

/// `kind = "command"`.
pub const ADAPTER: Adapter<Arc<dyn Target>> = Adapter { kind: "command", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The program that prints the document, with its arguments.
    read: Vec<String>,
    /// The program that is given a document.
    apply: Vec<String>,
    /// The program that says whether all is well (`doctor`).
    check: Option<Vec<String>>,
    /// Variables for them.
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Secrets that they get as variables of the same name.
    #[serde(default)]
    secrets: Vec<SecretName>,
    #[serde(default = "five_minutes")]
    timeout: Span,
    /// A change is served within seconds.
    instant: bool,
    /// Apps read `valid_until`.
    #[serde(default)]
    expires: bool,
    /// About how long a change takes.
    takes: Option<Span>,
    /// A document of another refit database is replaced, once seen.
    #[serde(default)]
    take_over: bool,
}

fn five_minutes() -> Span {
    Span::seconds(300)
}

/// No release document is longer.
const LONGEST: usize = 256 * 1024;
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// Exit code of a program that may be tried again: `EX_TEMPFAIL` of sysexits.h.
const TRY_AGAIN: i32 = 75;
/// The variable with the path of the document; no two commands have the same.
const FILE: &str = "REFIT_RELEASE_FILE";
/// What programs get of refit's own environment.
const INHERITED: [&str; 6] = ["PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "SSL_CERT_FILE"];

fn build(options: Value, deps: &Deps) -> Result<Arc<dyn Target>, BuildError> {
    let guard = GuardCommand::this_program().map_err(|error| problem(error.to_string()))?;
    with_guard(options, deps, guard)
}

/// The target of `options` whose programs run under `guard`.
///
/// # Errors
/// When a setting is unknown, missing or of the wrong type, or a secret is not set.
pub fn with_guard(options: Value, deps: &Deps, guard: GuardCommand) -> Result<Arc<dyn Target>, BuildError> {
    let options: Options = options_of(ADAPTER.kind, options)?;
    let takes =
        options.takes.map_or(Duration::from_secs(if options.instant { 5 } else { 300 }), |span| span.0);
    let lines = [Some(&options.read), Some(&options.apply), options.check.as_ref()];
    if lines.into_iter().flatten().any(Vec::is_empty) {
        return Err(problem("`read`, `apply` and `check` are a program and its arguments"));
    }
    let secrets = options.secrets.iter().map(|name| Ok((name.to_string(), deps.secrets.get(name)?)));
    let secrets = secrets.collect::<Result<Vec<_>, BuildError>>()?;
    Ok(Arc::new(Programs {
        read: options.read,
        apply: options.apply,
        check: options.check,
        env: options.env,
        given: secrets,
        timeout: options.timeout.0,
        // It is told the model with each release; where it puts them is its own affair.
        traits: TargetTraits { instant: options.instant, expires: options.expires, takes, one_model: false },
        take_over: options.take_over,
        project: deps.project.clone(),
        secrets: deps.secrets.clone(),
        guard,
    }))
}

fn problem(problem: impl Into<String>) -> BuildError {
    BuildError::Options { kind: ADAPTER.kind, problem: problem.into() }
}

struct Programs {
    read: Vec<String>,
    apply: Vec<String>,
    check: Option<Vec<String>>,
    env: BTreeMap<String, String>,
    given: Vec<(String, Secret)>,
    timeout: Duration,
    traits: TargetTraits,
    take_over: bool,
    project: PathBuf,
    secrets: Secrets,
    guard: GuardCommand,
}

/// What a program prints, up to a limit.
#[derive(Default)]
struct Printed {
    text: String,
    too_long: bool,
}

impl Listener for Printed {
    fn log(&mut self, _bytes: &[u8]) {}

    fn line(&mut self, line: &str) {
        if self.text.len() + line.len() >= LONGEST {
            self.too_long = true;
        } else {
            self.text.push_str(line);
            self.text.push('\n');
        }
    }

    fn progress(&mut self, _percent: Option<f64>, _message: &str) {}
}

#[async_trait]
impl Target for Programs {
    fn traits(&self) -> TargetTraits {
        self.traits
    }

    async fn read(&self, model: &ModelName) -> Result<Option<Observed>, AdapterError> {
        let Some(text) = self.there(model).await? else { return Ok(None) };
        let document = understood(&self.label(), text.as_bytes())?;
        if &document.model != model {
            let cause = format!("it printed a release of `{}`: it must heed REFIT_MODEL", document.model);
            return Err(self.rejected("read the release", cause));
        }
        Ok(Some(Observed { document, fingerprint: fingerprint(text.as_bytes()), attention: None }))
    }

    async fn apply(&self, release: &Release, instance: InstanceId) -> Result<(), AdapterError> {
        let document = release.document(instance);
        let there = self.there(&release.model).await?;
        if next(&self.label(), self.take_over, there.as_deref().map(str::as_bytes), &document)? == Step::Done
        {
            return Ok(());
        }
        self.run("write the release", &self.apply, variables(&document), Some(&document)).await?;
        let Some(there) = self.there(&release.model).await? else {
            return Err(
                self.rejected("show the release", "`apply` ended well, and `read` prints none".to_owned())
            );
        };
        match next(&self.label(), false, Some(there.as_bytes()), &document)? {
            Step::Done => Ok(()),
            Step::Write => Err(AdapterError::Unavailable {
                service: self.label(),
                cause: "`apply` ended well, and `read` prints an older release".to_owned(),
                retry_after: None,
            }),
        }
    }

    async fn check(&self) -> Result<String, AdapterError> {
        match &self.check {
            Some(check) => {
                let said = self.run("be checked", check, vec![], None).await?;
                Ok(format!("{} is well: {}", self.label(), excerpt(&self.secrets.mask(&said))))
            }
            None => {
                let model: ModelName =
                    "refit-doctor".parse().map_err(|_| self.rejected("name a model", String::new()))?;
                self.there(&model).await?;
                Ok(format!("{} runs; set `check` to have it say more", self.label()))
            }
        }
    }
}

impl Programs {
    fn label(&self) -> String {
        format!("the program {}", excerpt(&self.apply[0]))
    }

    fn rejected(&self, action: &str, cause: String) -> AdapterError {
        AdapterError::Rejected { service: self.label(), action: action.to_owned(), cause }
    }

    fn unavailable(&self, cause: String) -> AdapterError {
        AdapterError::Unavailable { service: self.label(), cause, retry_after: None }
    }

    /// What `read` prints; `None` when that is nothing.
    async fn there(&self, model: &ModelName) -> Result<Option<String>, AdapterError> {
        let model = vec![("REFIT_MODEL", model.to_string())];
        let text = self.run("read the release", &self.read, model, None).await?;
        Ok(Some(text).filter(|text| !text.trim().is_empty()))
    }

    async fn run(
        &self,
        action: &str,
        program: &[String],
        variables: Vec<(&'static str, String)>,
        document: Option<&ReleaseDocument>,
    ) -> Result<String, AdapterError> {
        let failed = |error: std::io::Error| self.unavailable(format!("cannot {action}: {error}"));
        let mut file = tempfile::Builder::new().prefix(".refit-release-").tempfile().map_err(failed)?;
        if let Some(document) = document {
            let bytes =
                serde_json::to_vec(document).map_err(|error| self.rejected(action, error.to_string()))?;
            file.write_all(&bytes).and_then(|()| file.flush()).map_err(failed)?;
        }
        let words: Vec<String> = program.iter().map(|word| quoted(word)).collect();
        let inherited =
            INHERITED.iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
        let mut env: BTreeMap<OsString, OsString> = inherited.collect();
        env.entry("LANG".into()).or_insert_with(|| "C.UTF-8".into());
        env.extend(self.env.iter().map(|(name, value)| (name.into(), value.into())));
        env.extend(self.given.iter().map(|(name, secret)| (name.into(), secret.reveal().into())));
        env.extend(variables.into_iter().map(|(name, value)| (name.into(), value.into())));
        env.insert(FILE.into(), file.path().into());
        let command = Command {
            line: format!("exec {} < \"${FILE}\"", words.join(" ")),
            dir: self.project.clone(),
            env,
            mark: FILE,
            grace: GRACE,
            memory: None,
            log: 0,
            files: None,
        };
        let (mut printed, stop) = (Printed::default(), Stop::default());
        let finished = {
            let running = run(&self.guard, &command, &mut printed, &stop);
            tokio::pin!(running);
            tokio::select! {
                finished = &mut running => finished,
                () = tokio::time::sleep(self.timeout) => {
                    stop.ask.cancel();
                    running.await
                }
            }
        };
        let finished = finished.map_err(|error| self.unavailable(error.to_string()))?;
        self.judge(action, &finished)?;
        if printed.too_long {
            return Err(self.rejected(action, format!("it printed more than {LONGEST} bytes")));
        }
        Ok(printed.text)
    }

    fn judge(&self, action: &str, finished: &Finished) -> Result<(), AdapterError> {
        if finished.cancelled {
            return Err(
                self.unavailable(format!("it did not {action} within {:?} and was ended", self.timeout))
            );
        }
        let said = excerpt(&self.secrets.mask(&finished.stderr.join(" ")));
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        match (finished.ended.code, finished.ended.signal) {
            (Some(0), _) => Ok(()),
            (Some(TRY_AGAIN), _) => Err(self.unavailable(format!("it could not {action} now{said}"))),
            (Some(code), _) => Err(self.rejected(action, format!("it ended with exit code {code}{said}"))),
            (None, Some(signal)) => Err(self.unavailable(format!("signal {signal} ended it{said}"))),
            (None, None) => Err(self.unavailable(format!("it ended in an unknown way{said}"))),
        }
    }
}

/// The release as variables.
fn variables(document: &ReleaseDocument) -> Vec<(&'static str, String)> {
    let champion = document.champion.as_ref();
    let canary = document.canary.as_ref();
    let percent = canary.map_or(0.0, |canary| f64::from(canary.basis_points.0) / 100.0);
    vec![
        ("REFIT_MODEL", document.model.to_string()),
        ("REFIT_GENERATION", document.generation.to_string()),
        ("REFIT_INSTANCE", document.instance.to_string()),
        ("REFIT_VERSION", champion.map(|served| served.version.to_string()).unwrap_or_default()),
        ("REFIT_CANARY_VERSION", canary.map(|canary| canary.served.version.to_string()).unwrap_or_default()),
        ("REFIT_CANARY_PERCENT", percent.to_string()),
    ]
}

/// A word as `sh` reads it back, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_a_word() {
        assert_eq!(quoted("it's $HOME; rm"), r"'it'\''s $HOME; rm'");
    }
}
