//! `migrate tls`: makes certificates and keys, and says what to copy where.

use std::path::Path;

use super::Status;
use super::args::TlsCommand;
use crate::protection::authority::{self, CA_KEY, Made};

/// Makes what was asked for.
pub(super) fn make(command: &TlsCommand) -> anyhow::Result<Status> {
    match command {
        TlsCommand::Init { dir, hosts } => eprint!("{}", words(dir, &authority::init(dir, hosts)?)),
        TlsCommand::Psk { out } => {
            authority::shared_key(out)?;
            eprintln!(
                "{} is made; copy it to both hosts, with mode 0600, and give it as --psk",
                out.display()
            );
        }
    }
    Ok(Status::Moved)
}

fn words(dir: &Path, made: &Made) -> String {
    let mut words = String::new();
    if made.authority {
        words += &format!("new CA in {}; keep {CA_KEY} secret and here\n", dir.display());
    }
    for host in &made.hosts {
        let (folder, name) = (host.display(), host.file_name().unwrap_or_default().display());
        words += &format!(
            "{folder} is for {name}: copy it there, to a place of your choice, and give it as --tls\n"
        );
    }
    if made.hosts.is_empty() {
        words += &format!("a host is added by: migrate tls init --dir {} --host NAME\n", dir.display());
    }
    words
}
