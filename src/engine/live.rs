//! Which runs this process works on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::domain::id::RunId;

/// Runs that this process works on.
#[derive(Default)]
pub struct Live {
    runs: Mutex<HashMap<RunId, Arc<Nudge>>>,
}

/// A wake-up for a run that is worked on already.
#[derive(Default)]
pub(super) struct Nudge {
    /// The renewer looks at the database now: somebody may have told the run something.
    pub(super) look: Notify,
    /// Another claim is tried once the run was given back: the wake-up may be news.
    again: AtomicBool,
}

impl Live {
    /// Enters a run; `None` when this process works on it already (it is nudged).
    pub(super) fn enter(&self, run: RunId) -> Option<Entered<'_>> {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nudge) = runs.get(&run) {
            nudge.again.store(true, Ordering::SeqCst);
            nudge.look.notify_one();
            return None;
        }
        let nudge = Arc::new(Nudge::default());
        runs.insert(run, Arc::clone(&nudge));
        Some(Entered { live: self, run, nudge })
    }

    /// Whoever has `run` here, or any run where none is named, looks at what it was told.
    pub(super) fn look(&self, run: Option<RunId>) {
        let runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        match run {
            Some(run) => runs.get(&run).into_iter().for_each(|nudge| nudge.look.notify_one()),
            None => runs.values().for_each(|nudge| nudge.look.notify_one()),
        }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A run that was entered; left when dropped, also by a panic.
pub(super) struct Entered<'a> {
    live: &'a Live,
    run: RunId,
    /// What wakes it meanwhile.
    pub(super) nudge: Arc<Nudge>,
}

impl Entered<'_> {
    /// Leaves, unless it was nudged since: then false, and it is still entered.
    pub(super) fn leave_if_quiet(&self) -> bool {
        let mut runs = self.live.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let nudged = self.nudge.again.swap(false, Ordering::SeqCst);
        if !nudged {
            runs.remove(&self.run);
        }
        !nudged
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut runs = self.live.runs.lock().unwrap_or_else(PoisonError::into_inner);
        // A later activation of the same run may have entered since.
        if runs.get(&self.run).is_some_and(|nudge| Arc::ptr_eq(nudge, &self.nudge)) {
            runs.remove(&self.run);
        }
    }
}
