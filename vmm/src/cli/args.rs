//! The arguments of `vmm`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use migrate::protection::Admission;
use uuid::Uuid;

use crate::bench::BenchArgs;
use crate::config::{
    ArrivalConfig, Cmdline, DiskConfig, GuestName, Kernel, MachineConfig, MemorySize, NicConfig, OnReset,
    TapConfig, Vcpus,
};
use crate::demo::DemoArgs;
use crate::lab::tether::TetherArgs;
use crate::sandbox::Seccomp;
use crate::vcpu::CpuChoice;

/// Runs virtual machines that can be moved to another host while they run.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, arg_required_else_help = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest and host it until it ends or has moved away
    Run(RunArgs),
    /// Wait for a guest from another host, and host it
    Receive(ReceiveArgs),
    /// List the VMs of this user that run here
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what a VM is and how it is
    Info {
        /// Which VM.
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a guest's console and type into it
    Console(Which),
    /// Say what CPU a guest can have here, or on all of several hosts
    Cpu(CpuArgs),
    /// Pause a guest
    Pause(Which),
    /// Let a paused guest run on
    Resume(Which),
    /// Press a guest's power button: if it listens, it shuts down in order
    Shutdown {
        /// Which VM.
        #[command(flatten)]
        which: Which,
        /// Wait until it has powered off, and fail if it has not by then
        #[arg(long, value_name = "SECONDS")]
        wait: Option<u32>,
    },
    /// End a guest and its VMM
    Stop(Which),
    /// Move a demo guest back and forth on this host by every mode, and check that nothing is lost
    Demo(DemoArgs),
    /// Measure what moving a demo guest on this host costs, for a grid of modes, sizes and loads
    Bench(BenchArgs),
    /// Write the demo guest's kernel to standard output
    GuestImage,
    /// Go on as another command of this program, which ends with whoever started it
    #[command(hide = true)]
    Tethered(TetherArgs),
}

/// Which VM.
#[derive(Debug, Args)]
pub struct Which {
    /// The VM [default: the only one running]
    pub name: Option<String>,
}

/// What to say of CPUs.
#[derive(Debug, Args)]
pub struct CpuArgs {
    /// Print JSON: a description of this host that can be kept
    #[arg(long)]
    pub json: bool,
    /// Say what the hosts of these descriptions have in common, and the --cpu for guests that are to move among them
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["json", "names"])]
    pub common: Vec<PathBuf>,
    /// List the names of all features there are
    #[arg(long, conflicts_with = "json")]
    pub names: bool,
}

/// What to boot.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The VM's name, unique on this host
    #[arg(long, default_value = "demo")]
    pub name: GuestName,
    /// Memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub memory: MemorySize,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value = "2")]
    pub cpus: Vcpus,
    /// CPU: host, or x86-64-v1 to -v4; then +FEATURE, -FEATURE (vmm cpu lists them)
    #[arg(long, value_name = "LIST", default_value = "host", allow_hyphen_values = true)]
    pub cpu: CpuChoice,
    /// Kernel to boot: a Linux bzImage or vmlinux, or an ELF file with a PVH entry [default: the demo guest]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial file system
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initramfs: Option<PathBuf>,
    /// Disk of the guest: a raw image, read-only with ro, known to the guest by NAME; may be given several times
    #[arg(long = "disk", value_name = "FILE[,ro][,serial=NAME]", requires = "kernel")]
    pub disks: Vec<DiskConfig>,
    /// Network interface of the guest: on the tap interface NAME, which may be made, and made a port of BRIDGE; may be
    /// given several times
    #[arg(long = "net", value_name = "tap=NAME[,create][,bridge=BRIDGE][,mac=MAC]", requires = "kernel")]
    pub nics: Vec<NicConfig>,
    /// Give the guest a virtio console (hvc0) besides its serial port; both are the console, and what is typed goes to
    /// this one once the guest has a driver for it
    #[arg(long, requires = "kernel")]
    pub virtio_console: bool,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub cmdline: Cmdline,
    /// The guest's identity, which survives every move. A guest that has left this host does not boot here again [default:
    /// a new one]
    #[arg(long, value_name = "UUID")]
    pub uuid: Option<Uuid>,
    /// End when the guest resets, instead of booting it again
    #[arg(long)]
    pub no_reboot: bool,
    /// How to host it.
    #[command(flatten)]
    pub hosting: HostingArgs,
}

/// How to wait for a guest.
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// Address to wait at; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: String,
    /// The VM's name, unique on this host [default: receive-PORT]
    #[arg(long)]
    pub name: Option<GuestName>,
    /// Tap interface here for the guest's network interface, in the place of the source's NAME; may be given several
    /// times, for the first, the second and so on
    #[arg(long = "net", value_name = "tap=NAME[,create][,bridge=BRIDGE]")]
    pub taps: Vec<TapConfig>,
    /// Directory that the disks, the kernel and the initial file system of a guest that comes are in; may be given several
    /// times [default: any]
    #[arg(long, value_name = "DIR", conflicts_with = "no_landlock")]
    pub guest_files: Vec<PathBuf>,
    /// The most that guests' CPUs may have here, as for run: host, or x86-64-v1 to -v4; then +FEATURE, -FEATURE
    #[arg(long, value_name = "LIST", default_value = "host", allow_hyphen_values = true)]
    pub cpu: CpuChoice,
    /// Let in only guests whose connections are protected by TLS, with the certificates in DIR (ca.pem, cert.pem, key.pem)
    #[arg(long, value_name = "DIR", group = "protection")]
    pub tls: Option<PathBuf>,
    /// Let in only hosts whose certificate has one of these names [default: any certificate of the CA]
    #[arg(long = "allow-source", value_name = "NAME", num_args = 1.., requires = "tls")]
    pub allowed: Vec<String>,
    /// Let in only guests whose connections are protected by TLS, with a key in FILE that the source has as well
    #[arg(long, value_name = "FILE", group = "protection")]
    pub psk: Option<PathBuf>,
    /// Let in anyone who can reach an address of this host: on networks where all are trusted
    #[arg(long, group = "protection")]
    pub insecure: bool,
    /// How to host it.
    #[command(flatten)]
    pub hosting: HostingArgs,
}

/// How a VMM presents itself.
#[derive(Debug, Args)]
pub struct HostingArgs {
    /// Where the guest's console goes; - is standard output [default: -, with --detach nowhere but vmm console]
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Go on in the background; returns when the VM is there
    #[arg(long)]
    pub detach: bool,
    /// What becomes of a system call that the VMM has no need of
    #[arg(long, value_name = "WHAT", value_enum, default_value = "kill")]
    pub seccomp: Seccomp,
    /// Leave all files in reach that the user can reach. Otherwise the VMM reaches only those it needs (Landlock), where
    /// the kernel has Landlock (Linux 5.13)
    #[arg(long)]
    pub no_landlock: bool,
    /// This is the process in the background.
    #[arg(long, hide = true)]
    pub detached: bool,
}

impl ReceiveArgs {
    /// What a guest finds here.
    pub(super) fn arrival(&self) -> ArrivalConfig {
        ArrivalConfig { taps: self.taps.clone(), cpu: self.cpu.clone() }
    }

    /// Whom to let in; `None`: anyone.
    pub(super) fn admission(&self) -> Option<Admission> {
        match (&self.tls, &self.psk) {
            (Some(dir), _) => {
                Some(Admission::Certificates { dir: dir.clone(), sources: self.allowed.clone() })
            }
            (None, Some(file)) => Some(Admission::SharedKey { file: file.clone() }),
            (None, None) => None,
        }
    }

    /// Whether anyone may come, although not from this host alone: somebody must have said so.
    pub(super) fn exposes(&self, address: &SocketAddr) -> bool {
        self.admission().is_none() && !self.insecure && !address.ip().is_loopback()
    }
}

impl RunArgs {
    /// The machine asked for: a new one, with an identity of its own.
    pub(super) fn machine(&self) -> MachineConfig {
        MachineConfig {
            name: self.name.clone(),
            uuid: self.uuid.unwrap_or_else(Uuid::new_v4),
            memory: self.memory,
            cpus: self.cpus,
            cpu: self.cpu.clone(),
            cmdline: self.cmdline.clone(),
            kernel: self.kernel.clone().map_or(Kernel::Demo, Kernel::File),
            initramfs: self.initramfs.clone(),
            disks: self.disks.clone(),
            nics: self.nics.clone(),
            virtio_console: self.virtio_console,
            on_reset: if self.no_reboot { OnReset::End } else { OnReset::Reboot },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &[&str]) -> Result<Command, String> {
        let arguments = Arguments::try_parse_from([&["vmm"], line].concat());
        arguments.map(|arguments| arguments.command).map_err(|error| error.to_string())
    }

    #[test]
    fn clap_finds_no_contradiction() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_guest_with_everything() {
        let line =
            ["run", "--memory", "256M", "--cpus", "4", "--name", "a", "--kernel", "k", "--initramfs", "i"];
        let Ok(Command::Run(args)) = parse(&[&line[..], &["--cmdline", "console=ttyS0 quiet"]].concat())
        else {
            panic!()
        };
        let machine = args.machine();
        assert_eq!((machine.memory.bytes(), machine.cpus.get(), machine.name.as_str()), (256 << 20, 4, "a"));
        assert_eq!((machine.kernel, machine.initramfs), (Kernel::File("k".into()), Some("i".into())));
        assert_eq!(machine.cmdline.as_str(), "console=ttyS0 quiet");
        let Ok(Command::Run(args)) = parse(&["run", "--kernel", "k", "--disk", "d", "--disk", "e,ro"]) else {
            panic!()
        };
        assert_eq!(args.machine().on_reset, OnReset::Reboot);
        let disks = args.machine().disks;
        assert_eq!(disks, ["d".parse().unwrap(), "e,ro".parse().unwrap()]);
        let Ok(Command::Run(args)) = parse(&["run", "--kernel", "k", "--virtio-console"]) else { panic!() };
        assert!(args.machine().virtio_console);
    }

    #[test]
    fn a_cpu_may_begin_with_what_is_less() {
        for list in ["-avx", "host,-avx"] {
            let Ok(Command::Run(args)) = parse(&["run", "--cpu", list]) else { panic!("{list}") };
            assert_eq!(args.machine().cpu.to_string(), "host,-avx");
        }
        let Ok(Command::Receive(args)) = parse(&["receive", "--listen", "h:1", "--cpu", "x86-64-v2"]) else {
            panic!()
        };
        assert_eq!(args.arrival().cpu.to_string(), "x86-64-v2");
        assert!(parse(&["run", "--cpu", "i386"]).unwrap_err().contains("CPU \"i386\" is not known"));
    }

    #[test]
    fn without_protection_only_this_host_may_come_unless_somebody_says_otherwise() {
        let exposes = |words: &[&str], address: &str| {
            let line = [&["receive", "--listen", "h:1"], words].concat();
            let Ok(Command::Receive(args)) = parse(&line) else { panic!("{line:?}") };
            args.exposes(&address.parse().unwrap())
        };
        for address in ["127.0.0.1:7", "127.8.0.1:7", "[::1]:7"] {
            assert!(!exposes(&[], address), "{address}");
        }
        for address in ["0.0.0.0:7", "10.0.0.1:7", "[::]:7", "[fe80::1]:7"] {
            assert!(exposes(&[], address), "{address}");
            for words in [&["--insecure"][..], &["--tls", "d"], &["--psk", "k"]] {
                assert!(!exposes(words, address), "{address} {words:?}");
            }
        }
        let line = ["receive", "--listen", "h:1", "--tls", "d", "--allow-source", "a", "b"];
        let Ok(Command::Receive(args)) = parse(&line) else { panic!() };
        let sources = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(args.admission(), Some(Admission::Certificates { dir: "d".into(), sources }));
    }

    #[test]
    fn the_demo_guest_needs_no_arguments() {
        let Ok(Command::Run(args)) = parse(&["run", "--no-reboot"]) else { panic!() };
        assert_eq!(args.machine().on_reset, OnReset::End);
        let machine = args.machine();
        assert_eq!(
            (machine.kernel, machine.name.as_str(), machine.memory.bytes()),
            (Kernel::Demo, "demo", 1 << 30)
        );
    }

    #[test]
    fn bad_values_are_named() {
        let wrong = |line: &[&str], says: &str| {
            let error = parse(line).unwrap_err();
            assert!(error.contains(says), "{error}");
        };
        wrong(&["run", "--memory", "12"], "write for example 256M or 2G");
        wrong(&["run", "--cpus", "0"], "give 1 to");
        wrong(&["run", "--name", "../x"], "is not possible");
        wrong(&["run", "--initramfs", "i"], "--kernel <FILE>");
        wrong(&["run", "--disk", "d"], "--kernel <FILE>");
        wrong(&["run", "--virtio-console"], "--kernel <FILE>");
        wrong(&["run", "--kernel", "k", "--disk", "d,rw"], "write FILE[,ro][,serial=NAME]");
        wrong(&["receive"], "--listen <HOST:PORT>");
        wrong(&["receive", "--listen", "h:1", "--tls", "d", "--psk", "k"], "cannot be used with");
        wrong(&["receive", "--listen", "h:1", "--tls", "d", "--insecure"], "cannot be used with");
        wrong(&["receive", "--listen", "h:1", "--allow-source", "a"], "--tls <DIR>");
    }
}
