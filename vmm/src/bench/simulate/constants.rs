//! What things cost, in numbers that are measured, or say that they are not.
//!
//! The defaults are of one host: 2 cores of an AMD EPYC, Linux 6.18, `kvm_pvm`, RAM in huge pages. `docs/scaling.md` says
//! which were taken from what. A file of JSON may name others; what it leaves out stays.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::lab::LabError;

/// The constants. Units are in the names: `_s` seconds, `_ms`, `_us`; `_per_gib` for each GiB of pages that are moved (CPU
/// time) or of the guest's RAM (where it says so).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Constants {
    /// Source: looking whether pages are zero.
    pub(super) scan_s_per_gib: f64,
    /// Source: watching pages anew.
    pub(super) protect_s_per_gib: f64,
    /// Source: from guest memory into the socket.
    pub(super) send_s_per_gib: f64,
    /// Destination: from the socket into guest memory.
    pub(super) land_s_per_gib: f64,
    /// Destination: making memory ready that was never touched.
    pub(super) prepare_s_per_gib: f64,
    /// Source, post-copy: all that a pushed page costs.
    pub(super) push_s_per_gib: f64,
    /// Destination, post-copy: receiving it and placing it.
    pub(super) place_s_per_gib: f64,
    /// Either side: a run of pages beyond its bytes.
    pub(super) run_us: f64,
    /// Source: a call by which pages are watched anew, beyond these pages: it interrupts the vCPUs.
    pub(super) watch_us: f64,

    /// A round beyond its pages and its round trip.
    pub(super) round_us: f64,
    /// Reading the dirty log.
    pub(super) harvest_us: f64,
    /// … for each GiB of RAM.
    pub(super) harvest_us_per_gib: f64,

    /// Until both sides are connected and the destination's machine is built.
    pub(super) connect_ms: f64,
    /// … for each vCPU beyond the first.
    pub(super) connect_ms_per_vcpu: f64,
    /// Starting the log and finding what exists, for each GiB that exists.
    pub(super) survey_ms_per_gib: f64,
    /// Post-copy: catching touches of missing pages, for each GiB that exists, before the pause.
    pub(super) catch_ms_per_gib: f64,

    /// Stopping the vCPUs.
    pub(super) pause_us: f64,
    /// Saving the state.
    pub(super) save_us: f64,
    /// Restoring it.
    pub(super) restore_us: f64,
    /// From commit until the guest runs.
    pub(super) resume_us: f64,
    /// Each vCPU beyond the first, in the whole of the pause; half of it is save and restore.
    pub(super) vcpu_us: f64,
    /// The state, bytes.
    pub(super) state_bytes: f64,
    /// … for each vCPU.
    pub(super) state_bytes_per_vcpu: f64,
    /// Post-copy: passing over bitmaps in the pause, for each GiB of RAM.
    pub(super) bitmaps_us_per_gib: f64,
    /// Post-copy: discarding a run of pages that were sent before and written since.
    pub(super) discard_us: f64,
    /// … for each page of it.
    pub(super) discard_us_per_page: f64,

    /// Post-copy: beyond the time that the guest is left alone, and pages.
    pub(super) push_begins_ms: f64,
    /// Post-copy: a page request, without the round trip.
    pub(super) fault_us: f64,

    /// A page that was watched and is written: time of the vCPU.
    pub(super) caught_us: f64,
    /// Writes a second of a vCPU that writes as fast as it can.
    pub(super) most_writes_per_s: f64,
    /// Pages a second that each vCPU of the demo guest checks. Where KVM has not mapped them since the guest came, KVM takes
    /// the reading for writing.
    pub(super) checks_per_s: f64,
    /// What a bulk thread weighs beside a vCPU where they share a core.
    pub(super) bulk_weight: f64,

    /// The share of a cable's bits that are bytes of a connection.
    pub(super) payload_share: f64,
    /// Most bytes that are on their way in one connection.
    pub(super) window_bytes: f64,
}

impl Default for Constants {
    fn default() -> Self {
        Self {
            scan_s_per_gib: 0.012,
            protect_s_per_gib: 0.003,
            send_s_per_gib: 0.12,
            land_s_per_gib: 0.11,
            prepare_s_per_gib: 0.045,
            push_s_per_gib: 0.155,
            place_s_per_gib: 0.17,
            run_us: 0.45,
            watch_us: 3.5,
            round_us: 120.0,
            harvest_us: 1.0,
            harvest_us_per_gib: 6.0,
            connect_ms: 8.0,
            connect_ms_per_vcpu: 0.5,
            survey_ms_per_gib: 1.0,
            catch_ms_per_gib: 5.0,
            pause_us: 105.0,
            save_us: 115.0,
            restore_us: 145.0,
            resume_us: 60.0,
            vcpu_us: 25.0,
            state_bytes: 2_700.0,
            state_bytes_per_vcpu: 6_200.0,
            bitmaps_us_per_gib: 12.0,
            discard_us: 2.0,
            discard_us_per_page: 0.1,
            push_begins_ms: 6.0,
            fault_us: 50.0,
            caught_us: 2.6,
            most_writes_per_s: 8.8e6,
            checks_per_s: 10_000.0,
            bulk_weight: 1.0 / 3.0,
            payload_share: 0.94,
            window_bytes: 4_194_304.0,
        }
    }
}

impl Constants {
    /// Those of a file; what it leaves out is the default.
    ///
    /// # Errors
    /// When it cannot be read, or names something that is no constant.
    pub(super) fn read(path: &Path) -> Result<Self, LabError> {
        let wrong = |why: String| LabError::Arguments(format!("constants of {}: {why}", path.display()));
        let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
        let read: Self =
            serde_json::from_reader(BufReader::new(file)).map_err(|error| wrong(error.to_string()))?;
        match read.impossible() {
            Some(name) => Err(wrong(format!("{name} must be a number from 0 on"))),
            None => Ok(read),
        }
    }

    /// The name of one that cannot be.
    fn impossible(&self) -> Option<String> {
        let all = serde_json::to_value(self).ok()?;
        let all = all.as_object()?;
        all.iter()
            .find(|(_, value)| value.as_f64().is_none_or(|value| value < 0.0))
            .map(|(name, _)| name.clone())
    }

    /// The same on a host where all work on pages takes `times` as long.
    pub(super) fn slower(&self, times: f64) -> Self {
        Self {
            scan_s_per_gib: self.scan_s_per_gib * times,
            protect_s_per_gib: self.protect_s_per_gib * times,
            send_s_per_gib: self.send_s_per_gib * times,
            land_s_per_gib: self.land_s_per_gib * times,
            prepare_s_per_gib: self.prepare_s_per_gib * times,
            push_s_per_gib: self.push_s_per_gib * times,
            place_s_per_gib: self.place_s_per_gib * times,
            run_us: self.run_us * times,
            watch_us: self.watch_us * times,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(json: &str) -> Result<Constants, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(json.as_bytes()).unwrap();
        Constants::read(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let read_one = read(r#"{"send_s_per_gib": 0.5}"#).unwrap();
        assert_eq!(read_one, Constants { send_s_per_gib: 0.5, ..Constants::default() });
        let whole = serde_json::to_string(&Constants::default()).unwrap();
        assert_eq!(read(&whole).unwrap(), Constants::default());
    }

    #[test]
    fn what_is_no_constant_is_named() {
        assert!(read(r#"{"sned": 1}"#).unwrap_err().contains("unknown field `sned`"));
        assert!(read(r#"{"send_s_per_gib": -1}"#).unwrap_err().contains("send_s_per_gib must be"));
        assert!(read("nonsense").unwrap_err().starts_with("constants of "));
    }
}
