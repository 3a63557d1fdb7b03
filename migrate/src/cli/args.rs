//! The arguments of `migrate`. What they mean is parsed here; what they may be together, clap sees to.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::values::{parse_bytes, parse_bytes_or_zero, parse_duration};
use crate::client::types::{MigrateRequest, destination};
use crate::options::{ClockPolicy, Compression, InFlightPolicy, MAX_STREAMS, MOST_THROTTLE, Mode, OnTimeout};
use crate::protection::{Protection, ProtectionError};

/// Moves a running virtual machine to another host.
#[derive(Debug, Parser)]
#[command(
    name = "migrate",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    after_help = "Exit status: 0 moved, 1 kept on this host, 2 wrong arguments or no such VM (nothing was attempted),\n\
                  3 outcome not known or in doubt, 4 moved but above --fail-above, 5 moved but --verify did not confirm it,\n\
                  6 moved but the report could not be written."
)]
pub struct Arguments {
    /// Something else than starting a migration.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Starting a migration.
    #[command(flatten)]
    pub start: Option<StartArgs>,
}

/// Starting a migration.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Where to: the address that `vmm receive` printed
    #[arg(long, value_name = "HOST:PORT", value_parser = destination)]
    pub to: String,
    /// How it moves
    #[arg(long, value_enum, default_value_t = Mode::Precopy)]
    pub mode: Mode,
    /// The VM to move [default: the only one running]
    #[arg(long, value_name = "NAME")]
    pub vm: Option<String>,
    /// Data connections [default: 2, or 1 where the source has no more than two cores]
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_STREAMS)))]
    pub streams: Option<u32>,
    /// Pre-copy switches over only when it expects a shorter pause than this; hybrid sends what is left in a pause no longer than this, or
    /// leaves it to post-copy
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = parse_duration)]
    pub max_downtime: Duration,
    /// Give up when the guest has not switched over after this [default: 60s, or 2s for each GiB of its memory where that
    /// is more]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// What happens instead when that passes while memory is copied in rounds, or the rounds do not converge
    #[arg(long, value_enum, default_value_t = OnTimeout::Cancel)]
    pub on_timeout: OnTimeout,
    /// Where the rounds do not converge, hold the vCPUs that write back for up to so many percent of their time, so that they do
    /// (1 to 99; with --mode precopy) [default: 0, never]
    #[arg(long, value_name = "PERCENT", default_value_t = 0, hide_default_value = true,
          value_parser = clap::value_parser!(u8).range(0..=i64::from(MOST_THROTTLE)))]
    pub throttle: u8,
    /// Wait for `migrate continue` before the guest is paused; --timeout does not run meanwhile
    #[arg(long)]
    pub pause_before_switchover: bool,
    /// Bytes per second at most, such as 100M; K, M and G are powers of 1024 [default: unlimited]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub bandwidth: Option<u64>,
    /// The same once the guest runs there and the rest follows by post-copy; 0: unlimited [default: as --bandwidth]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes_or_zero)]
    pub bandwidth_postcopy: Option<u64>,
    /// Whether pages travel compressed: auto does so where the network is slower than the CPU
    #[arg(long, value_enum, default_value_t = Compression::Auto)]
    pub compression: Compression,
    /// Memory for pages as they were sent, so that one sent again is sent as a difference; 0: none. Only taken where
    /// pages travel compressed
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_bytes_or_zero)]
    pub delta_cache: u64,
    /// Compare all memory on both hosts afterwards
    #[arg(long)]
    pub verify: bool,
    /// What becomes of packets that come here for the guest after it has left
    #[arg(long, value_enum, default_value_t = InFlightPolicy::Forward)]
    pub in_flight: InFlightPolicy,
    /// What the guest's clock does while it stands still
    #[arg(long, value_enum, default_value_t = ClockPolicy::Continue)]
    pub clock: ClockPolicy,
    /// Protect the connections by TLS, with the certificates in DIR (ca.pem, cert.pem, key.pem)
    #[arg(long, value_name = "DIR", conflicts_with = "psk")]
    pub tls: Option<PathBuf>,
    /// The name that the destination's certificate must have [default: the host of --to]
    #[arg(long, value_name = "NAME", requires = "tls")]
    pub tls_name: Option<String>,
    /// Protect the connections by TLS, with a key in FILE that the destination has as well
    #[arg(long, value_name = "FILE")]
    pub psk: Option<PathBuf>,
    /// When the link is lost after the guest was handed over, both sides try to find each other again for so long
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub recovery_timeout: Duration,
    /// Print every event as a line of JSON, the report last
    #[arg(long)]
    pub json: bool,
    /// Write the report to FILE as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Exit with 4 when the downtime the guest measured is above this, or the guest measured none
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub fail_above: Option<Duration>,
}

/// Something else than starting a migration.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say where the migration is, or how the last one ended
    Status(Common),
    /// Give up the migration under way: the guest stays here
    Cancel(Which),
    /// Let the migration go on that waits before it switches over (--pause-before-switchover)
    Continue(Which),
    /// Follow the migration under way to its end
    Watch(Common),
    /// Go on with a guest in doubt: call the destination again, and have both sides find out what became of it
    Recover {
        /// Another address of the same destination [default: the one it was moving to]
        #[arg(long, value_name = "HOST:PORT", value_parser = destination)]
        to: Option<String>,
        /// For so long [default: what the migration was asked for]
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        recovery_timeout: Option<Duration>,
        /// Which VM, and how to print.
        #[command(flatten)]
        common: Common,
    },
    /// Keep the memory of a guest that came here in part and whose source is gone for good
    Salvage(Common),
    /// Decide about a guest in doubt, which is paused because the other host may be running it. Without an option: as
    /// recover
    #[command(group = clap::ArgGroup::new("resolution"))]
    Resolve {
        /// The destination's host is gone for good: run the guest here. If that host runs it after all, it runs twice
        #[arg(long, group = "resolution")]
        force_source: bool,
        /// The source's host is gone for good: run the guest here. If that host runs it after all, it runs twice
        #[arg(long, group = "resolution")]
        force_destination: bool,
        /// The other host runs it, or it is given up: let go of it here
        #[arg(long, group = "resolution")]
        discard: bool,
        /// Which VM.
        #[command(flatten)]
        which: Which,
    },
    /// Make what protects migrations: certificates, or a key
    #[command(subcommand)]
    Tls(TlsCommand),
}

/// What is to be made.
#[derive(Debug, Subcommand)]
pub enum TlsCommand {
    /// Make a CA in DIR, or go on with the one there, and a directory DIR/NAME for each host
    Init {
        /// Where
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Name of a host, as others will dial it: a DNS name or an IP address; may be given several times
        #[arg(long = "host", value_name = "NAME", num_args = 1..)]
        hosts: Vec<String>,
    },
    /// Make a key for --psk
    Psk {
        /// The file to make
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// Which VM.
#[derive(Debug, Args)]
pub struct Which {
    /// The VM [default: the only one running]
    #[arg(long, value_name = "NAME")]
    pub vm: Option<String>,
}

/// Which VM, and how to print.
#[derive(Debug, Args)]
pub struct Common {
    /// Which VM.
    #[command(flatten)]
    pub which: Which,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Arguments {
    /// The VM named, by whatever is to be done with it.
    pub(super) fn vm(&self) -> Option<&str> {
        match &self.command {
            None => self.start.as_ref()?.vm.as_deref(),
            Some(
                Command::Status(common)
                | Command::Watch(common)
                | Command::Salvage(common)
                | Command::Recover { common, .. },
            ) => common.which.vm.as_deref(),
            Some(Command::Cancel(which) | Command::Continue(which) | Command::Resolve { which, .. }) => {
                which.vm.as_deref()
            }
            Some(Command::Tls(_)) => None,
        }
    }
}

impl StartArgs {
    /// What to ask the VMM for. Reads the files that protect the connections.
    ///
    /// # Errors
    /// When they will not do.
    pub(super) fn request(&self) -> Result<MigrateRequest, ProtectionError> {
        let protection = match (&self.tls, &self.psk) {
            (Some(dir), _) => Protection::Certificates { dir: dir.clone(), name: self.tls_name.clone() },
            (None, Some(file)) => Protection::SharedKey { file: file.clone() },
            (None, None) => Protection::None,
        };
        let credentials = protection.held(&self.to)?;
        let whole = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        Ok(MigrateRequest {
            to: self.to.clone(),
            mode: self.mode,
            streams: self.streams,
            max_downtime_us: Some(whole(self.max_downtime.as_micros())),
            timeout_ms: self.timeout.map(|timeout| whole(timeout.as_millis())),
            on_timeout: self.on_timeout,
            throttle: self.throttle,
            pause_before_switchover: self.pause_before_switchover,
            bandwidth: self.bandwidth,
            bandwidth_postcopy: self.bandwidth_postcopy,
            compression: self.compression,
            delta_cache: Some(self.delta_cache),
            verify: self.verify,
            in_flight: self.in_flight,
            clock: self.clock,
            credentials,
            tls_name: self.tls_name.clone(),
            recovery_ms: Some(whole(self.recovery_timeout.as_millis())),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())
    }

    #[test]
    fn clap_finds_no_contradiction() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_migration_with_everything() {
        let line = "migrate --to h:7 --mode hybrid --vm a --streams 4 --max-downtime 50ms --timeout 2m \
                    --on-timeout postcopy --throttle 60 --pause-before-switchover --bandwidth 100M --verify --json --report r.json --fail-above 0.5s \
                    --recovery-timeout 5m --bandwidth-postcopy 0 --compression zstd --delta-cache 1G";
        let arguments = parse(line).unwrap();
        assert_eq!(arguments.vm(), Some("a"));
        let start = arguments.start.unwrap();
        assert_eq!(start.fail_above, Some(Duration::from_millis(500)));
        let expected = MigrateRequest {
            to: "h:7".into(),
            mode: Mode::Hybrid,
            streams: Some(4),
            max_downtime_us: Some(50_000),
            timeout_ms: Some(120_000),
            on_timeout: OnTimeout::Postcopy,
            throttle: 60,
            pause_before_switchover: true,
            bandwidth: Some(100 << 20),
            bandwidth_postcopy: Some(0),
            compression: Compression::Zstd,
            delta_cache: Some(1 << 30),
            verify: true,
            in_flight: InFlightPolicy::Forward,
            clock: ClockPolicy::Continue,
            credentials: None,
            tls_name: None,
            recovery_ms: Some(300_000),
        };
        assert_eq!(start.request().unwrap(), expected);
    }

    #[test]
    fn the_defaults_are_the_engines() {
        let asked = parse("migrate --to h:7").unwrap().start.unwrap().request().unwrap();
        let bare: MigrateRequest = serde_json::from_str(r#"{"to": "h:7", "mode": "precopy"}"#).unwrap();
        assert_eq!(asked.options(), bare.options());
    }

    #[test]
    fn subcommands_stand_alone() {
        assert!(
            matches!(parse("migrate status --json").unwrap().command, Some(Command::Status(c)) if c.json)
        );
        assert_eq!(parse("migrate cancel --vm b").unwrap().vm(), Some("b"));
        assert_eq!(parse("migrate continue --vm c").unwrap().vm(), Some("c"));
        assert!(parse("migrate status").unwrap().start.is_none());
        assert!(parse("migrate --to h:7 status").unwrap_err().contains("cannot be used with"));
    }

    #[test]
    fn a_guest_in_doubt_gets_one_answer_at_most() {
        let resolve = |line| parse(line).map(|arguments| arguments.command);
        assert!(matches!(
            resolve("migrate resolve --force-source"),
            Ok(Some(Command::Resolve { force_source: true, .. }))
        ));
        assert!(matches!(
            resolve("migrate resolve --force-destination"),
            Ok(Some(Command::Resolve { force_destination: true, .. }))
        ));
        assert!(matches!(
            resolve("migrate resolve --discard"),
            Ok(Some(Command::Resolve { discard: true, .. }))
        ));
        assert!(resolve("migrate resolve").is_ok());
        assert!(resolve("migrate resolve --force-source --discard").is_err());
        assert!(matches!(
            resolve("migrate recover --to h:8 --recovery-timeout 5s --vm a"),
            Ok(Some(Command::Recover { to: Some(to), .. })) if to == "h:8"
        ));
    }

    #[test]
    fn bad_values_are_named() {
        let wrong = |line: &str, says: &str| {
            let error = parse(line).unwrap_err();
            assert!(error.contains(says), "{error}");
        };
        wrong("migrate --to h", "\"h\" is not HOST:PORT: give the address that vmm receive printed");
        wrong("migrate --mode precopy", "--to <HOST:PORT>");
        wrong("migrate --to h:7 --streams 17", "17 is not in 1..=16");
        wrong("migrate --to h:7 --timeout 60", "a time needs a unit");
        wrong("migrate --to h:7 --bandwidth fast", "not a size");
        wrong("migrate --to h:7 --mode live", "possible values: precopy, stopcopy, postcopy, hybrid");
    }
}
