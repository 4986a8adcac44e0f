//! `receipt`: what a run decided, for people who were not there.

use super::Exit;
use super::args::Receipt as Args;
use super::error::{CliError, Doing};
use super::output::plain;
use super::pick::{self, short};
use super::project::Opened;
use crate::domain::run::RunStatus;
use crate::receipt;
use crate::receipt::page::Pages;

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
    let template = |error: crate::templates::TemplateError| {
        CliError::usage(error.to_string()).hint("mend the file in the directory that [templates] names")
    };
    let text = if opened.out.json {
        serde_json::to_string_pretty(&receipt)
            .map_err(|error| CliError::new(Exit::StepFailed, format!("cannot write the receipt: {error}")))?
    } else {
        let pages = Pages::new(opened.project.templates().as_deref()).map_err(template)?;
        if args.html { pages.html(&receipt) } else { pages.markdown(&receipt) }.map_err(template)?
    };
    match &args.to {
        None => opened.out.line(text.trim_end()),
        Some(file) => {
            std::fs::write(file, &text).map_err(|error| {
                CliError::usage(format!("cannot write {}: {error}", file.display()))
                    .hint("is its directory there, and may you write to it?")
            })?;
            opened.out.note(&format!("{}: {}", file.display(), plain(&receipt.headline)));
        }
    }
    Ok(Exit::Ok)
}
