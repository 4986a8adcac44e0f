//! The demo's project: unpacked, so that it can be looked at and run again.

use std::path::Path;

use super::DemoError;

/// The workflow's name.
pub const WORKFLOW: &str = "retrain";
/// The release document, which the prediction server reads.
pub const RELEASE: &str = "release.json";

const FILES: &[(&str, &str)] = &[
    ("workflows/retrain.yaml", include_str!("../../examples/flights/retrain.yaml")),
    ("refit.toml", include_str!("../../examples/flights/refit.toml")),
    ("README.md", include_str!("../../examples/flights/README.md")),
    ("model.py", include_str!("../../examples/flights/model.py")),
    ("trainer.py", include_str!("../../examples/flights/trainer.py")),
    ("train.py", include_str!("../../examples/flights/train.py")),
    ("train_ridge.py", include_str!("../../examples/flights/train_ridge.py")),
    ("train_route_mean.py", include_str!("../../examples/flights/train_route_mean.py")),
    ("serve.py", include_str!("../../examples/flights/serve.py")),
];

/// Writes the demo's files into `root`, which must be empty or not be there.
pub fn unpack(root: &Path) -> Result<(), DemoError> {
    let taken = std::fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some());
    if taken {
        return Err(DemoError::NotEmpty(root.display().to_string()));
    }
    for directory in ["workflows", "export"] {
        let path = root.join(directory);
        std::fs::create_dir_all(&path)
            .map_err(|cause| DemoError::File { path: path.display().to_string(), cause })?;
    }
    for (name, text) in FILES {
        let path = root.join(name);
        std::fs::write(&path, text)
            .map_err(|cause| DemoError::File { path: path.display().to_string(), cause })?;
    }
    Ok(())
}
