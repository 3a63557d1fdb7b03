//! What `vmm` says to a person.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use migrate::cli::words::{bytes, count};
use migrate::client::types::{Life, VmInfo};

use super::detach::Ready;
use crate::control::Ending;
use crate::vcpu::{Common, Feature, HostCpu};

/// At the start, on a terminal.
pub(super) const HOW_TO_STOP: &str = "the keyboard is the guest's; Ctrl-A x stops the VM";

/// At the start of `vmm console`, on a terminal.
pub(super) const HOW_TO_LEAVE: &str = "the keyboard is the guest's; Ctrl-A x leaves, the VM goes on";

/// At the start, where the kernel cannot.
pub(super) const NO_LANDLOCK: &str =
    "this kernel has no Landlock: the VMM reaches all files that its user can reach";

/// At the end of `vmm console`.
pub(super) const VM_ENDED: &str = "the VM has ended here";

/// At the end of `vmm console`.
pub(super) fn not_read(bytes: usize) -> String {
    format!("{} bytes that were typed were not taken: the guest has not read them", count(bytes as u64))
}

/// Says it, on standard error. Nobody may be listening.
pub(super) fn say(words: &str) {
    let _ = writeln!(io::stderr(), "{words}");
}

pub(super) fn runs(name: &str, socket: &Path) -> String {
    format!("{name} runs; its control socket is {}", socket.display())
}

pub(super) fn listens(address: &SocketAddr) -> String {
    format!("listening on {address}")
}

pub(super) fn detached(ready: &Ready) -> String {
    let mut words = format!("name    {}\nsocket  {}\n", ready.name, ready.socket.display());
    if let Some(listen) = &ready.listen {
        let _ = writeln!(words, "listen  {listen}");
    }
    words
}

pub(super) fn stopping(why: &str) -> String {
    format!("stopping the VM ({why})")
}

pub(super) fn cannot_stop(reason: &str) -> String {
    format!("the VM goes on: {reason}")
}

pub(super) fn ended(name: &str, ending: &Ending) -> String {
    match ending {
        Ending::Moved { to } => format!("the guest moved to {to}"),
        Ending::Stopped => format!("{name} has stopped"),
        Ending::Crashed(why) => format!("{name} crashed: {why}"),
    }
}

/// One line a VM, under a head; the columns line up.
pub(super) fn list(running: &[VmInfo]) -> String {
    let mut rows = vec![["NAME", "PID", "STATE", "GUEST", "MEMORY", "VCPUS", "LISTEN"].map(str::to_owned)];
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    rows.extend(running.iter().map(|vm| {
        [
            vm.name.clone(),
            vm.pid.to_string(),
            life(vm.life).to_owned(),
            or_dash(vm.guest.clone()),
            or_dash(vm.memory.map(|memory| bytes(memory as f64))),
            or_dash(vm.vcpus.map(|vcpus| vcpus.to_string())),
            or_dash(vm.listen.clone()),
        ]
    }));
    let wide = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(wide);
    let line = |row: &[String; 7]| {
        let cells: String = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        format!("{}\n", cells.trim_end())
    };
    rows.iter().map(line).collect()
}

/// One line a fact; what is not known is left out.
pub(super) fn info(vm: &VmInfo) -> String {
    let facts = [
        ("name", Some(vm.name.clone())),
        ("pid", Some(vm.pid.to_string())),
        ("state", Some(life(vm.life).to_owned())),
        ("guest", vm.guest.clone()),
        ("uuid", vm.uuid.map(|uuid| uuid.to_string())),
        ("memory", vm.memory.map(|memory| bytes(memory as f64))),
        ("vcpus", vm.vcpus.map(|vcpus| vcpus.to_string())),
        ("listen", vm.listen.clone()),
        ("work", vm.work_per_s.map(|work| format!("{}/s", count(work.max(0.0) as u64)))),
        ("corruptions", vm.corruptions.map(count)),
        ("reboots", Some(vm.reboots).filter(|reboots| *reboots > 0).map(count)),
    ];
    let known =
        facts.into_iter().filter_map(|(what, value)| value.map(|value| format!("{what:<12}{value}\n")));
    known.collect()
}

/// What a host offers.
pub(super) fn host_cpu(host: &HostCpu) -> String {
    let cpu = &host.cpu;
    let bits = |bits: Option<u32>| bits.map_or_else(|| "?".to_owned(), |bits| bits.to_string());
    let (physical, linear) = (bits(cpu.physical_bits()), bits(cpu.linear_bits()));
    let level = host.level.as_deref().unwrap_or("below x86-64-v1");
    let features: Vec<_> = Feature::all_of(cpu).filter_map(Feature::name).collect();
    let always: Vec<_> = host.always.iter().map(String::as_str).collect();
    let mut words = format!("vendor      {}\nlevel       {level}\n", host.vendor);
    let _ = writeln!(words, "addresses   {physical} bits physical, {linear} bits linear");
    words += &paragraph("features", &features);
    if !always.is_empty() {
        words += &paragraph("always", &always);
        words += "            (KVM here shows these to every guest, whatever its --cpu)\n";
    }
    words
}

/// What hosts have in common.
pub(super) fn common_cpu(vendor: &str, common: &Common) -> String {
    let features: Vec<_> = common.features.iter().filter_map(|feature| feature.name()).collect();
    let head = format!("vendor      {vendor}\nlevel       {}\n", common.level);
    format!("{head}{}run with    --cpu {}\n", paragraph("features", &features), common.choice)
}

/// A word at the left and many at the right, in lines of at most 100 columns.
fn paragraph(what: &str, words: &[&str]) -> String {
    let mut text = format!("{what:<11}");
    let mut column = text.len();
    for word in words {
        if column + 1 + word.len() > 100 {
            let _ = write!(text, "\n{:11}", "");
            column = 11;
        }
        let _ = write!(text, " {word}");
        column += 1 + word.len();
    }
    text + "\n"
}

fn life(life: Life) -> &'static str {
    match life {
        Life::Waiting => "waiting",
        Life::Arriving => "arriving",
        Life::Running => "running",
        Life::Paused => "paused",
        Life::Rebooting => "rebooting",
        Life::Leaving => "leaving",
        Life::Unknown => "in doubt",
        Life::Stopped => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting() -> VmInfo {
        VmInfo {
            name: "receive-7000".to_owned(),
            pid: 4711,
            life: Life::Waiting,
            guest: None,
            uuid: None,
            memory: None,
            vcpus: None,
            listen: Some("127.0.0.1:7000".to_owned()),
            corruptions: None,
            work_per_s: None,
            doubt: None,
            reboots: 0,
        }
    }

    #[test]
    fn a_list_has_columns() {
        let running = VmInfo {
            name: "demo".to_owned(),
            life: Life::Running,
            guest: Some("demo".to_owned()),
            memory: Some(1 << 30),
            vcpus: Some(2),
            listen: None,
            ..waiting()
        };
        let words = "\
NAME          PID   STATE    GUEST  MEMORY    VCPUS  LISTEN
demo          4711  running  demo   1.00 GiB  2      -
receive-7000  4711  waiting  -      -         -      127.0.0.1:7000
";
        assert_eq!(list(&[running, waiting()]), words);
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let words =
            "name        receive-7000\npid         4711\nstate       waiting\nlisten      127.0.0.1:7000\n";
        assert_eq!(info(&waiting()), words);
    }

    #[test]
    fn endings() {
        let said = |ending| ended("demo", &ending);
        assert_eq!(said(Ending::Moved { to: "h:7".into() }), "the guest moved to h:7");
        assert_eq!(said(Ending::Stopped), "demo has stopped");
        assert_eq!(said(Ending::Crashed("triple fault".into())), "demo crashed: triple fault");
    }
}
