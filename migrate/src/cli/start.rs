//! Starting a migration and seeing it through.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::args::StartArgs;
use super::follow::{Following, Interrupt};
use super::show::Show;
use super::{Status, words};
use crate::client::{Client, ClientError};
use crate::report::Report;

/// `migrate --to …`: whatever can be found wrong is found before the guest is touched.
pub(super) async fn start(client: &Client, args: &StartArgs) -> anyhow::Result<Status> {
    let request = args.request()?;
    request.options().map_err(ClientError::from)?;
    let report_file = args.report.as_deref().map(ReportFile::create).transpose()?;
    let earlier = client.migration().await?.report;
    let events = client.events().await?;
    match client.migrate(&request).await {
        Err(error @ ClientError::Refused { .. }) => return Err(error.into()),
        Err(error) => {
            eprintln!("{}", words::not_known(&error.to_string()));
            return Ok(Status::Unknown);
        }
        Ok(()) => {}
    }
    let following = Following { client, events, earlier, interrupt: Interrupt::Cancels };
    let Some(report) = following.follow(&mut Show::new(args.json)).await else {
        return Ok(Status::Unknown);
    };
    let mut status = Status::of_report(&report, args.fail_above);
    if let Some(error) = report_file.and_then(|file| file.write(&report).err()) {
        eprintln!("migrate: {error:#}");
        status = status.unreported();
    }
    if let Some(verdict) = words::too_slow(&report, args.fail_above) {
        eprintln!("{verdict}");
    }
    Ok(status)
}

/// Where the report goes. Opened before the migration starts: afterwards it cannot be done again.
struct ReportFile {
    path: PathBuf,
    file: File,
}

impl ReportFile {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| {
            format!("the report cannot be written to {}, so nothing was started", path.display())
        })?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn write(self, report: &Report) -> anyhow::Result<()> {
        let mut file = BufWriter::new(self.file);
        let written = serde_json::to_writer_pretty(&mut file, report).map_err(io::Error::from);
        let written = written.and_then(|()| writeln!(file)).and_then(|()| file.flush());
        written.with_context(|| {
            format!("the migration is over, but its report could not be written to {}", self.path.display())
        })
    }
}
