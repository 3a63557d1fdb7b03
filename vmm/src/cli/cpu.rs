//! `vmm cpu`: what this host offers to guests, and what several hosts have in common.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use super::args::CpuArgs;
use super::words;
use crate::kvm::KvmHost;
use crate::vcpu::{Feature, HostCpu, common};

/// One command: all it prints.
pub(super) fn run(args: &CpuArgs) -> anyhow::Result<String> {
    if args.names {
        return Ok(Feature::all_named().map(|(_, feature)| format!("{feature}\n")).collect());
    }
    if !args.common.is_empty() {
        return among(&args.common);
    }
    let host = HostCpu::here(&KvmHost::open()?)?;
    if args.json { Ok(format!("{}\n", serde_json::to_string(&host)?)) } else { Ok(words::host_cpu(&host)) }
}

/// `--common`. What stands against moving among them is said beside it.
fn among(files: &[PathBuf]) -> anyhow::Result<String> {
    let hosts = files.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let common = common(&hosts)?;
    for (file, host) in files.iter().zip(&hosts) {
        let shown = host.cannot_hide(&common.cpu);
        if !shown.is_empty() {
            words::say(&format!(
                "vmm: the host of {} shows every guest {}: no guest can move between it and a host without",
                file.display(),
                shown.join(", ")
            ));
        }
    }
    Ok(words::common_cpu(&hosts[0].cpu.vendor().unwrap_or_default(), &common))
}

fn read(file: &Path) -> anyhow::Result<HostCpu> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    HostCpu::read(&text).map_err(|why| anyhow!("{} {why}", file.display()))
}
