//! Targets: what shows a release to the apps that serve the model. One file each.

pub mod pointer;

use std::sync::Arc;

use serde_json::Value;

use crate::adapter::{Adapter, BuildError, Deps, Target, build_of};

/// The targets there are.
const ADAPTERS: &[Adapter<Arc<dyn Target>>] = &[pointer::ADAPTER];

/// Makes the target of one table `[targets.*]` of `refit.toml`.
pub fn build(options: Value, deps: &Deps) -> Result<Arc<dyn Target>, BuildError> {
    build_of("target", ADAPTERS, options, deps)
}
