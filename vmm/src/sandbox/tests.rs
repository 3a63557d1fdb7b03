//! Each kind of thread, confined, in a process of its own that then tries what it must not and what it must be able to.
//!
//! Filters and Landlock cannot be taken off again, so a test starts its own program once more, with the one test [`attempt`]
//! and the name of what is to be tried; and looks at how that process ends.

#![expect(unsafe_code, reason = "makes forbidden system calls by their numbers")]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use migrate::client::RuntimeDir;
use rustix::process::DumpableBehavior;

use super::*;

/// What the process in which it is tried is told: the kind's number, what becomes of violations, a folder, what to try.
const TOLD: &str = "VMM_SANDBOX_ATTEMPT";

/// Calls that no thread has any need of: name, number, arguments.
const FORBIDDEN: [(&str, i64, [u64; 3]); 27] = [
    ("execve", libc::SYS_execve, [0; 3]),
    ("execveat", libc::SYS_execveat, [0; 3]),
    ("fork", libc::SYS_fork, [0; 3]),
    ("clone of a process", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0]),
    ("ptrace", libc::SYS_ptrace, [libc::PTRACE_ATTACH as u64, 1, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0]),
    ("kill", libc::SYS_kill, [1, 0, 0]),
    ("tgkill of another process", libc::SYS_tgkill, [1, 1, 0]),
    ("setuid", libc::SYS_setuid, [0; 3]),
    ("setresuid", libc::SYS_setresuid, [0; 3]),
    ("capset", libc::SYS_capset, [0; 3]),
    ("mount", libc::SYS_mount, [0; 3]),
    ("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0]),
    ("setns", libc::SYS_setns, [0; 3]),
    ("bpf", libc::SYS_bpf, [0; 3]),
    ("kexec_load", libc::SYS_kexec_load, [0; 3]),
    ("init_module", libc::SYS_init_module, [0; 3]),
    ("reboot", libc::SYS_reboot, [0; 3]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [0; 3]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0; 3]),
    ("perf_event_open", libc::SYS_perf_event_open, [0; 3]),
    ("keyctl", libc::SYS_keyctl, [0; 3]),
    ("socket of packets", libc::SYS_socket, [libc::AF_PACKET as u64, libc::SOCK_RAW as u64, 0]),
    ("raw socket", libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_RAW as u64, 1]),
    ("typing into a terminal", libc::SYS_ioctl, [0, 0x5412, 0]),
    ("another's cores", libc::SYS_sched_setaffinity, [1, 0, 0]),
    ("making memory executable", libc::SYS_mprotect, [0, 0, (libc::PROT_READ | libc::PROT_EXEC) as u64]),
];

/// Calls that some threads need and these do not.
const NARROWER: [(ThreadKind, &str, i64, [u64; 3]); 10] = [
    (ThreadKind::Departing, "KVM_CREATE_VM", libc::SYS_ioctl, [0, 0xae01, 0]),
    (ThreadKind::Departing, "KVM_RUN", libc::SYS_ioctl, [0, 0xae80, 0]),
    (ThreadKind::Departing, "KVM_SET_REGS", libc::SYS_ioctl, [0, 0x4090_ae82, 0]),
    (ThreadKind::Arriving, "epoll_create1", libc::SYS_epoll_create1, [0; 3]),
    (ThreadKind::Device, "KVM_RUN", libc::SYS_ioctl, [0, 0xae80, 0]),
    (ThreadKind::Device, "its own cores", libc::SYS_sched_setaffinity, [0; 3]),
    (ThreadKind::Device, "socket", libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0]),
    (ThreadKind::Vcpu, "socket", libc::SYS_socket, [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0]),
    (ThreadKind::Vcpu, "clone of a thread", libc::SYS_clone, [libc::CLONE_THREAD as u64, 0, 0]),
    (ThreadKind::Vcpu, "KVM_SET_USER_MEMORY_REGION", libc::SYS_ioctl, [0, 0x4020_ae46, 0]),
];

/// Tries it in a process that is confined, in which this folder is the runtime directory.
fn try_in(folder: &Path, kind: ThreadKind, seccomp: &str, what: &str) -> Output {
    let folder = folder.to_str().unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::tests::attempt", "--nocapture", "--test-threads=1"])
        .env(TOLD, format!("{}\n{seccomp}\n{folder}\n{what}", kind as usize))
        .env_remove("VMM_STATE_DIR")
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
}

/// Not a test by itself: what the process does that [`try_in`] starts. It never returns to the harness, which would need
/// more.
#[test]
fn attempt() {
    let Ok(told) = std::env::var(TOLD) else { return };
    let told: Vec<_> = told.split('\n').map(str::to_owned).collect();
    let [kind, seccomp, folder, what] = <[String; 4]>::try_from(told).unwrap();
    let kind = ThreadKind::ALL[kind.parse::<usize>().unwrap()];
    let files =
        Files::of_every_vmm(&RuntimeDir::at(&folder)).writes(Path::new(&folder).with_extension("guest"));
    enter(Seccomp::from_str(&seccomp, false).unwrap(), Some(&files)).unwrap();
    // Of its own name, as the VMM's threads are. The main thread is of the first kind.
    let body = move || {
        if kind != ThreadKind::Control {
            confine(kind);
        }
        do_it(kind, &what, Path::new(&folder));
    };
    thread::Builder::new().name("trying".into()).spawn(body).unwrap().join().unwrap();
    std::process::exit(0);
}

fn do_it(kind: ThreadKind, what: &str, folder: &Path) {
    let narrower = NARROWER.iter().map(|(_, name, number, arguments)| (*name, *number, *arguments));
    if let Some((_, number, [a, b, c])) = FORBIDDEN.into_iter().chain(narrower).find(|it| it.0 == what) {
        // SAFETY: it is forbidden, or (where violations are only logged) has arguments that the kernel refuses.
        unsafe { libc::syscall(number, a, b, c) };
        return;
    }
    match what {
        "live" => live(kind, folder),
        "reach files" => reach_files(folder),
        "tell" => println!(
            "privileges {} dumpable {}",
            !rustix::thread::no_new_privs().unwrap(),
            rustix::process::dumpable_behavior().unwrap() == DumpableBehavior::Dumpable
        ),
        other => panic!("{other}?"),
    }
}

/// What a thread of this kind must be able to do.
fn live(kind: ThreadKind, folder: &Path) {
    let large = vec![1_u8; 8 << 20];
    assert_eq!(large.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 8 << 20);
    assert!(thread::available_parallelism().is_ok());
    thread::sleep(std::time::Duration::from_millis(1));
    io::stderr().write_all(b"it lives\n").unwrap();
    if matches!(kind, ThreadKind::Device | ThreadKind::Vcpu) {
        let error = File::open("/proc/meminfo").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES), "refused, and not killed for it");
        return;
    }
    thread::spawn(|| ()).join().unwrap();
    let error = UnixStream::connect("/run/other.sock").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES), "no other process's socket");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut to = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut from, _) = listener.accept().unwrap();
    to.write_all(b"x").unwrap();
    from.read_exact(&mut [0]).unwrap();
    // Whether it has an address is the host's affair; that asking is allowed is ours.
    let _ = "a-host-of-that-name.invalid:1".to_socket_addrs();
    fs::write(folder.join("journal.new"), "x").unwrap();
    fs::rename(folder.join("journal.new"), folder.join("journal")).unwrap();
    File::open(folder.join("journal")).unwrap().sync_all().unwrap();
    fs::remove_file(folder.join("journal")).unwrap();
}

/// What is in reach, and what is not, for the user that could reach all of it.
fn reach_files(folder: &Path) {
    let denied = |result: io::Result<()>, what: &str| match result {
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{what}: {error}"),
        Ok(()) => panic!("{what} is in reach"),
    };
    denied(File::open("/etc/shadow").map(drop), "/etc/shadow");
    denied(File::open("/etc/passwd").map(drop), "/etc/passwd");
    denied(fs::read_dir("/").map(drop), "the root directory");
    denied(fs::write(folder.with_extension("other"), "x"), "a new file beside the runtime directory");
    fs::read("/proc/meminfo").unwrap();
    fs::write(folder.join("new"), "x").unwrap();
    let guest = folder.with_extension("guest");
    let disk = guest.join("disk");
    File::options().read(true).write(true).open(&disk).unwrap().write_all(b"x").unwrap();
    denied(fs::write(guest.join("more"), "x"), "a new file among the guest's");
    denied(fs::remove_file(&disk), "the guest's disk, to be removed");
    denied(File::options().write(true).truncate(true).open(&disk).map(drop), "the guest's disk, to be cut");
}

fn forbidden(output: &Output, name: &str, number: i64, kind: ThreadKind) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{kind:?}: {name}: {}: {said}", output.status);
    let line = format!("vmm: thread trying made the forbidden system call {number} (0x");
    assert!(said.contains(&line), "{kind:?}: {name}: {said}");
    assert!(said.ends_with("log such calls\n"), "{said}");
}

#[test]
fn what_no_thread_needs_ends_the_process_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for kind in ThreadKind::ALL {
        for (name, number, _) in FORBIDDEN {
            forbidden(&try_in(folder.path(), kind, "kill", name), name, number, kind);
        }
    }
}

#[test]
fn what_other_threads_need_ends_the_process_too() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, name, number, _) in NARROWER {
        forbidden(&try_in(folder.path(), kind, "kill", name), name, number, kind);
    }
}

#[test]
fn every_thread_can_do_its_work() {
    let folder = tempfile::tempdir().unwrap();
    for kind in ThreadKind::ALL {
        let output = try_in(folder.path(), kind, "kill", "live");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("it lives"), "{kind:?}: {}: {said}", output.status);
    }
}

#[test]
fn a_violation_can_be_logged_instead() {
    let folder = tempfile::tempdir().unwrap();
    for seccomp in ["log", "off"] {
        let output = try_in(folder.path(), ThreadKind::Vcpu, seccomp, "ptrace");
        assert!(output.status.success(), "{seccomp}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn no_privilege_is_gained_and_no_core_is_dumped() {
    // Not "kill": the VMM has no need to ask what is asked here.
    let folder = tempfile::tempdir().unwrap();
    for (seccomp, expected) in
        [("log", "privileges false dumpable false"), ("off", "privileges false dumpable true")]
    {
        let output = try_in(folder.path(), ThreadKind::Control, seccomp, "tell");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(expected), "{seccomp}: {said}");
    }
}

/// Proves nothing where the kernel has no Landlock, and says so.
#[test]
fn files_are_out_of_reach_that_the_vmm_has_no_need_of() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = folder.path().join("runtime");
    let guest = runtime.with_extension("guest");
    [&runtime, &guest].iter().for_each(|folder| fs::create_dir(folder).unwrap());
    fs::write(guest.join("disk"), "disk").unwrap();
    if landlock_is_missing() {
        eprintln!("NOT PROVEN: this kernel has no Landlock");
        return;
    }
    let output = try_in(&runtime, ThreadKind::Control, "kill", "reach files");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// `landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION)`.
fn landlock_is_missing() -> bool {
    // SAFETY: asks for a number, with no memory involved.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, 1) < 3 }
}

#[test]
fn the_lists_make_programs_that_the_kernel_takes() {
    for kind in ThreadKind::ALL {
        // BPF_MAXINSNS of linux/bpf_common.h.
        assert!(Filter::of(kind, Seccomp::Kill).len() < 4096, "{kind:?}");
    }
}
