//! What goes over the control API, shared by the VMM that serves it and every client.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::options::{
    ClockPolicy, Compression, DEFAULT_DELTA_CACHE, DEFAULT_MAX_DOWNTIME, DEFAULT_RECOVERY, InFlightPolicy,
    MAX_STREAMS, MOST_THROTTLE, Mode, OnTimeout, Options, default_streams,
};
use crate::progress::Progress;
use crate::protection::{Held, Protection};
use crate::report::Report;

/// Where a VMM's guest is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Life {
    /// No guest yet: waits for one to arrive.
    Waiting,
    /// A guest is arriving.
    Arriving,
    /// The guest runs.
    Running,
    /// The guest is paused by its operator.
    Paused,
    /// The guest has reset, and boots again in a moment.
    Rebooting,
    /// The guest runs and is being moved away.
    Leaving,
    /// In doubt: paused, because another host may be running it. `migrate resolve` decides.
    Unknown,
    /// There is no guest any more: it has ended, or runs elsewhere.
    Stopped,
}

/// One VMM and its guest. `GET /vm`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// The VMM's name on this host, unique here.
    pub name: String,
    /// Process id.
    pub pid: u32,
    /// The guest's life.
    pub life: Life,
    /// The guest's name, once there is a guest.
    pub guest: Option<String>,
    /// The guest's identity, which survives every move.
    pub uuid: Option<Uuid>,
    /// RAM, bytes.
    pub memory: Option<u64>,
    /// Number of vCPUs.
    pub vcpus: Option<u32>,
    /// Where a waiting VMM listens for guests, `HOST:PORT`.
    pub listen: Option<String>,
    /// Violations the guest's own oracle has found, for guests that have one.
    pub corruptions: Option<u64>,
    /// Units of work per second the guest reports.
    pub work_per_s: Option<f64>,
    /// Why the guest is in doubt, and the ways out.
    #[serde(default)]
    pub doubt: Option<String>,
    /// How often the guest has reset and booted again here.
    #[serde(default)]
    pub reboots: u64,
}

/// `POST /migration`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// `HOST:PORT` of a waiting destination.
    pub to: String,
    /// How.
    pub mode: Mode,
    /// Data connections, 1..=16; default 2, or 1 where there are no more than two cores.
    pub streams: Option<u32>,
    /// Pre-copy switches over only when it expects less than this, and hybrid sends what is left in the pause only then, µs; default
    /// 300 000.
    pub max_downtime_us: Option<u64>,
    /// Given up when not committed after this, ms, without what the operator was waited for; default 60 000, or 2000 for each
    /// GiB of the guest's memory where that is more.
    pub timeout_ms: Option<u64>,
    /// What happens instead when that passes while memory is copied in rounds, or the rounds do not converge. `postcopy` goes
    /// with `precopy` and `hybrid`, `force` with `precopy`.
    #[serde(default)]
    pub on_timeout: OnTimeout,
    /// Pre-copy whose rounds do not converge holds vCPUs that write back for up to so many percent of their time, at most 99; 0, the
    /// default: never. With `precopy`.
    #[serde(default)]
    pub throttle: u8,
    /// Waits for `POST /migration/continue` before the guest is paused.
    #[serde(default)]
    pub pause_before_switchover: bool,
    /// Bytes per second; absent: unlimited.
    pub bandwidth: Option<u64>,
    /// Bytes per second once the guest runs there, 0: unlimited; default: as before.
    #[serde(default)]
    pub bandwidth_postcopy: Option<u64>,
    /// Whether pages travel packed; default: where the network is slower than packing.
    #[serde(default)]
    pub compression: Compression,
    /// Bytes kept of what was sent, to send differences against where pages travel packed, 0: none; default 64 MiB.
    #[serde(default)]
    pub delta_cache: Option<u64>,
    /// Compare all RAM on both sides.
    #[serde(default)]
    pub verify: bool,
    /// What becomes of packets that come for the guest after it has left; default: they are sent after it.
    #[serde(default)]
    pub in_flight: InFlightPolicy,
    /// What the guest's clock does while it stands still; default: it goes on from where it stopped.
    #[serde(default)]
    pub clock: ClockPolicy,
    /// What protects the connections, from files that the command reads: a VMM may be confined and cannot.
    #[serde(default)]
    pub credentials: Option<Held>,
    /// The name that the destination's certificate must have; default: the host of `to`. Only with certificates.
    #[serde(default)]
    pub tls_name: Option<String>,
    /// From a lost link on, after commit: both sides try to find each other again for so long, ms; default: a minute.
    #[serde(default)]
    pub recovery_ms: Option<u64>,
}

/// Why a [`MigrateRequest`] cannot become [`Options`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// No address.
    #[error("\"{0}\" is not HOST:PORT: give the address that vmm receive printed")]
    Destination(String),
    /// Too many or too few connections.
    #[error("{0} streams: choose 1 to {MAX_STREAMS}")]
    Streams(u32),
    /// Not with this mode.
    #[error("--on-timeout {0} is for guests that move by {1}: choose --on-timeout cancel, or another --mode")]
    OnTimeout(&'static str, &'static str),
    /// No share of a vCPU's time.
    #[error("--throttle {0}: choose 1 to {MOST_THROTTLE} percent of a vCPU's time, or 0 for never")]
    Throttle(u8),
    /// Not with this mode.
    #[error("--throttle is for guests that move by precopy: leave it out, or choose --mode precopy")]
    ThrottleMode,
    /// A limit of zero can never be met.
    #[error("{0} is zero: leave it out or give more")]
    Zero(&'static str),
    /// What protects the connections is not clear.
    #[error("{0}")]
    Protection(&'static str),
}

impl MigrateRequest {
    /// The options asked for, with defaults in place of what was left out.
    ///
    /// # Errors
    /// When a value is out of its range.
    pub fn options(&self) -> Result<Options, OptionsError> {
        let options = Options {
            to: destination(&self.to)?,
            mode: self.mode,
            streams: self.streams.unwrap_or_else(default_streams),
            max_downtime: self.max_downtime_us.map_or(DEFAULT_MAX_DOWNTIME, Duration::from_micros),
            timeout: self.timeout_ms.map(Duration::from_millis),
            on_timeout: self.on_timeout,
            throttle: self.throttle,
            pause_before_switchover: self.pause_before_switchover,
            bandwidth: self.bandwidth,
            bandwidth_postcopy: self.bandwidth_postcopy,
            compression: self.compression,
            delta_cache: self.delta_cache.unwrap_or(DEFAULT_DELTA_CACHE),
            verify: self.verify,
            in_flight: self.in_flight,
            clock: self.clock,
            protection: self.protection()?,
            recovery: self.recovery_ms.map_or(DEFAULT_RECOVERY, Duration::from_millis),
        };
        if options.streams == 0 || options.streams > MAX_STREAMS {
            return Err(OptionsError::Streams(options.streams));
        }
        match (options.on_timeout, options.mode) {
            (OnTimeout::Cancel, _)
            | (OnTimeout::Postcopy, Mode::Precopy | Mode::Hybrid)
            | (OnTimeout::Force, Mode::Precopy) => {}
            (OnTimeout::Postcopy, _) => return Err(OptionsError::OnTimeout("postcopy", "precopy or hybrid")),
            (OnTimeout::Force, _) => return Err(OptionsError::OnTimeout("force", "precopy")),
        }
        if options.throttle > MOST_THROTTLE {
            return Err(OptionsError::Throttle(options.throttle));
        }
        if options.throttle > 0 && options.mode != Mode::Precopy {
            return Err(OptionsError::ThrottleMode);
        }
        let zero = |what, is: bool| if is { Err(OptionsError::Zero(what)) } else { Ok(()) };
        zero("max_downtime", options.max_downtime.is_zero())?;
        zero("timeout", options.timeout == Some(Duration::ZERO))?;
        zero("bandwidth", options.bandwidth == Some(0))?;
        Ok(options)
    }
}

impl MigrateRequest {
    fn protection(&self) -> Result<Protection, OptionsError> {
        match (self.credentials.clone(), self.tls_name.clone()) {
            (None, None) => Ok(Protection::None),
            (Some(Held::SharedKey { .. }) | None, Some(_)) => Err(OptionsError::Protection(
                "tls_name without certificates: a name is in certificates; give them as well",
            )),
            (Some(held), name) => Ok(Protection::Held { held, name }),
        }
    }
}

/// `HOST:PORT` as given; whether the host exists is for the connection to find out.
pub(crate) fn destination(to: &str) -> Result<String, OptionsError> {
    let wrong = || OptionsError::Destination(to.to_owned());
    let (host, port) = to.rsplit_once(':').ok_or_else(wrong)?;
    match port.parse::<u16>() {
        Ok(port) if port != 0 && !host.is_empty() => Ok(to.to_owned()),
        _ => Err(wrong()),
    }
}

/// `GET /migration`: the one that is leaving from here, or the last one that was to. Of a guest that arrives the
/// source knows more: here there is only its progress.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MigrationStatus {
    /// Whether a guest is leaving from here.
    pub active: bool,
    /// Where it is, or where a guest that arrives is.
    pub progress: Option<Progress>,
    /// What was seen of the link when it was lost, while the destination is called again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
    /// The report of the last one that was to leave from here: only the source writes one.
    pub report: Option<Report>,
}

/// `POST /migration/resolve`: the operator's word on a guest in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// On the source: the destination does not run it and never will. Run it here, as a later incarnation.
    ForceSource,
    /// On the destination: the source does not run it and never will. Run it here.
    ForceDestination,
    /// The other host runs it, or it is given up: let go of it here.
    Discard,
}

/// `POST /migration/recover`: call the destination of a guest in doubt again, or one whose link is lost just now at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecoverRequest {
    /// Another address at which the same destination is reached, `HOST:PORT`; default: the one it was moving to.
    #[serde(default)]
    pub to: Option<String>,
    /// For how long, ms; default: what the migration was asked for.
    #[serde(default)]
    pub recovery_ms: Option<u64>,
}

impl RecoverRequest {
    /// # Errors
    /// When the address is not one.
    pub fn checked(self) -> Result<Self, OptionsError> {
        let to = self.to.as_deref().map(destination).transpose()?;
        Ok(Self { to, ..self })
    }
}

/// `POST /migration/salvage`: what was kept of a guest that is here in part, on the VMM's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Salvage {
    /// An image of its RAM by guest-physical address, sparse; missing pages are holes in it.
    #[schema(value_type = String)]
    pub memory: PathBuf,
    /// JSON: whose memory it is, and which pages are missing.
    #[schema(value_type = String)]
    pub list: PathBuf,
    /// Pages kept.
    pub pages: u64,
    /// Pages missing.
    pub missing_pages: u64,
}

/// `POST /migration/resolve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResolveRequest {
    /// What to do.
    pub resolution: Resolution,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// One line: the thing, the value, the way out.
    pub error: String,
    /// Of what was typed: how many bytes from its start were taken all the same. Only where not all were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(to: &str) -> MigrateRequest {
        let json = format!(r#"{{"to": "{to}", "mode": "precopy"}}"#);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn what_is_left_out_has_defaults() {
        let options = request("[::1]:7000").options().unwrap();
        assert_eq!(
            (options.to.as_str(), options.streams, options.bandwidth),
            ("[::1]:7000", default_streams(), None)
        );
        assert_eq!((options.max_downtime, options.timeout), (DEFAULT_MAX_DOWNTIME, None));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for to in ["host", "host:", "host:0", "host:70000", ":7000"] {
            assert_eq!(request(to).options(), Err(OptionsError::Destination(to.into())));
        }
        let refused = |change: fn(&mut MigrateRequest)| {
            let mut request = request("host:7000");
            change(&mut request);
            request.options().unwrap_err().to_string()
        };
        assert_eq!(refused(|r| r.streams = Some(0)), "0 streams: choose 1 to 16");
        assert_eq!(refused(|r| r.streams = Some(17)), "17 streams: choose 1 to 16");
        assert_eq!(refused(|r| r.timeout_ms = Some(0)), "timeout is zero: leave it out or give more");
        assert_eq!(refused(|r| r.bandwidth = Some(0)), "bandwidth is zero: leave it out or give more");
    }

    #[test]
    fn post_copy_is_limited_as_what_comes_before_unless_it_has_a_limit_of_its_own() {
        let of = |before, after| {
            let request = MigrateRequest { bandwidth: before, bandwidth_postcopy: after, ..request("h:1") };
            request.options().map(|options| options.postcopy_limit()).unwrap()
        };
        assert_eq!([of(None, None), of(Some(5), None)], [None, Some(5)]);
        assert_eq!([of(Some(5), Some(7)), of(Some(5), Some(0))], [Some(7), None]);
    }

    #[test]
    fn what_is_done_when_time_is_up_goes_with_the_mode() {
        let asked =
            |mode, on_timeout| MigrateRequest { mode, on_timeout, ..request("h:1") }.options().is_ok();
        let modes = [Mode::Precopy, Mode::Hybrid, Mode::Postcopy, Mode::Stopcopy];
        assert_eq!(modes.map(|mode| asked(mode, OnTimeout::Cancel)), [true; 4]);
        assert_eq!(modes.map(|mode| asked(mode, OnTimeout::Postcopy)), [true, true, false, false]);
        assert_eq!(modes.map(|mode| asked(mode, OnTimeout::Force)), [true, false, false, false]);
        let slowed = |mode, throttle| MigrateRequest { mode, throttle, ..request("h:1") }.options().is_ok();
        assert_eq!(modes.map(|mode| slowed(mode, 99)), [true, false, false, false]);
        assert!(slowed(Mode::Hybrid, 0) && !slowed(Mode::Precopy, 100));
        let error =
            MigrateRequest { on_timeout: OnTimeout::Force, mode: Mode::Hybrid, ..request("h:1") }.options();
        assert!(
            error
                .unwrap_err()
                .to_string()
                .starts_with("--on-timeout force is for guests that move by precopy")
        );
    }

    #[test]
    fn a_misspelt_option_is_not_ignored() {
        let json = r#"{"to": "h:1", "mode": "hybrid", "max_downtime": 5}"#;
        assert!(
            serde_json::from_str::<MigrateRequest>(json).unwrap_err().to_string().contains("max_downtime")
        );
    }
}
