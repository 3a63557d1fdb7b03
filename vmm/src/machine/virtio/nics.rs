//! The network interfaces of a machine: as they are described to another host, and their taps, connected.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::{Mac, NicConfig, TapConfig};
use crate::devices::virtio::{Tap, TapError};

/// A network interface, as the other host must have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicDescription {
    /// Its address.
    pub mac: Mac,
    /// Where its cable leads. A host that receives may have another place for it.
    pub tap: TapConfig,
}

impl NicDescription {
    /// Why this host has no network for it.
    pub(in crate::machine) fn unsupported(&self) -> Option<String> {
        Tap::open(&self.tap).err().map(|error| error.to_string())
    }
}

/// A network interface that is to be built.
#[derive(Debug)]
pub(super) struct NicPlan {
    pub(super) tap: Arc<Tap>,
    pub(super) description: NicDescription,
    /// The guest still runs elsewhere.
    pub(super) arriving: bool,
}

impl NicPlan {
    /// For a guest that boots here.
    pub(super) fn for_boot(guest: Uuid, place: usize, nic: &NicConfig) -> Result<Self, TapError> {
        let mac = nic.mac.unwrap_or_else(|| Mac::for_place(guest, place));
        let description = NicDescription { mac, tap: nic.tap.clone() };
        Ok(Self { tap: Arc::new(Tap::open(&nic.tap)?), description, arriving: false })
    }

    /// For a guest that boots again with the tap that it has.
    pub(super) fn for_reboot(nic: &NicDescription, tap: &Arc<Tap>) -> Self {
        Self { tap: Arc::clone(tap), description: nic.clone(), arriving: false }
    }

    /// For a guest that comes from elsewhere.
    pub(super) fn for_arrival(nic: &NicDescription) -> Result<Self, TapError> {
        Ok(Self { tap: Arc::new(Tap::open(&nic.tap)?), description: nic.clone(), arriving: true })
    }
}
