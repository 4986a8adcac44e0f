//! Targets: what shows a release to the apps that serve the model. One file each.
//!
//! * `pointer`, `vercel_config`: the release document where apps read it
//! * `vercel`: environment variables, and the app built again
//! * `http`, `command`: any other host, by requests or programs of the team's own
//! * `succession`: whether one document may take the place of another
//! * `probe`, `smoked`: asking the app itself

pub mod command;
pub mod http;
pub mod pointer;
mod probe;
mod smoked;
mod span;
mod succession;
pub mod vercel;
pub mod vercel_config;

use std::sync::Arc;

use serde_json::Value;

use self::probe::ProbeOptions;
use self::smoked::Smoked;
use crate::adapter::{Adapter, BuildError, Deps, Target, build_of, options_of};

/// The targets there are.
const ADAPTERS: &[Adapter<Arc<dyn Target>>] =
    &[pointer::ADAPTER, vercel_config::ADAPTER, vercel::ADAPTER, http::ADAPTER, command::ADAPTER];

/// Makes the target of one table `[targets.*]` of `refit.toml`. Whatever its kind, it may have `smoke`.
pub fn build(mut options: Value, deps: &Deps) -> Result<Arc<dyn Target>, BuildError> {
    let smoke = options.as_object_mut().and_then(|table| table.remove("smoke"));
    let target = build_of("target", ADAPTERS, options, deps)?;
    let Some(smoke) = smoke else { return Ok(target) };
    let smoke: ProbeOptions = options_of("smoke", smoke)?;
    Ok(Arc::new(Smoked { target, smoke: smoke.build("smoke", "the smoke check", deps)? }))
}
