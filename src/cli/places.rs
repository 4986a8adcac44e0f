//! Models that would push each other out of a target: it has a place for one,
//! and a run must not find out when it promotes.

use std::collections::BTreeSet;

use super::project::Opened;
use super::references::{Reference, references};
use super::registry;
use crate::domain::workflow::{Diagnostic, Mode};
use crate::trigger::Loaded;

/// What is wrong with `loaded`, whose workflow stands beside those of `all`. A target that cannot be made, as its secret is
/// not here, is not known to have a place for one model only.
pub fn check(loaded: &Loaded, all: &[Loaded], opened: &Opened) -> Vec<Diagnostic> {
    let mut seen = BTreeSet::new();
    let shared: Vec<(Reference<'_>, Vec<String>)> = changed_targets(loaded)
        .filter(|target| seen.insert(target.name))
        .map(|target| {
            let others = others_at(target.name, loaded, all);
            (target, others)
        })
        .filter(|(_, others)| !others.is_empty())
        .collect();
    // Most projects have one model: nothing has to be made to know that it is alone.
    if shared.is_empty() {
        return vec![];
    }
    let Ok(http) = registry::http_client() else { return vec![] };
    let targets = registry::build(&opened.project, &opened.secrets, &http).targets;
    let has_one_place = |name: &str| {
        targets.iter().any(|(known, target)| known.as_str() == name && target.traits().one_model)
    };
    let crowded = shared.into_iter().filter(|(target, _)| has_one_place(target.name));
    let said = crowded.map(|(target, others)| {
        let (at, name) = (target.place(&loaded.definition.source), target.name);
        let others = others.join(", ");
        Diagnostic::error(at, format!("target `{name}` has a place for one model, and {others} there too")).hint(
            format!("give each model a target of its own, or a place in [targets.{name}]: `{{model}}` stands for its name"),
        )
    });
    said.collect()
}

/// The targets that a workflow changes.
fn changed_targets(loaded: &Loaded) -> impl Iterator<Item = Reference<'_>> {
    let acts = loaded.workflow.mode == Mode::Act;
    references(&loaded.workflow).into_iter().filter(move |it| acts && it.table == "targets")
}

/// Who brings another model there.
fn others_at(target: &str, loaded: &Loaded, all: &[Loaded]) -> Vec<String> {
    let others = all.iter().filter(|other| {
        other.workflow.model != loaded.workflow.model && changed_targets(other).any(|it| it.name == target)
    });
    others.map(|other| format!("`{}` brings `{}`", other.workflow.name, other.workflow.model)).collect()
}
