//! `promote`, `rollback`: changing by hand what serves.

use std::sync::Arc;

use serde_json::json;

use super::Exit;
use super::args::{Promote, Rollback};
use super::error::{CliError, Doing};
use super::output::{ask, can_ask};
use super::pick::{self, short};
use super::project::{Opened, actor};
use crate::domain::id::{ModelName, TargetName, VersionName};
use crate::domain::release::{Release, ReleaseActor, Served};
use crate::domain::version::{VersionRecord, VersionState};
use crate::domain::workflow::{Moment, Recipient};
use crate::engine::by_hand::{Promoted, PromotedByHand};
use crate::engine::heard::{Hears, without_reason};
use crate::engine::release::{Back, ReleaseError};
use crate::engine::reread::Choice;
use crate::store::Store;

/// `refit promote`.
pub async fn promote(opened: &Opened, args: &Promote) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let (model, target, release) =
        pick::release_and_version(opened, &store, &args.which, Some(&args.version), "promote VERSION")
            .await?;
    let version = &pick::version_of(&model, release.as_ref(), &args.version)?;
    let canary = release.as_ref().and_then(|release| release.desired.canary.as_ref());
    let champion = release.as_ref().and_then(|release| release.desired.champion.as_ref());
    let serves =
        champion.map_or("nothing serves now".to_owned(), |served| format!("{} serves now", served.version));
    let serves_it = champion.is_some_and(|served| &served.version == version);
    let mut will = if serves_it && canary.is_none() {
        already(version, &model, &target)
    } else {
        format!("{version} will serve everybody of {model} on {target}; {serves}")
    };
    if let Some(canary) = canary.filter(|canary| &canary.served.version != version) {
        if !args.supersede {
            let owner = release.as_ref().and_then(|release| release.owner);
            let run = owner.map(|run| format!(" (run {})", short(run))).unwrap_or_default();
            return Err(CliError::new(
                Exit::Busy,
                format!("cannot promote {version}: {} is on canary{run}", canary.served.version),
            )
            .hint(format!(
                "wait for its verdict (`refit status`), or drop {} with --supersede",
                canary.served.version
            )));
        }
        will.push_str(&format!("; the canary {} is dropped", canary.served.version));
    }
    let known = store.version(&model, version).await.doing(|| format!("read version {version}"))?;
    let known = known.ok_or_else(|| {
        CliError::usage(format!("cannot promote {version}: `{model}` has no such version"))
            .hint(format!("`refit model ls {model}` lists its versions"))
    })?;
    will.push_str(&warning_of(&known));
    let freeze =
        store.freeze_over(&model, opened.clock.now()).await.doing(|| "read the freezes".to_owned())?;
    if let Some(freeze) = freeze.filter(|_| !serves_it) {
        if !args.despite_freeze {
            let refused: CliError = ReleaseError::Frozen { model, freeze: Box::new(freeze) }.into();
            return Err(refused).doing(|| format!("promote {version}"));
        }
        will.push_str(&format!("; it is {freeze}"));
    }
    confirm(opened, &will)?;
    let (engine, _) = opened.engine(&store)?;
    let (who, why) = (actor(), args.which.why.as_deref());
    let done = if args.despite_freeze {
        engine.promote_despite_freeze(&model, &target, version, args.supersede, &who, why).await
    } else {
        engine.promote_by_hand(&model, &target, version, args.supersede, &who, why).await
    };
    let done = done.doing(|| format!("promote {version} of `{model}` on {target}"))?;
    opened.poke().await;
    match done {
        PromotedByHand::Run(run) => {
            let value = json!({"model": model, "target": target, "version": version, "told_run": run});
            opened
                .out
                .result(&value, || format!("run {} was told to promote its canary {version}", short(run)));
            super::trigger::say_who_runs(opened, &store, Some(run)).await?;
        }
        PromotedByHand::Done(promoted) => {
            let Promoted { release, hears } = *promoted;
            say_where(opened, champion, &release);
            say_who_hears(opened, hears.as_ref());
            let value = json!({
                "model": model, "target": target, "version": version, "release": release,
                "changed": hears.is_some(), "told": hears.as_ref().and_then(told),
            });
            opened.out.result(&value, || serves_everybody(&release, hears.is_some()));
        }
    }
    Ok(Exit::Ok)
}

/// The version that a rollback goes back to. Whoever says `canary` wants it dropped, not served to everybody.
fn back_to(model: &ModelName, release: &Release, word: &VersionName) -> Result<VersionName, CliError> {
    match word.as_str() {
        "canary" => to_the_canary(model, word),
        "champion" => Err(CliError::usage("a rollback does not go to what serves already").hint(format!(
            "`refit rollback --model {model}` goes back to the version before, `refit rollback VERSION` to another"
        ))),
        _ => {
            let version = pick::version_of(model, Some(release), word)?;
            match &release.desired.canary {
                Some(canary) if canary.served.version == version => to_the_canary(model, word),
                Some(_) | None => Ok(version),
            }
        }
    }
}

fn to_the_canary(model: &ModelName, word: &VersionName) -> Result<VersionName, CliError> {
    Err(CliError::usage("a rollback does not go to the canary").hint(format!(
        "`refit rollback --model {model}` drops the canary; `refit promote {word} --model {model}` lets it serve everybody"
    )))
}

/// `refit rollback`.
pub async fn rollback(opened: &Opened, args: &Rollback) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let (model, target, release) =
        pick::release_and_version(opened, &store, &args.which, args.version.as_ref(), "rollback").await?;
    let release = release.ok_or_else(|| {
        CliError::usage(format!("cannot roll back: `{model}` serves nothing on {target} yet"))
            .hint("`refit status` lists what is served")
    })?;
    let to = args.version.as_ref().map(|word| back_to(&model, &release, word)).transpose()?;
    let back = to.as_ref().map(|version| Back { version, marks_bad: args.bad });
    let will = what_a_rollback_does(&store, &model, &target, &release, back).await?;
    confirm(opened, &will)?;
    let (engine, _) = opened.engine(&store)?;
    let who = actor();
    let reason = args.which.why.clone().unwrap_or_else(|| without_reason(Moment::RolledBack, &who));
    let who = ReleaseActor::Human { name: who };
    let doing = || format!("roll back `{model}` on {target}");
    let before = release.desired.champion.as_ref();
    let done = engine.roll_back_as_seen(&release, back, who.clone(), &reason).await.doing(doing)?;
    opened.poke().await;
    for version in &done.passed_over {
        opened.out.note(&format!("passed over: {version}"));
    }
    say_where(opened, before, &done.release);
    say_who_hears(opened, done.hears.as_ref());
    if args.bad && !done.changes_champion && release.desired.canary.is_none() {
        let serves = to.as_ref().map_or("it".to_owned(), ToString::to_string);
        opened.out.note(&format!("no version is marked bad: {serves} takes the place of none"));
    }
    let mut release = done.release;
    // Of what is found elsewhere than before, other files are read than before.
    if let Some(served) = release.desired.champion.clone().filter(|served| Some(served) != before) {
        opened.out.note(&format!("{} serves; its files are being read", served.version));
        let choice = if back.is_some() { Choice::Named } else { Choice::Free };
        let doing = || format!("read the files of {}, which serves already", served.version);
        release = engine.check_rollback(release, choice, &who).await.doing(doing)?;
    }
    let value = json!({
        "model": model, "target": target, "release": release, "passed_over": done.passed_over,
        "changed": done.hears.is_some(), "told": done.hears.as_ref().and_then(told),
    });
    opened.out.result(&value, || serves_everybody(&release, done.hears.is_some()));
    Ok(Exit::Ok)
}

/// What a change of a release came to.
fn serves_everybody(release: &Release, is_new: bool) -> String {
    let Release { model, target, generation, desired, .. } = release;
    let serves = desired.champion.as_ref().map_or("nothing".to_owned(), |served| served.version.to_string());
    let already = if is_new { "" } else { " already" };
    format!("{serves} serves everybody of {model} on {target}{already} (generation {generation})")
}

/// What is said before a change to what serves.
fn already(version: &VersionName, model: &ModelName, target: &TargetName) -> String {
    format!(
        "{version} serves everybody of {model} on {target} already; its release is written anew only if its files \
         moved or somebody changed the host"
    )
}

/// Says where apps find what serves, if that is all that changed of it.
fn say_where(opened: &Opened, before: Option<&Served>, release: &Release) {
    let serves = release.desired.champion.as_ref();
    if let Some((was, is)) = before.zip(serves)
        && was.is_same_version(is)
        && was.base_url != is.base_url
    {
        opened.out.note(&format!("apps find it at {} from now on", is.base_url));
    }
}

/// Says who hears of what was done, unless a run says it.
fn say_who_hears(opened: &Opened, hears: Option<&Hears>) {
    match hears {
        Some(Hears::These(recipients)) => {
            let names: Vec<String> = recipients.iter().map(ToString::to_string).collect();
            opened.out.note(&format!("told of it: {}", names.join(", ")));
        }
        Some(Hears::Nobody(why)) => opened.out.note(&format!("nobody is told of it: {why}")),
        Some(Hears::OfItsRun) | None => {}
    }
}

/// The same for programs: nothing where a run says it, or where there is nothing to say.
fn told(hears: &Hears) -> Option<&[Recipient]> {
    match hears {
        Hears::These(recipients) => Some(recipients),
        Hears::Nobody(_) => Some(&[]),
        Hears::OfItsRun => None,
    }
}

/// What speaks against a version that is to serve.
fn warning_of(record: &VersionRecord) -> String {
    match record.state {
        VersionState::Bad => {
            format!("; {0} is marked bad, until `refit model mark {0} --good`", record.name)
        }
        VersionState::Sealed
        | VersionState::Reserved
        | VersionState::Abandoned
        | VersionState::Deleting
        | VersionState::Deleted => String::new(),
    }
}

async fn what_a_rollback_does(
    store: &Arc<dyn Store>,
    model: &ModelName,
    target: &TargetName,
    release: &Release,
    back: Option<Back<'_>>,
) -> Result<String, CliError> {
    let champion = release.desired.champion.as_ref().map(|served| &served.version);
    let serves = champion.map_or("nothing".to_owned(), ToString::to_string);
    match (&release.desired.canary, back) {
        (Some(canary), None) => Ok(format!(
            "the canary {} of {model} on {target} is dropped; {serves} serves everybody",
            canary.served.version
        )),
        (_, Some(Back { version: to, marks_bad })) => {
            let known = store.version(model, to).await.doing(|| format!("read version {to}"))?;
            let known = known.ok_or_else(|| {
                CliError::usage(format!("cannot roll back to {to}: `{model}` has no such version"))
                    .hint(format!("`refit model ls {model}` lists its versions"))
            })?;
            let bad = if marks_bad { ", which is marked bad" } else { "" };
            let warning = warning_of(&known);
            if champion == Some(to) {
                return Ok(match &release.desired.canary {
                    Some(canary) => format!(
                        "{to} serves everybody of {model} on {target}; the canary {} is dropped{bad}{warning}",
                        canary.served.version
                    ),
                    None => already(to, model, target),
                });
            }
            let dropped = match &release.desired.canary {
                Some(canary) => format!("; the canary {} is dropped", canary.served.version),
                None => String::new(),
            };
            Ok(format!(
                "{to} will serve everybody of {model} on {target} instead of {serves}{bad}{dropped}{warning}"
            ))
        }
        (None, None) => {
            let previous = match &release.desired.previous {
                Some(served) => {
                    store.version(model, &served.version).await.doing(|| "read the versions".to_owned())?
                }
                None => None,
            };
            let good = previous.filter(|record| record.state == VersionState::Sealed);
            let to = match good {
                Some(record) => record.name.to_string(),
                None => {
                    let known = store.versions(model).await.doing(|| "read the versions".to_owned())?;
                    let is_good = |record: &VersionRecord| {
                        record.state == VersionState::Sealed && Some(&record.name) != champion
                    };
                    if !known.iter().any(is_good) {
                        return Ok(format!("{serves} serves everybody of {model} on {target}"));
                    }
                    "the newest good version".to_owned()
                }
            };
            Ok(format!("{serves} of {model} on {target} is marked bad; {to} will serve everybody"))
        }
    }
}

/// Says what will happen, and asks where somebody can answer.
pub(super) fn confirm(opened: &Opened, will: &str) -> Result<(), CliError> {
    opened.out.note(will);
    go_on(opened, "this changes what is served")
}

/// Asks whether to do what was said, where somebody can answer.
pub fn go_on(opened: &Opened, what: &str) -> Result<(), CliError> {
    if opened.global.yes {
        return Ok(());
    }
    if !can_ask() {
        return Err(
            CliError::usage(format!("{what}, and nobody can be asked here")).hint("say so with --yes")
        );
    }
    if ask("go on?") { Ok(()) } else { Err(CliError::new(Exit::Interrupted, "nothing was changed")) }
}
