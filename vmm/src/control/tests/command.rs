//! The `migrate` command against a machine that only pretends, and who may have a socket of which name.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use clap::Parser;
use migrate::cli::{Arguments, Status};
use migrate::report::Outcome;

use super::*;
use crate::control::SocketError;

fn report(outcome: Outcome) -> Report {
    Report { outcome, total_us: 1, ..Report::blank("demo", "there:7000", Mode::Precopy, 2) }
}

/// The `migrate` command against what is served.
async fn command(served: &Served, line: &str) -> anyhow::Result<Status> {
    let arguments = Arguments::try_parse_from(format!("migrate {line}").split_whitespace()).unwrap();
    migrate::cli::run(&arguments, &served.runtime()).await
}

#[tokio::test]
async fn the_command_ends_as_the_migration_did() {
    let served = Served::start();
    let file = served.directory.path().join("report.json");
    let line = format!("--to there:7000 --report {}", file.display());
    let cases =
        [(Outcome::Moved, Status::Moved), (Outcome::Kept, Status::Kept), (Outcome::Unknown, Status::Unknown)];
    for (outcome, status) in cases {
        *served.vm.report.lock().unwrap() = Some(report(outcome));
        assert_eq!(command(&served, &line).await.unwrap(), status);
        let written: Report = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(written, report(outcome));
    }
    *served.vm.report.lock().unwrap() = Some(report(Outcome::Moved));
    let unmeasured = command(&served, "--to there:7000 --fail-above 1s --json").await.unwrap();
    assert_eq!(unmeasured, Status::TooSlow);
}

#[tokio::test]
async fn the_command_attempts_nothing_when_the_report_cannot_be_written() {
    let served = Served::start();
    let error = command(&served, "--to there:7000 --report /nonexistent/r.json").await.unwrap_err();
    assert!(error.to_string().ends_with("/nonexistent/r.json, so nothing was started"), "{error}");
    assert_eq!(Status::of_error(&error), Status::Usage);
    assert_eq!(served.vm.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_word_to_the_migration_under_way_is_passed_on_or_refused() {
    let served = Served::start();
    for word in ["cancel", "continue"] {
        assert_eq!(command(&served, word).await.unwrap(), Status::Moved);
        assert_eq!(served.vm.asked(), [word]);
        *served.vm.refusal.lock().unwrap() = Some(Refusal::Conflict("not now".into()));
        let error = command(&served, word).await.unwrap_err();
        assert_eq!((error.to_string().as_str(), Status::of_error(&error)), ("not now", Status::Kept));
        *served.vm.refusal.lock().unwrap() = None;
        served.vm.asked();
    }
}

#[tokio::test]
async fn watching_where_a_guest_arrives_ends_at_once() {
    let served = Served::start_as(Life::Arriving);
    assert_eq!(command(&served, "watch").await.unwrap(), Status::Moved);
    assert_eq!(command(&served, "status").await.unwrap(), Status::Moved);
}

#[tokio::test]
async fn a_report_that_cannot_be_written_in_the_end_is_no_success() {
    let served = Served::start();
    for (outcome, status) in [(Outcome::Moved, Status::Unreported), (Outcome::Kept, Status::Kept)] {
        *served.vm.report.lock().unwrap() = Some(report(outcome));
        assert_eq!(command(&served, "--to there:7000 --report /dev/full").await.unwrap(), status);
    }
}

#[tokio::test]
async fn the_command_says_who_has_the_guest_when_the_vm_refuses_or_falls_silent() {
    let served = Served::start();
    *served.vm.refusal.lock().unwrap() = Some(Refusal::Conflict("a migration is under way".into()));
    let error = command(&served, "--to there:7000").await.unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), Status::of_error(&error)),
        ("a migration is under way", Status::Kept)
    );
    *served.vm.refusal.lock().unwrap() = None;
    served.vm.asked();
    let (vm, end) = (Arc::clone(&served.vm), served.end);
    tokio::spawn(async move {
        while vm.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        end.send(()).unwrap();
    });
    let arguments = Arguments::try_parse_from(["migrate", "--to", "there:7000"]).unwrap();
    let runtime = RuntimeDir::at(served.directory.path());
    assert_eq!(migrate::cli::run(&arguments, &runtime).await.unwrap(), Status::Unknown);
}

#[test]
fn a_name_belongs_to_one_vm_and_a_dead_one_has_none() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = RuntimeDir::at(directory.path());
    let path = directory.path().join("demo.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "the dead leave their sockets behind");
    assert_eq!(Client::list_in(&runtime).unwrap().len(), 0);
    let socket = ControlSocket::claim(&runtime, "demo").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let error = ControlSocket::claim(&runtime, "demo").unwrap_err();
    let pid = std::process::id();
    assert_eq!(
        error.to_string(),
        format!("a VMM named demo is already running (pid {pid}); choose another --name")
    );
    drop(socket);
    assert!(!path.exists());
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().join("vmm");
    let runtime = RuntimeDir::at(&inside);
    drop(ControlSocket::claim(&runtime, "demo").unwrap());
    assert_eq!(fs::metadata(&inside).unwrap().permissions().mode() & 0o777, 0o700);
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o1777)).unwrap();
    let error = ControlSocket::claim(&runtime, "demo").unwrap_err();
    assert!(matches!(error, SocketError::Directory(_)));
    assert!(
        error.to_string().ends_with("can be written to by others (mode 1777); chmod it to 0700"),
        "{error}"
    );
}
