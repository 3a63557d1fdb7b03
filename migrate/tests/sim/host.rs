//! A host that builds simulated guests.

use std::sync::{Arc, Mutex, PoisonError};

use migrate::guest::{Arriving, Description, Host, Result};

use super::{Habit, Runners, Sim};

/// A host that builds sims.
pub(crate) struct SimHost {
    pub(crate) habit: Habit,
    pub(crate) runners: Runners,
    pub(crate) reasons: Vec<String>,
    /// Why pages cannot be missing here.
    pub(crate) no_postcopy: Option<String>,
    /// Shared with who wants to look at the machine afterwards.
    pub(crate) built: Arc<Mutex<Option<Arc<Sim>>>>,
    pub(crate) prepare: fn(&Sim),
}

impl SimHost {
    pub(crate) fn new(habit: Habit, runners: &Runners) -> Self {
        Self {
            habit,
            runners: runners.clone(),
            reasons: vec![],
            no_postcopy: None,
            built: Arc::default(),
            prepare: |_| {},
        }
    }

    /// The machine built last.
    pub(crate) fn guest(&self) -> Option<Arc<Sim>> {
        self.built.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn shut_down(&self) {
        if let Some(sim) = self.guest() {
            sim.shut_down();
        }
    }
}

impl Host for SimHost {
    fn examine(&self, _: &Description, postcopy: bool) -> Vec<String> {
        let missing = self.no_postcopy.iter().filter(|_| postcopy);
        self.reasons.iter().chain(missing).cloned().collect()
    }

    fn build(&self, guest: &Description) -> Result<Arc<dyn Arriving>> {
        let sim = Sim::blank(Habit { pages: guest.pages(), ..self.habit }, self.runners.clone());
        sim.epoch.store(guest.epoch, std::sync::atomic::Ordering::SeqCst);
        (self.prepare)(&sim);
        *self.built.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&sim));
        Ok(sim)
    }
}
