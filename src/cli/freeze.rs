//! `freeze`, `unfreeze`: windows without promotions.

use std::sync::Arc;

use chrono::TimeDelta;
use serde_json::json;

use super::Exit;
use super::args::{Freeze as FreezeArgs, Unfreeze};
use super::error::{CliError, Doing};
use super::output::{plain, table, time};
use super::pick;
use super::project::{Opened, actor};
use crate::domain::Timestamp;
use crate::domain::freeze::{Freeze, FreezeEnd, FreezeError, FreezeScope, FreezeWish};
use crate::domain::id::{FreezeId, ModelName};
use crate::store::{FreezeAnswer, Store};

/// Freezes that are listed, and among which an id is looked for.
const LISTED: u32 = 500;
/// A shorter part of an id would soon mean another freeze.
const SHORTEST_PART: usize = 4;

/// `refit freeze`.
pub async fn freeze(opened: &Opened, args: &FreezeArgs) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let model = match &args.model {
        Some(name) => Some(known(opened, &store, name).await?),
        None => None,
    };
    let Some(reason) = args.reason.clone() else {
        return list(opened, &store, model.as_ref()).await;
    };
    let end = match (args.until, args.lasts) {
        (Some(until), _) => FreezeEnd::At(until),
        (None, Some(lasts)) => FreezeEnd::After(TimeDelta::from_std(lasts).unwrap_or(TimeDelta::MAX)),
        (None, None) => FreezeEnd::Never,
    };
    let wish = FreezeWish { model, from: args.from, end, reason, by: actor() };
    let now = opened.clock.now();
    let answer =
        store.freeze(FreezeId::generate(), &wish, now).await.doing(|| "write the freeze".to_owned())?;
    let (freeze, made) = match answer {
        FreezeAnswer::Made(freeze) => (freeze, true),
        FreezeAnswer::Already(freeze) => (freeze, false),
        FreezeAnswer::Refused(error) => {
            let hint = match error {
                FreezeError::Over { .. } | FreezeError::Empty { .. } => {
                    "give it an end that is still to come, or none: `refit unfreeze` ends it"
                }
                FreezeError::Begun { .. } => {
                    "leave --from out: it begins at once; to extend a freeze, give its own begin"
                }
            };
            return Err(CliError::usage(format!("cannot freeze: {error}")).hint(hint));
        }
    };
    opened.out.result(&json!({"freeze": freeze, "made": made}), || {
        let already = if made { "" } else { "nothing was changed: " };
        let next = if freeze.is_in_force(now) || freeze.from <= freeze.at {
            "nothing is promoted meanwhile; canaries go on, and every way back stays open"
        } else {
            "until it begins, promotions go on"
        };
        format!("{already}{}\n{next}", plain(&sentence(&freeze, now)))
    });
    Ok(Exit::Ok)
}

/// `refit unfreeze`.
pub async fn unfreeze(opened: &Opened, args: &Unfreeze) -> Result<Exit, CliError> {
    let store = opened.store().await?;
    let scope = match &args.which {
        None => FreezeScope::EveryModel,
        Some(word) => scope(opened, &store, word).await?,
    };
    let now = opened.clock.now();
    let lifted = store.unfreeze(&scope, &actor(), now).await.doing(|| "lift the freeze".to_owned())?;
    opened.poke().await;
    let open = store.open_freezes(now).await.doing(|| "read the freezes".to_owned())?;
    opened.out.result(&json!({"lifted": lifted, "open": open}), || {
        let mut lines: Vec<String> =
            lifted.iter().map(|freeze| format!("lifted: {} {freeze}", whose(freeze))).collect();
        if lifted.is_empty() {
            lines.push(match &scope {
                FreezeScope::EveryModel => "no freeze of every model was there to lift".to_owned(),
                FreezeScope::Model(model) => format!("no freeze of {model} was there to lift"),
                FreezeScope::One(_) => "it was over already".to_owned(),
            });
        }
        lines.extend(open.iter().map(|freeze| format!("stays: {}", sentence(freeze, now))));
        plain(&lines.join("\n"))
    });
    Ok(Exit::Ok)
}

async fn list(opened: &Opened, store: &Arc<dyn Store>, model: Option<&ModelName>) -> Result<Exit, CliError> {
    let freezes = store.freezes(model, LISTED).await.doing(|| "read the freezes".to_owned())?;
    opened.out.result(&freezes, || {
        if freezes.is_empty() {
            return "nothing was ever frozen".to_owned();
        }
        let rows = freezes.iter().map(|freeze| {
            let end = match (&freeze.lifted, freeze.until) {
                (Some(lifted), _) => format!("lifted {} by {}", time(lifted.at), lifted.by),
                (None, Some(until)) => time(until),
                (None, None) => "-".to_owned(),
            };
            let model = freeze.model.as_ref().map_or("every model".to_owned(), ToString::to_string);
            vec![short(freeze.id), model, time(freeze.from), end, freeze.by.clone(), freeze.reason.clone()]
        });
        table(&["FREEZE", "MODEL", "FROM", "UNTIL", "BY", "WHY"], rows)
    });
    Ok(Exit::Ok)
}

/// A freeze that is not over, as a sentence with how to lift it.
pub(super) fn sentence(freeze: &Freeze, now: Timestamp) -> String {
    let lift = format!("`{}`", how_to_lift(freeze));
    // Of a freeze that was made just now by the database's clock, this one's may be behind.
    if freeze.is_in_force(now) || freeze.from <= freeze.at {
        format!("{} is {freeze} ({lift})", whose(freeze))
    } else {
        format!("{} will be frozen from {} {} ({lift})", whose(freeze), time(freeze.from), freeze.terms())
    }
}

/// The command that lifts this freeze, and no other.
pub(super) fn how_to_lift(freeze: &Freeze) -> String {
    format!("refit unfreeze {}", short(freeze.id))
}

fn whose(freeze: &Freeze) -> String {
    freeze.model.as_ref().map_or("every model".to_owned(), ToString::to_string)
}

/// The end of its id, as of runs.
fn short(id: FreezeId) -> String {
    pick::short_of(id.0)
}

/// A model of the project by its name.
async fn known(opened: &Opened, store: &Arc<dyn Store>, name: &str) -> Result<ModelName, CliError> {
    let models = pick::models(opened, store).await?;
    if let Some(model) = models.iter().find(|model| model.as_str() == name) {
        return Ok(model.clone());
    }
    Err(unknown(format!("there is no model `{name}`"), name, &models))
}

/// What a word after `unfreeze` means.
async fn scope(opened: &Opened, store: &Arc<dyn Store>, word: &str) -> Result<FreezeScope, CliError> {
    let models = pick::models(opened, store).await?;
    if let Some(model) = models.iter().find(|model| model.as_str() == word) {
        return Ok(FreezeScope::Model(model.clone()));
    }
    let freezes = store.freezes(None, LISTED).await.doing(|| "read the freezes".to_owned())?;
    // A model that has neither versions nor a workflow any more may still be frozen.
    if let Some(model) =
        freezes.iter().filter_map(|freeze| freeze.model.as_ref()).find(|it| it.as_str() == word)
    {
        return Ok(FreezeScope::Model(model.clone()));
    }
    let part: String = word.chars().filter(|c| *c != '-').collect::<String>().to_ascii_lowercase();
    let fits = |id: FreezeId| part.len() >= SHORTEST_PART && pick::is_part(&part, id.0);
    let found: Vec<FreezeId> = freezes.iter().map(|freeze| freeze.id).filter(|id| fits(*id)).collect();
    match found.as_slice() {
        [one] => Ok(FreezeScope::One(*one)),
        [] => Err(unknown(format!("there is no model and no freeze `{word}`"), word, &models)),
        several => Err(CliError::usage(format!("`{word}` fits {} freezes", several.len()))
            .hint("write more of it; `refit freeze --list` shows the ends of their ids")),
    }
}

fn unknown(message: String, word: &str, models: &[ModelName]) -> CliError {
    let error = CliError::usage(message);
    match pick::nearest(word, models.iter().map(ModelName::as_str)) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint("`refit freeze --list` shows what was frozen, `refit status` what is"),
    }
}
