//! One change of a release as templates see it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{HTML, MARKDOWN, Page, canary, named, time};
use crate::domain::because::Evidence;
use crate::domain::receipt::{ChangeReceipt, ScoredVersion};
use crate::domain::release::{Assignment, ReleaseActor};
use crate::domain::words::number;

impl Page for ChangeReceipt {
    const TEMPLATES: [&'static str; 2] = [HTML[1].0, MARKDOWN[1].0];

    fn headline(&self) -> &str {
        &self.headline
    }

    fn data(&self) -> Value {
        let (label, class) = match &self.actor {
            ReleaseActor::Human { .. } => ("By hand", "odd"),
            ReleaseActor::Run { .. } => ("By a run", "good"),
            ReleaseActor::Controller { .. } => ("By refit", "good"),
            ReleaseActor::Undo { .. } => ("Taken back with its run", "odd"),
        };
        let version = |scored: &Option<ScoredVersion>| {
            scored.as_ref().map_or("–".to_owned(), |scored| scored.version.to_string())
        };
        let view = self.evidence.as_ref().and_then(Evidence::view);
        json!({
            "label": label,
            "class": class,
            "headline": self.headline,
            "reason": self.reason,
            "facts": facts(self),
            "serves": version(&self.serves),
            "served": version(&self.served),
            "metrics": metrics(self),
            "canary": view.map(|view| canary(&view, None)),
            "limits": self.limits,
            "commands": self.commands,
            "undo": self.undo,
            "no_undo": self.no_undo,
        })
    }
}

fn facts(receipt: &ChangeReceipt) -> Vec<Value> {
    let mut facts = vec![
        named("Model", receipt.model.to_string()),
        named("Where", receipt.target.to_string()),
        named("When", time(receipt.at)),
        named("Who", receipt.actor.to_string()),
        named("Serves since", in_words(&receipt.after)),
        named("Served before", receipt.before.as_ref().map_or("nothing".to_owned(), in_words)),
        named("Generation", receipt.generation.to_string()),
    ];
    for scored in [&receipt.serves, &receipt.served].into_iter().flatten() {
        let maker = scored.run.map_or("adopted".to_owned(), |run| format!("made by run {run}"));
        facts.push(named(
            &format!("Version {}", scored.version),
            format!("{maker}; manifest SHA-256 {}", scored.manifest_sha256),
        ));
    }
    if let Some(configuration) = &receipt.configuration {
        facts.push(named("Configuration SHA-256", configuration.clone()));
    }
    facts
}

fn in_words(assignment: &Assignment) -> String {
    let champion = assignment.champion.as_ref();
    let champion = champion.map_or("nothing".to_owned(), |served| served.version.to_string());
    match &assignment.canary {
        Some(canary) => {
            format!("{champion}; {} to the canary {}", canary.basis_points, canary.served.version)
        }
        None => champion,
    }
}

/// What either version scored, by metric.
fn metrics(receipt: &ChangeReceipt) -> Vec<Value> {
    let versions = [&receipt.serves, &receipt.served];
    let names: BTreeSet<_> =
        versions.iter().flat_map(|scored| scored.as_ref()).flat_map(|it| it.metrics.values.keys()).collect();
    let rows = names.into_iter().map(|name| {
        let [serves, served] = versions.map(|scored| {
            scored.as_ref().and_then(|scored| scored.metrics.values.get(name)).map(|value| number(*value))
        });
        json!({"name": name, "serves": serves, "served": served})
    });
    rows.collect()
}
