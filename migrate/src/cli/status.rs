//! How the command ends: the exit status, and the `status` subcommand.

use std::process::ExitCode;
use std::time::Duration;

use super::args::Common;
use super::words;
use crate::client::types::{Life, MigrationStatus};
use crate::client::{Client, ClientError};
use crate::report::{Outcome, Report};

/// The exit statuses. `docs/report.md` is the place where they are promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The guest has moved (or, for the other subcommands: it was done).
    Moved = 0,
    /// The guest runs where it was: the migration was given up, or the VMM refused.
    Kept = 1,
    /// Wrong arguments, no such VM, a report that cannot be created: nothing was attempted.
    Usage = 2,
    /// Nobody here knows where the guest runs.
    Unknown = 3,
    /// The guest has moved, but with more downtime than `--fail-above`, or it did not measure any.
    TooSlow = 4,
    /// The guest has moved, but `--verify` did not confirm it: memory differs, or could not be compared.
    Unconfirmed = 5,
    /// The guest has moved, but the report could not be written.
    Unreported = 6,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

impl Status {
    /// What a report amounts to. The worst news wins.
    #[must_use]
    pub fn of_report(report: &Report, fail_above: Option<Duration>) -> Self {
        match report.outcome {
            Outcome::Kept => Self::Kept,
            Outcome::Unknown => Self::Unknown,
            Outcome::Moved if unconfirmed(report) => Self::Unconfirmed,
            Outcome::Moved if fail_above.is_some_and(|limit| !within(report, limit)) => Self::TooSlow,
            Outcome::Moved => Self::Moved,
        }
    }

    /// The status when the report could not be written: that is the worst news only of a migration without any other.
    #[must_use]
    pub fn unreported(self) -> Self {
        if self == Self::Moved { Self::Unreported } else { self }
    }

    /// What an error before a migration began amounts to.
    #[must_use]
    pub fn of_error(error: &anyhow::Error) -> Self {
        match error.downcast_ref::<ClientError>() {
            Some(ClientError::Refused { .. }) => Self::Kept,
            _ => Self::Usage,
        }
    }
}

fn unconfirmed(report: &Report) -> bool {
    report.unverified.is_some() || report.verification.as_ref().is_some_and(|it| it.mismatched > 0)
}

fn within(report: &Report, limit: Duration) -> bool {
    report.guest_measured.is_some_and(|measured| measured.downtime_us <= limit.as_secs_f64() * 1e6)
}

/// `migrate status`.
pub(super) async fn show(client: &Client, common: &Common) -> anyhow::Result<Status> {
    tell(client, &client.migration().await?, common).await
}

/// Says how things stand. A migration that is over has its exit status; anything else is no failure.
pub(super) async fn tell(
    client: &Client,
    status: &MigrationStatus,
    common: &Common,
) -> anyhow::Result<Status> {
    match status {
        _ if common.json => println!("{}", serde_json::to_string(status)?),
        MigrationStatus { active: true, lost: Some(cause), .. } => println!("{}", words::lost(cause)),
        MigrationStatus { active: true, progress: Some(progress), .. } => {
            println!("{}", words::progress(progress))
        }
        MigrationStatus { active: true, .. } => println!("{}", words::STARTING),
        MigrationStatus { report: Some(report), .. } => print!("{}", words::report(report)),
        MigrationStatus { .. } if client.info().await?.life == Life::Arriving => {
            println!("{}", words::arriving(client.name()))
        }
        MigrationStatus { .. } => println!("{}", words::no_migration(client.name())),
    }
    Ok(match status {
        MigrationStatus { active: false, report: Some(report), .. } => Status::of_report(report, None),
        _ => Status::Moved,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::words::sample;

    #[test]
    fn every_outcome_has_its_status() {
        let mut report = sample::moved();
        let limit = |ms| Some(Duration::from_millis(ms));
        assert_eq!(Status::of_report(&report, None), Status::Moved);
        assert_eq!(Status::of_report(&report, limit(1000)), Status::Moved);
        assert_eq!(Status::of_report(&report, limit(1)), Status::TooSlow);
        report.guest_measured = None;
        assert_eq!(Status::of_report(&report, limit(1000)), Status::TooSlow);
        assert_eq!(Status::of_report(&report, None), Status::Moved);
        report.verification.as_mut().unwrap().mismatched = 1;
        assert_eq!(Status::of_report(&report, limit(1)), Status::Unconfirmed);
        (report.verification, report.unverified) = (None, Some("the link broke".to_owned()));
        assert_eq!(Status::of_report(&report, None), Status::Unconfirmed);
        report.outcome = Outcome::Kept;
        assert_eq!(Status::of_report(&report, limit(1)), Status::Kept);
        report.outcome = Outcome::Unknown;
        assert_eq!(Status::of_report(&report, limit(1)), Status::Unknown);
    }

    #[test]
    fn an_error_that_prevents_a_migration_says_whether_anything_was_attempted() {
        let status = |error: ClientError| Status::of_error(&error.into());
        assert_eq!(status(ClientError::Refused { status: 409, reason: "no".into() }), Status::Kept);
        assert_eq!(status(ClientError::NoneRunning("/run/vmm".into())), Status::Usage);
        assert_eq!(Status::of_error(&anyhow::anyhow!("unwritable")), Status::Usage);
    }

    #[test]
    fn the_document_has_every_field_and_its_example_is_a_report() {
        let document = include_str!("../../../docs/report.md");
        let example = document.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        assert_eq!(serde_json::from_str::<Report>(example).unwrap(), sample::moved());
        let mut missing = Vec::new();
        fields(&serde_json::to_value(sample::moved()).unwrap(), &mut |field| {
            missing.extend((!document.contains(&format!("| `{field}` |"))).then(|| field.to_owned()));
        });
        assert_eq!(missing, Vec::<String>::new());
    }

    fn fields(value: &serde_json::Value, found: &mut impl FnMut(&str)) {
        match value {
            serde_json::Value::Object(object) => {
                for (field, value) in object {
                    found(field);
                    fields(value, found);
                }
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| fields(value, found)),
            _ => {}
        }
    }
}
