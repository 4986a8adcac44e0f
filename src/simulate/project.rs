//! Where a training works. One that leaves files in the project gets a copy of
//! it: what is simulated never takes the place of what is real, two at once do
//! not meet, and no week finds what another one left.

use std::io;
use std::path::{Path, PathBuf};

use super::{SimulateError, Simulation};
use crate::domain::workflow::{Step, StepKind};

impl Simulation {
    /// The project for the one training that works in `slot` now.
    pub(super) fn project_for(&self, slot: usize) -> Result<PathBuf, SimulateError> {
        let leaves_files = |step: &Step| matches!(&step.kind, StepKind::Run(run) if run.outputs.is_some());
        if !self.workflow.steps.iter().any(leaves_files) {
            return Ok(self.project.clone());
        }
        let to = self.copies().join(slot.to_string());
        let disk = |cause| SimulateError::Disk { path: to.display().to_string(), cause };
        fresh(&self.project, &to).map_err(disk)?;
        Ok(to)
    }

    /// Removes what trainings worked in.
    pub(super) fn clear_copies(&self) -> Result<(), SimulateError> {
        let copies = self.copies();
        clear(&copies).map_err(|cause| SimulateError::Disk { path: copies.display().to_string(), cause })
    }

    fn copies(&self) -> PathBuf {
        self.dir.join("projects")
    }
}

/// A copy with nothing of an earlier one, nor of one that broke off.
fn fresh(project: &Path, to: &Path) -> io::Result<()> {
    clear(to)?;
    copy(project, to)
}

/// Removes a directory with all that is in it, if it is there.
pub(super) fn clear(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Everything but refit's own files and the history of the project's.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == ".refit" || name == ".git" {
            continue;
        }
        let (path, target) = (entry.path(), to.join(&name));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&path, &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&path)?, target)?;
        } else if kind.is_file() {
            std::fs::copy(&path, target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_finds_nothing_that_another_left_nor_half_a_project() {
        let dir = tempfile::tempdir().expect("a directory");
        let (project, to) = (dir.path().join("project"), dir.path().join("projects/0"));
        for path in ["src/train.py", ".git/HEAD", ".refit/refit.db"] {
            let path = project.join(path);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            std::fs::write(path, "its").expect("written");
        }
        // A copy that broke off, with what the training of another week left.
        std::fs::create_dir_all(to.join("out")).expect("made");
        std::fs::write(to.join("out/model.json"), "of another week").expect("written");
        fresh(&project, &to).expect("copied");
        let names = |dir: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(dir).expect("there").map(|entry| entry.expect("readable"));
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(
            (names(&to), names(&to.join("src"))),
            (vec!["src".to_owned()], vec!["train.py".to_owned()])
        );
    }
}
