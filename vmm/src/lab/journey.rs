//! One demo guest on its way from host to host, watched all the time.

use std::time::Duration;

use migrate::client::types::MigrateRequest;
use migrate::options::{ClockPolicy, Compression, InFlightPolicy, Mode, OnTimeout};
use migrate::protection::Protection;
use migrate::report::{Outcome, Report};
use serde::Serialize;

use super::backed::BackedMemory;
use super::guest::GuestPlan;
use super::host::Host;
use super::slow::{Network, SlowLink};
use super::transcript::{Transcript, last_gap_us, reports};
use super::watch::{Usage, Watch};
use super::{HOST, Lab, LabError, verdict, within};

/// The guest reports every second, unless it stands still.
const REPORT_DEADLINE: Duration = Duration::from_secs(20);
/// Beyond the migration's own time limit, which ends with the commit: post-copy and comparison come after.
const AFTER_COMMIT: Duration = Duration::from_secs(120);

/// How the guest is to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// How.
    pub mode: Mode,
    /// Data connections.
    pub streams: u32,
    /// Pre-copy switches over when it expects less.
    pub max_downtime: Duration,
    /// Until commit.
    pub timeout: Duration,
    /// Compare all RAM.
    pub verify: bool,
    /// Between the hosts.
    pub wire: Wire,
    /// What the bytes cross besides, where it is not this host alone.
    pub network: Option<Network>,
}

/// How the bytes cross.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// As they are.
    Plain,
    /// Inside TLS, both sides with a certificate.
    Tls,
}

/// One move, done or failed.
#[derive(Debug, Clone, Serialize)]
pub struct Hop {
    /// What the source says of it.
    pub report: Report,
    /// CPU time used by both sides from the request until the end.
    pub usage: Usage,
    /// What is wrong; empty when all is well.
    pub problems: Vec<String>,
}

/// A guest, where it is, and what it said on the way.
#[derive(Debug)]
pub struct Journey<'a> {
    lab: &'a Lab,
    host: Host,
    transcript: Transcript,
}

impl<'a> Journey<'a> {
    /// Boots the guest and waits until it is at work.
    ///
    /// # Errors
    /// When it does not get there.
    pub async fn begin(lab: &'a Lab, plan: &GuestPlan) -> Result<Self, LabError> {
        let mut journey = Self { lab, host: lab.boot(plan).await?, transcript: Transcript::default() };
        journey.hear(1, "the guest fills its memory and begins to work", plan.boot_deadline()).await?;
        Ok(journey)
    }

    /// Waits until the guest has reported `times` more from where it is now, and says how long it stood still at most
    /// in the time of the last report, µs.
    ///
    /// # Errors
    /// When it does not: it stands still.
    pub async fn settle(&mut self, times: usize) -> Result<Option<f64>, LabError> {
        let due = reports(&self.host.console()) + times;
        self.hear(due, "the guest reports from its work", REPORT_DEADLINE * times as u32).await?;
        Ok(last_gap_us(&self.host.console()))
    }

    async fn hear(&mut self, due: usize, what: &str, limit: Duration) -> Result<(), LabError> {
        let what = format!("{what} on {}", self.host.name());
        self.host.said(&what, limit, |console| reports(console) >= due).await
    }

    /// Moves the guest to a new host, and hears it speak from there. A move that fails is a result; unless it kept the
    /// guest here, the journey is over with it. Where there is `backed` memory, it is for that host.
    ///
    /// # Errors
    /// When the move cannot be tried, or it cannot be known how it ended: the journey is over.
    pub async fn hop(&mut self, order: &Order, backed: Option<BackedMemory>) -> Result<Hop, LabError> {
        let destination = self.lab.receive(order.wire).await?;
        let making_way = backed.map(|backed| backed.make_way_for(destination.pid())).transpose()?;
        let mut watch = Watch::begin(&self.host, &destination).await?;
        let to = destination.listen().await?;
        let link = order.network.map(|network| far(&to, network)).transpose()?;
        let to = link.as_ref().map_or(to, |link| link.address().to_string());
        self.host.client().migrate(&self.request(order, to)?).await?;
        let ended =
            within(order.timeout + AFTER_COMMIT, || "the migration ends".to_owned(), watch.to_the_end());
        let report = ended.await??;
        drop(making_way);
        let mut hop =
            Hop { problems: verdict::of_report(&report, order.verify), usage: watch.usage(), report };
        if hop.report.outcome == Outcome::Moved {
            let mut source = std::mem::replace(&mut self.host, destination);
            self.transcript.read(&source.ended().await?);
            hop.usage = watch.usage();
            self.settle(1).await?;
            hop.problems.extend(verdict::of_info(&self.host.info().await?));
        }
        Ok(hop)
    }

    fn request(&self, order: &Order, to: String) -> Result<MigrateRequest, LabError> {
        let whole = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        let credentials = match self.lab.credentials(order.wire)? {
            Some(dir) => Protection::Certificates { dir, name: Some(HOST.to_owned()) }.held(&to),
            None => Ok(None),
        };
        let credentials = credentials.map_err(|error| LabError::Arguments(error.to_string()))?;
        Ok(MigrateRequest {
            recovery_ms: None,
            to,
            mode: order.mode,
            streams: Some(order.streams),
            max_downtime_us: Some(whole(order.max_downtime.as_micros())),
            timeout_ms: Some(whole(order.timeout.as_millis())),
            on_timeout: OnTimeout::Cancel,
            throttle: 0,
            pause_before_switchover: false,
            bandwidth: None,
            bandwidth_postcopy: None,
            compression: Compression::Auto,
            delta_cache: None,
            verify: order.verify,
            in_flight: InFlightPolicy::Forward,
            clock: ClockPolicy::Continue,
            tls_name: credentials.as_ref().map(|_| HOST.to_owned()),
            credentials,
        })
    }

    /// Ends the guest and says what it found on the whole way.
    ///
    /// # Errors
    /// When its last host does not answer.
    pub async fn end(mut self) -> Result<Ending, LabError> {
        let mut problems = verdict::of_info(&self.host.info().await?);
        self.transcript.read(&self.host.console());
        problems.extend(self.transcript.problems().iter().cloned());
        Ok(Ending { console_lines: self.transcript.lines(), problems })
    }
}

/// The way to a destination over this network.
fn far(to: &str, network: Network) -> Result<SlowLink, LabError> {
    let bad = |_| LabError::Arguments(format!("{to} is no address"));
    SlowLink::to(to.parse().map_err(bad)?, network).map_err(LabError::host("make a network"))
}

/// What a guest found on its whole way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Ending {
    /// Lines it wrote, over all hosts.
    pub console_lines: u64,
    /// What is wrong; empty when all is well.
    pub problems: Vec<String>,
}
