//! One run: two fresh processes, a guest that boots, works and is watched, one move, and whether the guest is whole.

use std::time::Duration;

use serde::Serialize;
use vmm::lab::backed::{BackedMemory, MakingWay};
use vmm::lab::usage::VCPU_THREADS;

use super::cells::Cell;
use super::error::PeersError;
use super::ruler::{self, Consoles, GuestFigures, Rhythm};
use super::usage::{Cost, Meters, Resident};
use super::ways::{How, Way};
use super::{Peers, Told, cloud_hypervisor, ours, qemu};
use crate::{Process, World};

/// After which what a process had to say of a move that failed has been said.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// Boot and fill: a fixed part, and what a slow host needs for each MiB.
const BOOT: Duration = Duration::from_secs(30);
const FILL_PER_MIB: Duration = Duration::from_millis(50);
/// The guest reports every second, unless it stands still.
const REPORTS: Duration = Duration::from_secs(20);

/// All figures of a run that was good.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// What the guest measured.
    #[serde(flatten)]
    pub guest: GuestFigures,
    /// From the command until both sides had ended the migration, by this program's clock; ms.
    pub total_ms: f64,
    /// What the VMM says of it itself, if it does; ms.
    pub reported_total_ms: Option<f64>,
    /// The pause as the VMM's own hosts saw it, ms. No part in any comparison: the guest's gap is.
    pub reported_downtime_ms: Option<f64>,
    /// Bytes sent: what a slow network has carried; else as the VMM says, and what loopback has carried where it does not.
    pub wire_bytes: u64,
    /// What it cost the host.
    #[serde(flatten)]
    pub cost: Cost,
}

/// Boots the guest, moves it in this way, and measures.
pub(super) async fn run(
    world: &World,
    cell: &Cell,
    way: &Way,
    peers: &Peers,
    rhythm: Rhythm,
) -> Result<Figures, PeersError> {
    match &way.how {
        How::Vmm { mode, streams } => {
            let pair = ours::Pair::start(world, &cell.guest);
            let (source, destination) = (&pair.source, &pair.destination);
            let moved = async {
                let mut watch =
                    Watch::begin(world, cell, rhythm, [source, destination], VCPU_THREADS).await?;
                let told = pair.migrate(world, (*mode, *streams), cell.network, &mut watch.meters).await?;
                watch.end(told).await
            };
            moved.await.map_err(|error| with_last_words(error, [source, destination]))
        }
        How::Qemu(way) => {
            let pair = peers.qemu.pair(world, &cell.guest)?;
            let (source, destination) = (&pair.source, &pair.destination);
            let moved = async {
                let ready = pair.prepare(way, cell.network).await?;
                let watch =
                    Watch::begin(world, cell, rhythm, [source, destination], qemu::VCPU_THREADS).await?;
                let told = ready.migrate(way).await?;
                watch.end(told).await
            };
            moved.await.map_err(|error| with_last_words(error, [source, destination]))
        }
        How::CloudHypervisor(way) => {
            let absent = || PeersError::Failed("it is not installed here".to_owned());
            let pair = peers.cloud_hypervisor.as_ref().ok_or_else(absent)?.pair(world, &cell.guest)?;
            let (source, destination) = (&pair.source, &pair.destination);
            let moved = async {
                let ready = pair.prepare(*way, cell.network).await?;
                let mut watch =
                    Watch::begin(world, cell, rhythm, [source, destination], VCPU_THREADS).await?;
                let told = ready.migrate(&mut watch.meters).await?;
                watch.end(told).await
            };
            let moved = moved.await;
            if moved.is_err() {
                // The destination's command fails before the source says why.
                tokio::time::sleep(LAST_WORDS).await;
            }
            moved.map_err(|error| with_last_words(error, [source, destination]))
        }
    }
}

/// A guest and two processes under watch.
struct Watch {
    consoles: Consoles,
    meters: Meters,
    making_way: Option<MakingWay>,
    destination: u32,
    rhythm: Rhythm,
    /// Reports made before the move began.
    start: usize,
}

impl Watch {
    /// Waits until the guest has worked long enough to know its pace. A report has just been made then, and the host has
    /// memory at hand for the destination: taken while the guest fills its own, let go of as the destination takes it.
    async fn begin(
        world: &World,
        cell: &Cell,
        rhythm: Rhythm,
        [source, destination]: [&Process; 2],
        vcpus: &'static str,
    ) -> Result<Self, PeersError> {
        let consoles = Consoles::of(world);
        let fill = FILL_PER_MIB * u32::try_from(cell.guest.fill_mib).unwrap_or(u32::MAX);
        let filling = consoles.hear(1, BOOT + fill, "the guest fills its memory and begins to work");
        let taking = async {
            let backed = BackedMemory::for_guest(&cell.guest).await?;
            // The report that the guest is at is not of an undisturbed second.
            Ok::<_, PeersError>((backed, consoles.measured() + 1 + rhythm.before))
        };
        let (filled, taken) = tokio::join!(filling, taking);
        let (guest, (backed, start)) = (filled.map(|()| Resident::of(source.id()).guest)?, taken?);
        consoles.hear(start, REPORTS, "the guest reports from its work").await?;
        let making_way = Some(backed.make_way_for(destination.id())?);
        let meters = Meters::start([source.id(), destination.id()], vcpus, guest)?;
        Ok(Self { consoles, meters, making_way, destination: destination.id(), rhythm, start })
    }

    /// The move is over: the figures, if the guest is whole.
    async fn end(mut self, told: Told) -> Result<Figures, PeersError> {
        self.meters.read();
        self.making_way = None;
        let end = self.consoles.measured();
        let last = end + 1 + self.rhythm.after;
        self.consoles.hear(last, REPORTS, "the guest reports from where it has moved to").await?;
        // Only now: to walk through a guest's memory takes the host a while.
        let cost = self.meters.cost(self.destination);
        let transcript = self.consoles.transcript();
        transcript.check().map_err(PeersError::Failed)?;
        let guest = ruler::measure(&transcript.work(), self.rhythm.before, self.start, end)
            .ok_or_else(|| PeersError::Failed("the guest's reports do not cover the move".to_owned()))?;
        Ok(Figures {
            guest,
            total_ms: told.wall.as_secs_f64() * 1e3,
            reported_total_ms: told.total_ms,
            reported_downtime_ms: told.downtime_ms,
            wire_bytes: told.wire_bytes,
            cost,
        })
    }
}

/// With what both processes complained of last, if they did.
fn with_last_words(error: PeersError, processes: [&Process; 2]) -> PeersError {
    if error.is_final() {
        return error;
    }
    let complains = |line: &&str| {
        ["vmm: ", qemu::PROGRAM].iter().any(|name| line.starts_with(name))
            || cloud_hypervisor::complains(line)
    };
    let last = |process: &Process| process.err().lines().rfind(complains).map(str::to_owned);
    let words: Vec<_> = processes.into_iter().filter_map(last).collect();
    let said = if words.is_empty() { String::new() } else { format!(" ({})", words.join("; ")) };
    PeersError::Failed(format!("{error}{said}"))
}
