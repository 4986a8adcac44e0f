//! `gc`: deletes what nothing needs, and says why the rest is kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::Exit;
use super::args::Gc;
use super::error::{CliError, Doing};
use super::gc_files::{self, OldFiles};
use super::output::{plain, table};
use super::project::{Opened, actor};
use super::release::go_on;
use crate::domain::history::ChangedBy;
use crate::domain::id::{ModelName, StoreName};
use crate::domain::release::ReleaseActor;
use crate::domain::retention::{Fate, Policy};
use crate::domain::version::VersionState;
use crate::domain::words::{bytes, counted};
use crate::domain::workflow::StepKind;
use crate::engine::Engine;
use crate::engine::pruning::in_kinds;
use crate::engine::retention::{Deletion, Judged};
use crate::store::{OldEvidence, Store};
use crate::trigger::Catalog;

/// Everything that would go, and what stays.
#[derive(Debug, Serialize)]
struct Plan {
    versions: Vec<Judged>,
    files: OldFiles,
    evidence: OldEvidence,
}

impl Plan {
    fn goes(&self) -> impl Iterator<Item = (&Judged, &str)> {
        self.versions.iter().filter_map(|judged| match &judged.fate {
            Fate::Deleted { why } => Some((judged, why.as_str())),
            Fate::Kept { .. } | Fate::Nothing => None,
        })
    }

    fn is_empty(&self) -> bool {
        self.goes().next().is_none() && self.files.gone.is_empty() && self.evidence.total() == 0
    }
}

/// `refit gc`.
pub async fn run(opened: &Opened, args: &Gc) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let (engine, _) = opened.engine(&store)?;
    let catalog = opened.catalog();
    if !catalog.errors.is_empty() {
        return Err(CliError::usage("a workflow file cannot be read, and it may say which versions stay")
            .hint("see `refit validate`"));
    }
    let mut models = store.models().await.doing(|| "list models".to_owned())?;
    if let Some(model) = &args.model {
        models.retain(|known| known == model);
        if models.is_empty() {
            return Err(CliError::usage(format!("there is no model `{model}`"))
                .hint("`refit model ls` lists all versions of all models"));
        }
    }
    let policies: BTreeMap<ModelName, Policy> =
        models.into_iter().map(|model| (model.clone(), policy(&catalog, &engine, &model, args))).collect();
    let plan = plan(&engine, &store, &policies, args).await?;
    if args.dry_run {
        opened.out.result(&json!({"dry_run": true, "plan": plan}), || shown(&plan, "would be deleted"));
        return Ok(Exit::Ok);
    }
    if plan.is_empty() {
        opened.out.result(&json!({"dry_run": false, "plan": plan, "deleted": []}), || {
            shown(&plan, "would be deleted")
        });
        return Ok(Exit::Ok);
    }
    opened.out.note(shown(&plan, "will be deleted").trim_end());
    go_on(opened, "this deletes files for good")?;
    delete(opened, &engine, &store, &policies, plan, args).await
}

/// What the workflows of a model say now; the most that any of them keeps in a store counts, and one that
/// says nothing keeps all.
fn policy(catalog: &Catalog, engine: &Engine, model: &ModelName, args: &Gc) -> Policy {
    let mut latest: BTreeMap<StoreName, Option<u32>> = BTreeMap::new();
    for loaded in catalog.workflows().iter().filter(|loaded| &loaded.workflow.model == model) {
        for step in loaded.workflow.steps.iter().chain(&loaded.workflow.on_failure) {
            if let StepKind::Publish(publish) = &step.kind {
                let known = latest.entry(publish.store.clone()).or_insert(publish.keep_latest);
                *known = known.zip(publish.keep_latest).map(|(one, other)| one.max(other));
            }
        }
    }
    let latest = latest.into_iter().filter_map(|(store, latest)| Some((store, latest?))).collect();
    Policy { latest, adopted: args.adopted, ages: engine.settings.ages }
}

async fn plan(
    engine: &Arc<Engine>,
    store: &Arc<dyn Store>,
    policies: &BTreeMap<ModelName, Policy>,
    args: &Gc,
) -> Result<Plan, CliError> {
    let mut versions = vec![];
    for (model, policy) in policies {
        let doing = || format!("look at the versions of `{model}`");
        versions.extend(engine.plan_retention(model, policy).await.doing(doing)?);
    }
    let mut plan = Plan { versions, files: OldFiles::default(), evidence: OldEvidence::default() };
    if args.model.is_none() {
        plan.files = gc_files::look(engine, store).await?;
        plan.evidence = store
            .forget_evidence(&engine.evidence_age(), true)
            .await
            .doing(|| "count old evidence".to_owned())?;
    }
    Ok(plan)
}

async fn delete(
    opened: &Opened,
    engine: &Arc<Engine>,
    store: &Arc<dyn Store>,
    policies: &BTreeMap<ModelName, Policy>,
    plan: Plan,
    args: &Gc,
) -> Result<Exit, CliError> {
    let by = ChangedBy {
        actor: ReleaseActor::Human { name: actor() },
        reason: args.why.clone().unwrap_or_default(),
        at: engine.clock.now(),
    };
    let (mut deleted, mut freed, mut failed, mut kept) = (vec![], 0, vec![], vec![]);
    for (judged, _) in plan.goes() {
        let Some(policy) = policies.get(&judged.model) else { continue };
        let what = format!("{} {}", judged.model, judged.version);
        let doing = || format!("delete {what}");
        let deletion =
            engine.delete_version(&judged.model, &judged.version, policy, &by).await.doing(doing)?;
        match deletion {
            Deletion::Done { bytes } => {
                freed += bytes;
                deleted.push(what);
            }
            Deletion::Failed(error) => failed.push(format!("{what}: {error}")),
            Deletion::Kept(_) => kept.push(what),
        }
    }
    for old in &plan.files.gone {
        match std::fs::remove_dir_all(&old.path) {
            Ok(()) => {
                freed += old.bytes;
                deleted.push(old.what.clone());
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => failed.push(format!("{}: {error}", old.path.display())),
        }
    }
    let evidence = if args.model.is_none() {
        store
            .forget_evidence(&engine.evidence_age(), false)
            .await
            .doing(|| "delete old evidence".to_owned())?
    } else {
        OldEvidence::default()
    };
    let value = json!({
        "dry_run": false, "plan": plan, "deleted": deleted, "bytes": freed, "failed": failed,
        "kept_since": kept, "evidence": evidence,
    });
    opened.out.result(&value, || {
        let mut text = format!("deleted {}, {}", counted(deleted.len() as u64, "thing"), bytes(freed));
        if evidence.total() > 0 {
            text.push_str(&format!("; {} of old evidence", counted(evidence.total(), "row")));
        }
        for what in &kept {
            text.push_str(&format!("\n{what} stays: something came to need it meanwhile"));
        }
        text
    });
    if failed.is_empty() {
        return Ok(Exit::Ok);
    }
    Err(CliError::new(Exit::StepFailed, format!("not all could be deleted:\n{}", failed.join("\n")))
        .hint("nothing uses them any more; the next `refit gc` goes on"))
}

/// The plan for people: what goes with its size, then what stays and why.
fn shown(plan: &Plan, will: &str) -> String {
    let mut rows = vec![];
    for (judged, why) in plan.goes() {
        rows.push(vec![named(judged), bytes(judged.bytes), why.to_owned()]);
    }
    for old in &plan.files.gone {
        rows.push(vec![old.what.clone(), bytes(old.bytes), old.why.clone()]);
    }
    for (what, why) in in_kinds(&plan.evidence) {
        rows.push(vec![what, String::new(), why.to_owned()]);
    }
    let mut text = if rows.is_empty() {
        "nothing is old enough to be deleted\n".to_owned()
    } else {
        let total = plan.goes().map(|(judged, _)| judged.bytes).sum::<u64>()
            + plan.files.gone.iter().map(|old| old.bytes).sum::<u64>();
        format!("{will}: {}\n{}\n", bytes(total), table(&["WHAT", "SIZE", "WHY"], rows))
    };
    let kept = plan.versions.iter().filter_map(|judged| match &judged.fate {
        Fate::Kept { reasons } => {
            let reasons: Vec<String> = reasons.iter().map(|reason| plain(&reason.to_string())).collect();
            Some(vec![named(judged), bytes(judged.bytes), reasons.join("; ")])
        }
        Fate::Deleted { .. } | Fate::Nothing => None,
    });
    let kept: Vec<_> = kept.collect();
    if !kept.is_empty() {
        text.push_str(&format!("\nkept\n{}\n", table(&["WHAT", "SIZE", "WHY"], kept)));
    }
    for (count, what) in &plan.files.kept {
        text.push_str(&format!("{} kept: {what}\n", counted(*count, "folder")));
    }
    text
}

fn named(judged: &Judged) -> String {
    match judged.state {
        VersionState::Reserved => format!("{} {} (half)", judged.model, judged.version),
        VersionState::Sealed
        | VersionState::Bad
        | VersionState::Abandoned
        | VersionState::Deleting
        | VersionState::Deleted => format!("{} {}", judged.model, judged.version),
    }
}
