//! What plain TCP can do on this host between memories of the kind guests have: the measure of every move.
//!
//! Into memory never touched the kernel has to find and clear a page for every page that lands, which takes longer
//! than the copy itself. A move lands in such memory; so both are measured, the second time into the same memory. And a
//! move has not the whole host: what is left beside the guest's vCPUs is measured as well, and for how long a thread in their
//! place stands still meanwhile. No guest stands still for less in a move of that length.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use migrate::channel::whole::time_for;
use migrate::channel::within::{keep_in_cache, stream_to};
use migrate::priority::{give_way, share_a_core};
use scheduling::thread_time;
use serde::Serialize;

use super::busy::Busy;
use crate::lab::LabError;
use crate::lab::backed::BackedMemory;
use crate::lab::guest::GuestPlan;
use crate::lab::stats::Spread;
use crate::lab::table::ms;
use crate::memory::bulk;
use crate::memory::layout::Layout;
use crate::memory::ram::GuestRam;

/// Times each throughput is measured.
const TIMES: usize = 3;
/// Bytes in one call, as in a move.
const PIECE: u64 = 1 << 20;
/// Enough for a steady figure, and all of it in one region of RAM.
const MOST_BYTES: u64 = 1 << 30;
const LEAST_BYTES: u64 = 256 << 20;
/// Bytes there and back, for the round trip; fewer where they take longer than this.
const PINGS: usize = 1000;
const PINGING: Duration = Duration::from_secs(1);
/// No read or write may take longer.
const DEADLINE: Duration = Duration::from_secs(20);

/// The figures. Throughputs in bytes per second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RawTcp {
    /// Connections.
    pub streams: u32,
    /// Bytes sent for each figure.
    pub bytes: u64,
    /// Into memory never touched.
    pub cold_bytes_per_s: Spread,
    /// Into memory touched before.
    pub warm_bytes_per_s: Spread,
    /// Into memory never touched, beside threads that do the work of the guest's vCPUs, to which the threads that send and
    /// receive give way as a move's do.
    pub beside_bytes_per_s: Spread,
    /// The longest time one of these busy threads stood still while as many bytes went by as the guest has filled, µs.
    pub beside_gap_us: Spread,
    /// CPU time that sending and receiving took there, of both sides, for each GiB.
    pub beside_cpu_s_per_gib: Spread,
    /// What one of them meanwhile did not do of its work, in time at its own pace, µs.
    pub beside_lost_us: Spread,
    /// One byte there and back, µs, median.
    pub round_trip_us: f64,
}

impl RawTcp {
    /// Measures with as many bytes as the guest's memory has.
    ///
    /// # Errors
    /// When the host has no memory for it, or loopback fails.
    ///
    /// # Panics
    /// When the measuring thread does.
    pub async fn measure(streams: u32, guest: &GuestPlan) -> Result<Self, LabError> {
        let filled = guest.fill_mib << 20;
        let bytes = filled.clamp(LEAST_BYTES, MOST_BYTES);
        let laps = filled.div_ceil(bytes).max(1);
        let guest = *guest;
        let measuring = tokio::task::spawn_blocking(move || measure(streams, bytes, laps, &guest));
        measuring.await.expect("measuring does not panic")
    }

    /// For people.
    #[must_use]
    pub fn line(&self) -> String {
        let gb = |spread: Spread| spread.median / 1e9;
        let (cold, warm) = (gb(self.cold_bytes_per_s), gb(self.warm_bytes_per_s));
        let beside = gb(self.beside_bytes_per_s);
        let connections = if self.streams == 1 { "connection" } else { "connections" };
        format!(
            "{cold:.1} GB/s into untouched memory ({beside:.1}, with {:.2} s of CPU a GiB, beside busy threads, which stood still \
             for {} ms at most and lost {} ms of their work), {warm:.1} GB/s into touched memory by {} {connections}; round trip {:.0} µs",
            self.beside_cpu_s_per_gib.median,
            ms(self.beside_gap_us.median),
            ms(self.beside_lost_us.median),
            self.streams,
            self.round_trip_us
        )
    }
}

/// `laps`: how many times as many bytes go by the busy threads.
fn measure(streams: u32, bytes: u64, laps: u64, guest: &GuestPlan) -> Result<RawTcp, LabError> {
    let memory = || {
        let layout = Layout::for_bytes(bytes).and_then(GuestRam::new);
        layout.map_err(|error| LabError::Arguments(error.to_string()))
    };
    let source = memory()?;
    let filling: Vec<u8> = (0..PIECE).map(|at| (at % 251) as u8).collect();
    (0..bytes).step_by(PIECE as usize).for_each(|gpa| bulk::copy_in(&source, gpa, &filling));
    let busy = Busy::of(guest).map_err(|error| LabError::Arguments(error.to_string()))?;
    let (mut cold, mut warm, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cpus, mut gaps, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TIMES {
        // Let go of right before it is taken: a host below has it back within a second or two.
        drop(BackedMemory::take(bytes)?);
        let destination = memory()?;
        let transfer = |to: &Arc<GuestRam>, pairs: &[_]| {
            transfer(&source, to, pairs, bytes).map_err(LabError::host("measure plain TCP"))
        };
        let rate = |cost: Cost| bytes as f64 / cost.took.as_secs_f64();
        let pairs = connections(streams, false).map_err(LabError::host("measure plain TCP"))?;
        cold.push(rate(transfer(&destination, &pairs)?));
        warm.push(rate(transfer(&destination, &pairs)?));
        let (fresh, backed) = (memory()?, BackedMemory::take(bytes)?);
        let pairs = connections(streams, share_a_core(guest.cpus.get(), streams))
            .map_err(LabError::host("measure plain TCP"))?;
        let (costs, noticed) = busy.beside(|| {
            drop(backed);
            (0..laps).map(|_| transfer(&fresh, &pairs)).collect::<Result<Vec<_>, LabError>>()
        });
        // The first lap only: later ones go into memory that was touched.
        let first = costs?[0];
        beside.push(rate(first));
        cpus.push(first.cpu.as_secs_f64() * (1 << 30) as f64 / bytes as f64);
        gaps.push(noticed.gap.as_secs_f64() * 1e6);
        lost.push(noticed.lost.as_secs_f64() * 1e6);
    }
    let round_trip = connect().and_then(|(near, far)| round_trip(near, far));
    Ok(RawTcp {
        streams,
        bytes,
        cold_bytes_per_s: Spread::of(cold).expect("was measured"),
        warm_bytes_per_s: Spread::of(warm).expect("was measured"),
        beside_bytes_per_s: Spread::of(beside).expect("was measured"),
        beside_cpu_s_per_gib: Spread::of(cpus).expect("was measured"),
        beside_gap_us: Spread::of(gaps).expect("was measured"),
        beside_lost_us: Spread::of(lost).expect("was measured"),
        round_trip_us: round_trip.map_err(LabError::host("measure a round trip"))?,
    })
}

/// What it took to send all of a memory.
#[derive(Debug, Clone, Copy)]
struct Cost {
    took: Duration,
    /// Of all threads.
    cpu: Duration,
}

/// Sends all of one memory to the other, each connection its share, and says what that took.
fn transfer(
    from: &Arc<GuestRam>,
    to: &Arc<GuestRam>,
    pairs: &[(TcpStream, TcpStream)],
    bytes: u64,
) -> io::Result<Cost> {
    let streams = pairs.len() as u64;
    let pieces = bytes / PIECE;
    let share = |stream: u64| {
        let cut = |stream: u64| pieces * stream / streams * PIECE;
        (cut(stream)..cut(stream + 1)).step_by(PIECE as usize).map(|gpa| (gpa, PIECE))
    };
    let start = Instant::now();
    let cpu: Duration = thread::scope(|scope| {
        let mut workers = Vec::new();
        for (stream, (near, far)) in pairs.iter().enumerate() {
            let share = share(stream as u64);
            let theirs = share.clone();
            workers.push(scope.spawn(move || {
                give_way();
                share.into_iter().try_for_each(|piece| bulk::send(from, &[], &[piece], near.as_fd()))?;
                io::Result::Ok(thread_time())
            }));
            workers.push(scope.spawn(move || {
                give_way();
                theirs
                    .into_iter()
                    .try_for_each(|piece| bulk::receive(to, &[piece], far.as_fd(), time_for))?;
                Ok(thread_time())
            }));
        }
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker does not panic"))
            .sum::<io::Result<_>>()
    })?;
    Ok(Cost { took: start.elapsed(), cpu })
}

/// One byte there and back between both ends of a connection, µs.
pub(super) fn round_trip(mut near: TcpStream, mut far: TcpStream) -> io::Result<f64> {
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut byte = [0];
            while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
        });
        let ping = |_| {
            let start = Instant::now();
            near.write_all(&[0])?;
            near.read_exact(&mut [0])?;
            Ok(start.elapsed().as_secs_f64() * 1e6)
        };
        let until = Instant::now() + PINGING;
        let times = (0..PINGS)
            .take_while(|pings| *pings == 0 || Instant::now() < until)
            .map(ping)
            .collect::<io::Result<Vec<f64>>>();
        // The other side sees the end and ends as well, before the scope does.
        near.shutdown(std::net::Shutdown::Both)?;
        Ok(Spread::of(times?).expect("was measured").median)
    })
}

/// Both ends of so many, as a move makes them.
fn connections(streams: u32, in_cache: bool) -> io::Result<Vec<(TcpStream, TcpStream)>> {
    let pairs = (0..streams).map(|_| connect()).collect::<io::Result<Vec<_>>>()?;
    if in_cache {
        pairs.iter().for_each(|(near, _)| keep_in_cache(near));
    }
    Ok(pairs)
}

/// Both ends of a connection over loopback.
fn connect() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    connect_by(listener.local_addr()?, &listener)
}

/// Both ends of a connection by an address that leads to whoever listens.
pub(super) fn connect_by(to: SocketAddr, listener: &TcpListener) -> io::Result<(TcpStream, TcpStream)> {
    let near = stream_to(to, DEADLINE)?;
    let (far, _) = listener.accept()?;
    for socket in [&near, &far] {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
    }
    Ok((near, far))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_memory_arrives_by_each_number_of_connections() {
        let bytes = 32 << 20;
        let memory = || GuestRam::new(Layout::for_bytes(bytes).unwrap()).unwrap();
        let from = memory();
        (0..bytes).step_by(4096).for_each(|gpa| bulk::copy_in(&from, gpa, &(gpa | 1).to_le_bytes()));
        let hashes = |ram: &GuestRam| {
            let mut hashes = Vec::new();
            bulk::hash_pages(ram, 0, bytes, &mut hashes).unwrap();
            hashes
        };
        for streams in [1, 3] {
            let to = memory();
            let pairs = connections(streams, streams == 1).unwrap();
            let cost = transfer(&from, &to, &pairs, bytes).unwrap();
            assert!(!cost.took.is_zero() && !cost.cpu.is_zero(), "{cost:?}");
            assert!(hashes(&from) == hashes(&to), "{streams} connections");
        }
    }

    #[test]
    fn a_round_trip_takes_some_time() {
        let (near, far) = connect().unwrap();
        assert!(round_trip(near, far).unwrap() > 0.0);
    }
}
