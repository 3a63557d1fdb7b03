//! What the control API asks, answered from the guest's stage.

use migrate::Cancel;
use migrate::client::types::{Life, MigrationStatus, RecoverRequest, Resolution, Salvage, VmInfo};
use migrate::options::Options;
use migrate::progress::Event;
use tokio::sync::broadcast;

use crate::control::{Ending, Refusal, Vm};
use crate::devices::ConsoleReader;

use super::stage::Stage;
use super::{Inner, VmHandle, doubt, moving, salvage};

impl Vm for VmHandle {
    fn info(&self) -> VmInfo {
        let (stage, rebooting, reboots) = {
            let life = self.inner.lock();
            (life.stage.clone(), life.is_rebooting(), life.reboots)
        };
        let life = if rebooting { Life::Rebooting } else { stage.life() };
        let guest = stage.guest();
        // A guest that is still arriving must not be touched: its telemetry may be among the missing pages.
        let here = matches!(life, Life::Running | Life::Paused);
        let told = guest.filter(|_| here).and_then(|guest| guest.telemetry());
        VmInfo {
            name: self.inner.name.clone(),
            pid: std::process::id(),
            life,
            guest: guest.map(|guest| guest.identity().name.clone()),
            uuid: guest.map(|guest| guest.identity().uuid),
            memory: guest.map(|guest| guest.memory()),
            vcpus: guest.map(|guest| guest.description().vcpus),
            // Whom it waited for has come: the port is closed then, unless its source is to call again.
            listen: self.inner.listen.clone().filter(|_| matches!(life, Life::Waiting | Life::Unknown)),
            corruptions: told.as_ref().map(|told| told.corruptions),
            work_per_s: told.as_ref().map(|told| told.work_per_s),
            doubt: match &stage {
                Stage::InDoubt(doubt) => Some(doubt.words()),
                _ => None,
            },
            reboots,
        }
    }

    fn pause(&self) -> Result<(), Refusal> {
        let _one = self.inner.order();
        self.inner.stage().at_hand("pause")?.pause().map_err(failed)
    }

    fn resume(&self) -> Result<(), Refusal> {
        let _one = self.inner.order();
        self.inner.stage().at_hand("resume")?.resume().map_err(failed)
    }

    fn shutdown(&self) -> Result<(), Refusal> {
        let _one = self.inner.order();
        // Not while it moves: the state that has the button's may have left already.
        let guest = self.inner.stage();
        let guest = guest.at_hand("press the power button")?;
        if self.inner.lock().is_rebooting() {
            let why =
                "cannot press the power button: the guest has reset and is about to boot again; try again";
            return Err(Refusal::Conflict(why.into()));
        }
        guest.press_power_button().map_err(failed)
    }

    fn stop(&self) -> Result<(), Refusal> {
        let _one = self.inner.order();
        if !self.inner.end_waiting() {
            self.inner.stage().at_hand("stop")?.release();
            self.inner.end(Ending::Stopped);
        }
        Ok(())
    }

    fn console(&self) -> ConsoleReader {
        self.inner.console.listen()
    }

    fn type_in(&self, bytes: &[u8]) -> usize {
        self.inner.console.input(bytes)
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    fn start_migration(&self, options: Options) -> Result<(), Refusal> {
        moving::depart_in_background(self, options)
    }

    fn migration(&self) -> MigrationStatus {
        let life = self.inner.lock();
        let active = matches!(life.stage, Stage::Leaving(_));
        MigrationStatus { active, ..life.migration.clone() }
    }

    fn cancel_migration(&self) -> Result<(), Refusal> {
        let cancel = self.inner.leaving()?;
        cancel.cancel("cancelled by the operator").map_err(|error| Refusal::Conflict(error.to_string()))
    }

    fn continue_migration(&self) -> Result<(), Refusal> {
        self.inner.leaving()?.go_on().map_err(|error| Refusal::Conflict(error.to_string()))
    }

    fn recover(&self, request: RecoverRequest) -> Result<(), Refusal> {
        doubt::recover(self, &request)
    }

    fn resolve(&self, resolution: Resolution) -> Result<(), Refusal> {
        doubt::resolve(self, resolution)
    }

    fn salvage(&self) -> Result<Salvage, Refusal> {
        salvage::salvage(self)
    }

    fn wait_ended(&self) -> Ending {
        self.inner.wait_ended()
    }
}

impl Inner {
    /// The hand on the migration that is under way.
    fn leaving(&self) -> Result<Cancel, Refusal> {
        let cancel = self.lock().cancel.clone();
        cancel.ok_or_else(|| Refusal::Conflict("no migration is leaving from here".into()))
    }
}

fn failed(error: migrate::guest::GuestError) -> Refusal {
    Refusal::Failed(error.to_string())
}
