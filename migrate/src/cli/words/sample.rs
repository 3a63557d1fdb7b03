//! Reports and figures to test the words with.

use crate::options::{InFlightPolicy, Mode};
use crate::progress::Progress;
use crate::report::{
    GuestMeasured, InFlight, Outcome, Phase, PhaseTime, Postcopy, Report, Round, SCHEMA, Switchover,
    Takeover, Traffic, Verification,
};

/// A hybrid migration in which everything happened.
pub(crate) fn moved() -> Report {
    let phase = |phase, us| PhaseTime { phase, us };
    Report {
        schema: SCHEMA.to_owned(),
        outcome: Outcome::Moved,
        reason: None,
        guest: "demo".to_owned(),
        destination: "10.0.0.2:7000".to_owned(),
        mode: Mode::Hybrid,
        streams: 2,
        outages: Vec::new(),
        on_timeout: None,
        total_us: 412_345,
        phases: vec![
            phase(Phase::Connect, 12_100),
            phase(Phase::Precopy, 249_000),
            phase(Phase::Switchover, 11_900),
            phase(Phase::Postcopy, 98_000),
            phase(Phase::Finish, 41_345),
        ],
        rounds: vec![
            Round {
                number: 0,
                pages: 65_536,
                zero_pages: 196_608,
                bytes: 268_640_256,
                us: 231_000,
                dirtied: 2_048,
                dirty_rate: 8_865.8,
                harvest_us: 31,
                throttle: 0,
            },
            Round {
                number: 1,
                pages: 2_048,
                zero_pages: 0,
                bytes: 8_393_000,
                us: 18_000,
                dirtied: 512,
                dirty_rate: 28_444.4,
                harvest_us: 33,
                throttle: 0,
            },
        ],
        switchover: Some(Switchover {
            pause_us: 180,
            save_us: 420,
            harvest_us: 35,
            send_us: 8_100,
            ready_us: 2_900,
            restore_us: 640,
            resume_us: 265,
            commit_us: 20,
            pages: 0,
            state_bytes: 14_336,
            downtime_us: 11_900,
            estimated_us: 14_000,
        }),
        takeover: Some(Takeover { missing_us: 60, last_pages_us: 0, start_us: 150 }),
        traffic: Traffic { bytes: 279_140_000, pages: 68_096, zero_pages: 196_608, ..Traffic::default() },
        postcopy: Some(Postcopy {
            missing_pages: 512,
            faults: 77,
            fault_p50_us: 88,
            fault_p90_us: 140,
            fault_p99_us: 410,
            fault_max_us: 1_250,
            last_page_us: 98_000,
            duplicate_pages: 0,
        }),
        in_flight: Some(InFlight {
            policy: InFlightPolicy::Forward,
            packets: 17,
            bytes: 21_000,
            last_us: 52_300,
        }),
        guest_measured: Some(GuestMeasured {
            downtime_us: 12_400.0,
            downtime_at_us: 261_000.0,
            tick_gap_us: 13_100.0,
            work_before_per_s: 151_000.0,
            work_during_per_s: 132_000.0,
            work_after_per_s: 150_500.0,
            work_lost_ms: 51.9,
            corruptions: 0,
        }),
        verification: Some(Verification {
            pages: 262_100,
            skipped: 44,
            mismatched: 0,
            first_mismatches: vec![],
            us: 40_000,
        }),
        unverified: None,
        residual_bytes: 0,
    }
}

/// A migration that was given up before the guest was paused.
pub(crate) fn kept() -> Report {
    Report {
        outcome: Outcome::Kept,
        reason: Some(
            "the destination 10.0.0.2:7000 has 512 MiB free, the guest needs 1 GiB; choose another"
                .to_owned(),
        ),
        mode: Mode::Precopy,
        streams: 1,
        total_us: 12_100,
        phases: vec![PhaseTime { phase: Phase::Connect, us: 12_100 }],
        rounds: vec![],
        switchover: None,
        takeover: None,
        traffic: Traffic { bytes: 1_200, ..Traffic::default() },
        postcopy: None,
        in_flight: None,
        guest_measured: None,
        verification: None,
        residual_bytes: 1 << 30,
        ..moved()
    }
}

/// Somewhere in the second round.
pub(crate) fn progress() -> Progress {
    Progress {
        phase: Phase::Precopy,
        round: 1,
        pages_total: 65_536,
        pages_left: 12_345,
        bytes: 256 << 20,
        bytes_per_s: 1.1 * 1024.0 * 1024.0 * 1024.0,
        dirty_rate: 30_000.0,
        throttle: 0,
        eta_ms: Some(44),
    }
}
