//! The figures of a run, each under the name it has in the document. Times in µs unless the name says otherwise.

use migrate::report::{Switchover, Takeover};

use crate::lab::journey::Hop;

/// A figure: its name, and where it comes from.
pub(super) type Figure = (&'static str, fn(&Hop) -> Option<f64>);

/// All of them.
pub(super) fn all() -> impl Iterator<Item = Figure> {
    STEPS.iter().map(|step| step.figure).chain(OTHERS.iter().copied())
}

/// A step of the pause, or a part of one.
pub(super) struct Step {
    /// What it is called where all of them are shown; parts are indented.
    pub(super) label: &'static str,
    pub(super) figure: Figure,
}

/// The pause, in order: the steps as the source measured them, below them what they are made of.
pub(super) const STEPS: &[Step] = &[
    step("pause the vCPUs", "pause_us", |hop| switchover(hop, |s| s.pause_us)),
    step("save the state", "save_us", |hop| switchover(hop, |s| s.save_us)),
    step("last harvest", "harvest_us", |hop| switchover(hop, |s| s.harvest_us)),
    step("send", "send_us", |hop| switchover(hop, |s| s.send_us)),
    step("until ready", "ready_us", |hop| switchover(hop, |s| s.ready_us)),
    step("  name missing pages", "missing_us", |hop| takeover(hop, |t| t.missing_us)),
    step("  restore the state", "restore_us", |hop| switchover(hop, |s| s.restore_us)),
    step("  wait for the last pages", "last_pages_us", |hop| takeover(hop, |t| t.last_pages_us)),
    step("  on the way", "ready_way_us", |hop| {
        let (s, t) = both(hop)?;
        Some(rest(s.send_us + s.ready_us, &[t.missing_us, s.restore_us, t.last_pages_us]))
    }),
    step("until it runs", "resume_us", |hop| switchover(hop, |s| s.resume_us)),
    step("  disks, and commit on record", "commit_us", |hop| switchover(hop, |s| s.commit_us)),
    step("  start there", "start_us", |hop| takeover(hop, |t| t.start_us)),
    step("  on the way", "resume_way_us", |hop| {
        let (s, t) = both(hop)?;
        Some(rest(s.resume_us, &[s.commit_us, t.start_us]))
    }),
    step("between the steps", "between_us", |hop| {
        let s = hop.report.switchover?;
        let steps = [s.pause_us, s.save_us, s.harvest_us, s.send_us, s.ready_us, s.resume_us];
        Some(rest(s.downtime_us, &steps))
    }),
    Step { label: "the whole pause", figure: DOWNTIME_HOST },
];

const fn step(label: &'static str, name: &'static str, of: fn(&Hop) -> Option<f64>) -> Step {
    Step { label, figure: (name, of) }
}

const OTHERS: &[Figure] = &[
    TOTAL,
    DOWNTIME_GUEST,
    ("pages_in_pause", |hop| switchover(hop, |s| s.pages)),
    BYTES,
    BYTES_PER_S,
    ("pages", |hop| Some(hop.report.traffic.pages as f64)),
    ("zero_pages", |hop| Some(hop.report.traffic.zero_pages as f64)),
    ROUNDS,
    FAULTS,
    FAULT_P50,
    FAULT_P99,
    ("last_page_us", |hop| Some(hop.report.postcopy?.last_page_us as f64)),
    ("tick_gap_us", |hop| Some(hop.report.guest_measured?.tick_gap_us)),
    ("work_before_per_s", |hop| Some(hop.report.guest_measured?.work_before_per_s)),
    ("work_during_per_s", |hop| Some(hop.report.guest_measured?.work_during_per_s)),
    ("work_after_per_s", |hop| Some(hop.report.guest_measured?.work_after_per_s)),
    WORK_LOST,
    ENGINE_CPU,
    ("vcpu_cpu_s", |hop| Some(hop.usage.vcpu_cpu())),
    ("stolen_s", |hop| Some(hop.usage.stolen_s)),
    SOURCE_RSS,
    DESTINATION_RSS,
];

pub(super) const TOTAL: Figure = ("total_us", |hop| Some(hop.report.total_us as f64));
pub(super) const DOWNTIME_GUEST: Figure =
    ("downtime_guest_us", |hop| Some(hop.report.guest_measured?.downtime_us));
pub(super) const DOWNTIME_HOST: Figure = ("downtime_host_us", |hop| switchover(hop, |s| s.downtime_us));
pub(super) const BYTES: Figure = ("bytes", |hop| Some(hop.report.traffic.bytes as f64));
pub(super) const BYTES_PER_S: Figure =
    ("bytes_per_s", |hop| Some(hop.report.traffic.bytes as f64 / (hop.report.total_us as f64 / 1e6)));
pub(super) const ROUNDS: Figure = ("rounds", |hop| Some(hop.report.rounds.len() as f64));
pub(super) const FAULTS: Figure = ("faults", |hop| Some(hop.report.postcopy?.faults as f64));
pub(super) const FAULT_P50: Figure = ("fault_p50_us", |hop| Some(hop.report.postcopy?.fault_p50_us as f64));
pub(super) const FAULT_P99: Figure = ("fault_p99_us", |hop| Some(hop.report.postcopy?.fault_p99_us as f64));
pub(super) const WORK_LOST: Figure = ("work_lost_ms", |hop| Some(hop.report.guest_measured?.work_lost_ms));
pub(super) const ENGINE_CPU: Figure = ("engine_cpu_s", |hop| Some(hop.usage.engine_cpu()));
pub(super) const SOURCE_RSS: Figure =
    ("source_peak_rss_bytes", |hop| Some(hop.usage.source.peak_rss? as f64));
pub(super) const DESTINATION_RSS: Figure =
    ("destination_peak_rss_bytes", |hop| Some(hop.usage.destination.peak_rss? as f64));

fn switchover(hop: &Hop, part: fn(&Switchover) -> u64) -> Option<f64> {
    hop.report.switchover.as_ref().map(|switchover| part(switchover) as f64)
}

fn takeover(hop: &Hop, part: fn(&Takeover) -> u64) -> Option<f64> {
    hop.report.takeover.as_ref().map(|takeover| part(takeover) as f64)
}

/// What both sides measured.
fn both(hop: &Hop) -> Option<(Switchover, Takeover)> {
    hop.report.switchover.zip(hop.report.takeover)
}

/// What its parts leave of it. They were all cut off to whole microseconds: it may be one more or less.
fn rest(whole: u64, parts: &[u64]) -> f64 {
    parts.iter().fold(whole, |left, part| left.saturating_sub(*part)) as f64
}
