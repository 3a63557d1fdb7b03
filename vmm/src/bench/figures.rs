//! The figures of a run, each under the name it has in the document. Times in µs unless the name says otherwise.

use migrate::report::Switchover;

use crate::lab::journey::Hop;

/// A figure: its name, and where it comes from.
pub(super) type Figure = (&'static str, fn(&Hop) -> Option<f64>);

/// All of them.
pub(super) const ALL: &[Figure] = &[
    TOTAL,
    DOWNTIME_GUEST,
    DOWNTIME_HOST,
    ("pause_us", |hop| switchover(hop, |s| s.pause_us)),
    ("save_us", |hop| switchover(hop, |s| s.save_us)),
    ("harvest_us", |hop| switchover(hop, |s| s.harvest_us)),
    ("send_us", |hop| switchover(hop, |s| s.send_us)),
    ("ready_us", |hop| switchover(hop, |s| s.ready_us)),
    ("restore_us", |hop| switchover(hop, |s| s.restore_us)),
    ("resume_us", |hop| switchover(hop, |s| s.resume_us)),
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
