//! `refit demo`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Exit;
use super::args::Demo as Args;
use super::error::{CliError, Doing};
use super::output::{Output, Paint, table};
use super::registry;
use super::signals::Interrupts;
use crate::clock::{Clock, ManualClock};
use crate::config::Project;
use crate::demo::story::{Chapter, rows};
use crate::demo::{self, Demo, DemoError, project, traffic};
use crate::domain::run::Outcome;
use crate::domain::words::counted;
use crate::engine::{Engine, Settings};

/// Where the demo goes when no directory is named.
const DIRECTORY: &str = "refit-demo";
/// The demo's clock jumps from look to look.
const LOOK_EVERY: Duration = Duration::from_secs(6 * 3600);

/// Plays the demo.
pub async fn run(args: &Args, out: Output) -> Result<Exit, CliError> {
    let began = Instant::now();
    let root = args.into.clone().unwrap_or_else(|| PathBuf::from(DIRECTORY));
    // Before anything is written: whoever mends it starts again in the same place.
    traffic::python()?;
    project::unpack(&root)?;
    let root =
        root.canonicalize().map_err(|error| CliError::usage(format!("{}: {error}", root.display())))?;
    let settings = Project::read(&root, &root.join(crate::config::FILE))?;
    let clock = Arc::new(ManualClock::starting_at(demo::begins()));
    let state = settings.state();
    std::fs::create_dir_all(&state)
        .map_err(|error| CliError::usage(format!("cannot make {}: {error}", state.display())))?;
    let url = state.join("refit.db").display().to_string();
    let time: Arc<dyn Clock> = clock.clone();
    let store = registry::open_store(&url, time.clone()).await.doing(|| "open the database".to_owned())?;
    let (services, notifiers) = registry::services(&settings, &settings.secrets(), store.instance())?;
    let how = Settings { look_every: LOOK_EVERY, ..settings.settings() };
    let engine = Engine::new(Arc::clone(&store), time, services, root.clone(), state, how);

    let stop = CancellationToken::new();
    let mut interrupts = Interrupts::listen()?;
    let interrupted = stop.clone();
    tokio::spawn(async move {
        interrupts.next().await;
        interrupted.cancel();
    });
    introduce(out, &root);
    let mut demo = Demo::new(engine, clock, notifiers, &root, stop).await?;
    let chapters = demo.play(&root, |chapter| tell(out, chapter)).await?;
    drop(demo);
    store.close().await;
    conclude(out, &chapters, &root, began.elapsed());
    let failed = chapters.iter().filter(|chapter| !demo::is_decision(chapter.outcome)).count();
    if failed > 0 {
        out.complain(&format!("{} came to no decision", counted(failed as u64, "run")));
        return Ok(Exit::StepFailed);
    }
    Ok(Exit::Ok)
}

fn introduce(out: Output, root: &Path) {
    out.note(&format!(
        "A year of real flights out of New York: how long will each be in the air?\n\
         Every few weeks a model is retrained, checked, published, put on canary and watched.\n\
         Engine, database, trainers, files and the prediction server are real; only the clock is told the time.\n\
         Project: {}\n",
        root.display()
    ));
}

/// One chapter, as soon as its run has ended.
fn tell(out: Output, chapter: &Chapter) {
    if out.json {
        return;
    }
    let title = format!(
        "Week {}, {}: {} challenges",
        chapter.week,
        chapter.began.date_naive(),
        chapter.family.replace('-', " ")
    );
    out.line(&out.painted(&title, Paint::Bold));
    for (step, what) in &chapter.lines {
        out.line(&format!("  {step:<8} {what}"));
    }
    let (word, paint) = decision(chapter.outcome);
    let word = out.painted(&format!("{word:<8}"), paint);
    out.line(&format!("  {word} {}\n", chapter.reason));
}

fn decision(outcome: Option<Outcome>) -> (&'static str, Paint) {
    match outcome {
        Some(Outcome::Promoted | Outcome::CancelledAfterPromotion) => ("PROMOTED", Paint::Good),
        Some(Outcome::Succeeded) => ("DONE", Paint::Good),
        Some(Outcome::Rejected) => ("REFUSED", Paint::Odd),
        Some(Outcome::RolledBack) => ("ROLLED BACK", Paint::Odd),
        Some(Outcome::Skipped) => ("NOTHING TO DO", Paint::Dim),
        Some(Outcome::Failed | Outcome::Cancelled) | None => ("FAILED", Paint::Bad),
    }
}

fn conclude(out: Output, chapters: &[Chapter], root: &Path, took: Duration) {
    out.result(&chapters, || {
        table(&["after", "on", "family", "version", "decision", "took", "why"], rows(chapters))
    });
    let shown = root
        .file_name()
        .map_or_else(|| root.display().to_string(), |name| name.to_string_lossy().into_owned());
    let refit = program();
    out.note(&format!(
        "\n{} runs in {:.0} s. All of it is in the project's database; look around:\n  \
         cd {shown}\n  {refit} run ls\n  {refit} run show last\n  {refit} model ls\n  {refit} status",
        chapters.len(),
        took.as_secs_f64()
    ));
}

/// What to type for this program: its name, or its path while it is not installed.
fn program() -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).any(|dir| dir.join("refit").is_file());
    match std::env::current_exe() {
        Ok(exe) if !installed => exe.display().to_string(),
        Ok(_) | Err(_) => "refit".to_owned(),
    }
}

impl From<DemoError> for CliError {
    fn from(error: DemoError) -> Self {
        let text = error.to_string();
        match error {
            DemoError::NotEmpty(_) => {
                CliError::usage(text).hint("remove it, or name another directory: `refit demo DIRECTORY`")
            }
            DemoError::File { .. } => CliError::usage(text)
                .hint("may you write to this directory? Or name another: `refit demo DIRECTORY`"),
            DemoError::Workflow(_) | DemoError::Data(_) => CliError::usage(text),
            DemoError::Server(_) => {
                CliError::new(Exit::StepFailed, text).hint("the demo needs python3 on the PATH; nothing else")
            }
            DemoError::Trigger(error) => error.into(),
            DemoError::Store(error) => error.into(),
            DemoError::Evidence(_) => CliError::new(Exit::StepFailed, text),
            DemoError::Interrupted => CliError::new(Exit::Interrupted, text).hint(
                "its project has what was until then; to see the whole story, start in another directory",
            ),
        }
    }
}
