//! A directory of this machine. Every write is on the disk, file and
//! directory, before it counts as made.

use std::path::PathBuf;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use serde::Deserialize;
use serde_json::Value;

use crate::adapter::{Adapter, ArtifactStore, BuildError, Deps, PublicBase, options_of};

/// `kind = "local"`.
pub const ADAPTER: Adapter<ArtifactStore> = Adapter { kind: "local", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The directory, relative to the project; made when it is not there.
    path: PathBuf,
    /// The address at which a web server shows the directory, if one does.
    public_url: Option<url::Url>,
    /// Files are compressed.
    #[serde(default)]
    gzip: bool,
}

fn build(options: Value, deps: &Deps) -> Result<ArtifactStore, BuildError> {
    let Options { path, public_url, gzip } = options_of(ADAPTER.kind, options)?;
    let dir = deps.project.join(path);
    let problem = |problem: String| BuildError::Options { kind: ADAPTER.kind, problem };
    std::fs::create_dir_all(&dir)
        .map_err(|error| problem(format!("cannot make the directory {}: {error}", dir.display())))?;
    let dir = dir
        .canonicalize()
        .map_err(|error| problem(format!("cannot find the directory {}: {error}", dir.display())))?;
    let objects = LocalFileSystem::new_with_prefix(&dir).map_err(|error| problem(error.to_string()))?;
    let place = dir.to_str().ok_or_else(|| problem(format!("{} is not text", dir.display())))?;
    let public_base = match public_url {
        Some(url) => url.as_str().trim_end_matches('/').to_owned(),
        None => place.trim_end_matches('/').to_owned(),
    };
    Ok(ArtifactStore {
        // A deleted version leaves no empty directory behind.
        objects: Arc::new(objects.with_fsync(true).with_automatic_cleanup(true)),
        prefix: Path::default(),
        public_base: PublicBase::Stated(public_base),
        label: format!("directory {place}"),
        gzip,
    })
}
