//! Whether a worker of this machine lives: each holds an exclusive lock on a
//! file of its own, which the kernel drops when the process ends, however it
//! ends. No process ids, no wall clock.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::domain::id::WorkerId;

/// What the lock file of a worker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Its lock is held.
    Alive,
    /// Its lock is free.
    Dead,
    /// There is no lock file.
    NoFile,
}

/// The lock files of one directory.
#[derive(Debug)]
pub(crate) struct Liveness {
    dir: PathBuf,
    machine: Option<String>,
    held: Mutex<HashMap<WorkerId, File>>,
}

impl Liveness {
    /// Uses `dir`, which is made when missing.
    pub(crate) fn in_dir(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self { dir: dir.to_owned(), machine: None, held: Mutex::default() })
    }

    /// Uses `dir`, which is on the machine that calls itself `machine`.
    pub(crate) fn on_machine(dir: &Path, machine: String) -> io::Result<Self> {
        Ok(Self { machine: Some(machine), ..Self::in_dir(dir)? })
    }

    /// The machine, where several share the database.
    pub(crate) fn machine(&self) -> Option<&str> {
        self.machine.as_deref()
    }

    fn path(&self, worker: WorkerId) -> PathBuf {
        self.dir.join(format!("{worker}.lock"))
    }

    /// Takes the lock of `worker` for the life of this process, or until `forget`; whoever has it keeps it.
    pub(crate) fn enter(&self, worker: WorkerId) -> io::Result<()> {
        if self.held.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&worker) {
            return Ok(());
        }
        let file = File::options().create(true).truncate(false).write(true).open(self.path(worker))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => io::Error::from(io::ErrorKind::WouldBlock),
        })?;
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(worker, file);
        Ok(())
    }

    /// Drops the lock of `worker`, here or left by a dead process, and its file.
    pub(crate) fn forget(&self, worker: WorkerId) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&worker);
        // Already gone when two processes tidy up after a third.
        let _ = fs::remove_file(self.path(worker));
    }

    /// Looks at the lock of `worker`.
    pub(crate) fn of(&self, worker: WorkerId) -> Life {
        match File::open(self.path(worker)) {
            // Shared, so that two processes that look at once do not take each other for the worker.
            Ok(file) => match file.try_lock_shared() {
                Ok(()) => Life::Dead,
                Err(_) => Life::Alive,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Life::NoFile,
            Err(_) => Life::Alive,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_lives_as_long_as_its_lock_is_held() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mine, other) =
            (Liveness::in_dir(dir.path()).expect("made"), Liveness::in_dir(dir.path()).expect("made"));
        let worker = WorkerId::generate();
        assert_eq!(other.of(worker), Life::NoFile);
        mine.enter(worker).expect("free");
        assert_eq!((other.of(worker), mine.of(worker)), (Life::Alive, Life::Alive));
        assert!(other.enter(worker).is_err(), "held by another");
        mine.enter(worker).expect("held already");
        drop(mine);
        assert_eq!(other.of(worker), Life::Dead);
        other.forget(worker);
        assert_eq!(other.of(worker), Life::NoFile);
    }
}
