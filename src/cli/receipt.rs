//! `receipt`, `model receipt`: what a run decided and what a change did, for people who were not there.

use std::sync::Arc;

use super::Exit;
use super::args::{Paper, Receipt as Args, Which};
use super::error::{CliError, Doing};
use super::output::plain;
use super::pick::{self, short};
use super::project::Opened;
use crate::domain::id::Generation;
use crate::domain::run::RunStatus;
use crate::receipt;
use crate::receipt::page::{Page, Pages};
use crate::store::Store;

/// `refit receipt`.
pub async fn receipt(opened: &Opened, args: &Args) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let run = pick::run(&store, &args.run).await?;
    let receipt = receipt::of(store.as_ref(), &run)
        .await
        .doing(|| format!("read what run {} decided", run.id))?
        .ok_or_else(|| {
            let error = CliError::usage(format!("run {} decided nothing", short(run.id)));
            if run.status == RunStatus::Finished {
                error.hint("a receipt is of a version that was promoted, rolled back, rejected or held")
            } else {
                error.hint("it is under way: there is a receipt once it has decided")
            }
        })?;
    print(opened, &receipt, &args.paper)
}

/// `refit model receipt`.
pub async fn of_change(
    opened: &Opened,
    store: &Arc<dyn Store>,
    which: &Which,
    generation: Option<i64>,
    paper: &Paper,
) -> Result<Exit, CliError> {
    let (model, target, release) = pick::release(opened, store, which).await?;
    let release = release.ok_or_else(|| {
        CliError::usage(format!("`{model}` serves nothing on {target} yet"))
            .hint("there is a receipt of every promotion, rollback and shift of a canary")
    })?;
    let generation = generation.map_or(release.generation, Generation);
    let receipt = receipt::of_change(store.as_ref(), &model, &target, generation)
        .await
        .doing(|| format!("read what change {generation} of `{model}` on {target} did"))?
        .ok_or_else(|| {
            CliError::usage(format!("`{model}` on {target} has no generation {generation}"))
                .hint(format!("`refit model history {model}` lists its changes"))
        })?;
    print(opened, &receipt, paper)
}

fn print<P: Page>(opened: &Opened, receipt: &P, paper: &Paper) -> Result<Exit, CliError> {
    let template = |error: crate::templates::TemplateError| {
        CliError::usage(error.to_string()).hint("mend the file in the directory that [templates] names")
    };
    let text = if opened.out.json {
        serde_json::to_string_pretty(receipt)
            .map_err(|error| CliError::new(Exit::StepFailed, format!("cannot write the receipt: {error}")))?
    } else {
        let pages = Pages::new(opened.project.templates().as_deref()).map_err(template)?;
        if paper.html { pages.html(receipt) } else { pages.markdown(receipt) }.map_err(template)?
    };
    match &paper.to {
        None => opened.out.line(text.trim_end()),
        Some(file) => {
            std::fs::write(file, &text).map_err(|error| {
                CliError::usage(format!("cannot write {}: {error}", file.display()))
                    .hint("is its directory there, and may you write to it?")
            })?;
            opened.out.note(&format!("{}: {}", file.display(), plain(receipt.headline())));
        }
    }
    Ok(Exit::Ok)
}
