//! Who may call what, thread by thread: the whole of it, to be read.
//!
//! A call that is in no list of a thread's kind is forbidden to it. In no list at all, and so forbidden everywhere, are: other
//! programs and processes (execve, fork, ptrace, process_vm_readv, kill of others, pidfd), other users and rights (setuid and
//! its family, capset), the host (mount, namespaces, bpf, kexec, modules, the clock, reboot, swap, quotas), files without a
//! path (open_by_handle_at, name_to_handle_at), io_uring, keys, perf, and memory that is both writable and executable.

use std::ffi::c_int;

use super::ioctls;

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// The process as a whole: the main thread, the control API's, the one that boots a guest again. Others descend from
    /// them.
    Control,
    /// A guest that arrives: builds a machine, starts its threads, receives.
    Arriving,
    /// A guest that leaves: reads its memory, sends. No machine is built.
    Departing,
    /// Serves a device of the guest: console, network, disk. What it reads comes from the guest.
    Device,
    /// Runs the guest.
    Vcpu,
}

impl ThreadKind {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Control, Self::Arriving, Self::Departing, Self::Device, Self::Vcpu];

    /// What it may call.
    pub(super) fn calls(self) -> impl Iterator<Item = Call> {
        let lists: &[&[Call]] = match self {
            Self::Control => &[
                RUNTIME, THREADS, LIBRARIES, FILES, GUEST_IO, SOCKETS, MACHINE, BUILD, VCPU, VCPU_STATE,
                CONTROL,
            ],
            Self::Arriving => {
                &[RUNTIME, THREADS, LIBRARIES, FILES, GUEST_IO, SOCKETS, MACHINE, BUILD, VCPU, VCPU_STATE]
            }
            Self::Departing => &[RUNTIME, THREADS, LIBRARIES, FILES, GUEST_IO, SOCKETS, MACHINE, VCPU_STATE],
            Self::Device => &[RUNTIME, GUEST_IO, DEVICE],
            Self::Vcpu => &[RUNTIME, GUEST_IO, VCPU, VCPU_STATE],
        };
        lists.iter().copied().flatten().copied()
    }

    /// What it is refused with an error, because it goes on well without.
    pub(super) fn refused(self) -> &'static [Refused] {
        match self {
            Self::Control | Self::Arriving | Self::Departing => NOT_HERE,
            Self::Device | Self::Vcpu => NO_FILES,
        }
    }
}

/// A call that may be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) number: i64,
    pub(super) only: Only,
}

/// With which arguments, counted from 0. Of each, the lower 32 bits are looked at, which is all that the kernel looks at in
/// those that the lists name.
#[derive(Debug, Clone, Copy)]
pub(super) enum Only {
    /// With all.
    Any,
    /// When that argument is one of these.
    OneOf(u8, &'static [u32]),
    /// When for one of these choices everything holds.
    Where(&'static [&'static [Bits]]),
    /// When that argument is this process.
    OwnProcess(u8),
}

/// An argument whose bits under a mask have a value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits(pub(super) u8, pub(super) u32, pub(super) u32);

/// A call that is answered with an error, and not made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused {
    pub(super) call: Call,
    pub(super) error: c_int,
}

impl Call {
    pub(super) const fn any(number: i64) -> Self {
        Self { number, only: Only::Any }
    }

    const fn one_of(number: i64, argument: u8, values: &'static [u32]) -> Self {
        Self { number, only: Only::OneOf(argument, values) }
    }

    const fn only_where(number: i64, choices: &'static [&'static [Bits]]) -> Self {
        Self { number, only: Only::Where(choices) }
    }

    const fn ioctl(numbers: &'static [u32]) -> Self {
        Self::one_of(libc::SYS_ioctl, 1, numbers)
    }
}

const EXEC: u32 = libc::PROT_EXEC as u32;
const WRITE: u32 = libc::PROT_WRITE as u32;
const THREAD: u32 = libc::CLONE_THREAD as u32;
/// All of clone(2)'s namespaces; a thread in one of its own would be a way to new rights.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// What every thread needs to live: Rust's and glibc's runtime, memory, waiting, its own end, and the telling of a violation.
const RUNTIME: &[Call] = &[
    Call::any(libc::SYS_futex),
    Call::any(libc::SYS_read),
    Call::any(libc::SYS_write),
    Call::any(libc::SYS_writev),
    Call::any(libc::SYS_poll),
    Call::any(libc::SYS_ppoll),
    Call::any(libc::SYS_close),
    Call::only_where(libc::SYS_mmap, &[&[Bits(2, EXEC, 0)]]),
    Call::only_where(libc::SYS_mprotect, &[&[Bits(2, EXEC, 0)]]),
    Call::any(libc::SYS_munmap),
    Call::any(libc::SYS_mremap),
    Call::any(libc::SYS_madvise),
    Call::any(libc::SYS_brk),
    Call::any(libc::SYS_sched_yield),
    Call::any(libc::SYS_sched_getaffinity),
    Call::any(libc::SYS_getcpu),
    Call::any(libc::SYS_clock_gettime),
    Call::any(libc::SYS_clock_getres),
    Call::any(libc::SYS_clock_nanosleep),
    Call::any(libc::SYS_nanosleep),
    Call::any(libc::SYS_gettimeofday),
    // Where the kernel's fast clocks are (rustix asks at the first use): PR_GET_AUXV.
    Call::one_of(libc::SYS_prctl, 0, &[0x4155_5856]),
    Call::any(libc::SYS_restart_syscall),
    Call::any(libc::SYS_getrandom),
    Call::any(libc::SYS_getpid),
    Call::any(libc::SYS_gettid),
    Call { number: libc::SYS_tgkill, only: Only::OwnProcess(0) },
    Call::any(libc::SYS_rt_sigaction),
    Call::any(libc::SYS_rt_sigprocmask),
    Call::any(libc::SYS_rt_sigreturn),
    Call::any(libc::SYS_sigaltstack),
    Call::any(libc::SYS_rseq),
    Call::any(libc::SYS_set_robust_list),
    Call::one_of(libc::SYS_prctl, 0, &[libc::PR_GET_NAME as u32, libc::PR_SET_NAME as u32]),
    Call::one_of(libc::SYS_fcntl, 1, &[libc::F_GETFD as u32, libc::F_GETFL as u32]),
    Call::any(libc::SYS_exit),
    Call::any(libc::SYS_exit_group),
];

/// Threads: to start one, and to narrow what it may do. Not processes: fork has no CLONE_THREAD.
const THREADS: &[Call] = &[
    Call::only_where(libc::SYS_clone, &[&[Bits(0, THREAD | NAMESPACES, THREAD)]]),
    Call::any(libc::SYS_set_tid_address),
    Call::any(libc::SYS_seccomp),
    Call::one_of(libc::SYS_prctl, 0, &[libc::PR_SET_NO_NEW_PRIVS as u32]),
    Call::any(libc::SYS_getpriority),
    Call::only_where(
        libc::SYS_setpriority,
        &[&[Bits(0, u32::MAX, libc::PRIO_PROCESS), Bits(1, u32::MAX, 0)]],
    ),
    Call::one_of(libc::SYS_sched_getattr, 0, &[0]),
    Call::one_of(libc::SYS_sched_setattr, 0, &[0]),
    // Its own cores only.
    Call::one_of(libc::SYS_sched_setaffinity, 0, &[0]),
];

/// The libraries that glibc loads to look a host's name up (nss(5)): code, but none that can be written.
const LIBRARIES: &[Call] = &[Call::only_where(libc::SYS_mmap, &[&[Bits(2, WRITE, 0)]])];

/// Files by name. Which ones is [Landlock's](super::files) to say.
const FILES: &[Call] = &[
    Call::any(libc::SYS_openat),
    Call::any(libc::SYS_open),
    Call::any(libc::SYS_statx),
    Call::any(libc::SYS_newfstatat),
    Call::any(libc::SYS_stat),
    Call::any(libc::SYS_lstat),
    Call::any(libc::SYS_statfs),
    Call::any(libc::SYS_access),
    Call::any(libc::SYS_faccessat),
    Call::any(libc::SYS_faccessat2),
    Call::any(libc::SYS_readlink),
    Call::any(libc::SYS_readlinkat),
    Call::any(libc::SYS_getdents64),
    Call::any(libc::SYS_getcwd),
    Call::any(libc::SYS_unlink),
    Call::any(libc::SYS_unlinkat),
    Call::any(libc::SYS_rename),
    Call::any(libc::SYS_renameat),
    Call::any(libc::SYS_renameat2),
    Call::any(libc::SYS_link),
    Call::any(libc::SYS_linkat),
    Call::any(libc::SYS_mkdir),
    Call::any(libc::SYS_mkdirat),
    Call::any(libc::SYS_rmdir),
    Call::any(libc::SYS_fchmod),
    Call::any(libc::SYS_ftruncate),
    Call::any(libc::SYS_flock),
    Call::any(libc::SYS_fstatfs),
    Call::one_of(
        libc::SYS_fcntl,
        1,
        &[
            libc::F_SETFD as u32,
            libc::F_SETFL as u32,
            libc::F_DUPFD_CLOEXEC as u32,
            libc::F_OFD_SETLK as u32,
            libc::F_OFD_GETLK as u32,
            libc::F_SETLK as u32,
            libc::F_GETLK as u32,
        ],
    ),
    Call::any(libc::SYS_getuid),
    Call::any(libc::SYS_geteuid),
    Call::any(libc::SYS_getgid),
    Call::any(libc::SYS_getegid),
    Call::any(libc::SYS_umask),
];

/// Serving a guest's devices on descriptors that are open: disks, taps, consoles, events. And the end of a connection: a
/// guest that ends gives its migration up.
const GUEST_IO: &[Call] = &[
    Call::any(libc::SYS_pread64),
    Call::any(libc::SYS_pwrite64),
    Call::any(libc::SYS_preadv),
    Call::any(libc::SYS_pwritev),
    Call::any(libc::SYS_preadv2),
    Call::any(libc::SYS_pwritev2),
    Call::any(libc::SYS_readv),
    Call::any(libc::SYS_fdatasync),
    Call::any(libc::SYS_fsync),
    Call::any(libc::SYS_fallocate),
    Call::any(libc::SYS_fadvise64),
    Call::any(libc::SYS_lseek),
    Call::any(libc::SYS_fstat),
    Call::any(libc::SYS_shutdown),
];

/// The network: TCP for migrations, UDP and netlink for a host's name (getaddrinfo(3)), UDP for a tap's settings as well. No
/// raw and no packet sockets.
const SOCKETS: &[Call] = &[
    Call::only_where(
        libc::SYS_socket,
        &[
            &[Bits(0, u32::MAX, libc::AF_INET as u32), Bits(1, TYPE, libc::SOCK_STREAM as u32)],
            &[Bits(0, u32::MAX, libc::AF_INET as u32), Bits(1, TYPE, libc::SOCK_DGRAM as u32)],
            &[Bits(0, u32::MAX, libc::AF_INET6 as u32), Bits(1, TYPE, libc::SOCK_STREAM as u32)],
            &[Bits(0, u32::MAX, libc::AF_INET6 as u32), Bits(1, TYPE, libc::SOCK_DGRAM as u32)],
            &[Bits(0, u32::MAX, libc::AF_NETLINK as u32), Bits(2, u32::MAX, libc::NETLINK_ROUTE as u32)],
        ],
    ),
    Call::one_of(libc::SYS_socketpair, 0, &[libc::AF_UNIX as u32]),
    Call::any(libc::SYS_connect),
    Call::any(libc::SYS_bind),
    Call::any(libc::SYS_listen),
    Call::any(libc::SYS_accept4),
    Call::any(libc::SYS_accept),
    Call::any(libc::SYS_getsockname),
    Call::any(libc::SYS_getpeername),
    Call::any(libc::SYS_getsockopt),
    Call::any(libc::SYS_setsockopt),
    Call::any(libc::SYS_sendto),
    Call::any(libc::SYS_recvfrom),
    Call::any(libc::SYS_sendmsg),
    Call::any(libc::SYS_recvmsg),
    Call::any(libc::SYS_sendmmsg),
    Call::any(libc::SYS_recvmmsg),
    Call::any(libc::SYS_uname),
    Call::any(libc::SYS_eventfd2),
    Call::any(libc::SYS_pipe2),
    Call::any(libc::SYS_splice),
    Call::any(libc::SYS_sendfile),
    Call::any(libc::SYS_copy_file_range),
    Call::ioctl(ioctls::ANY_FILE),
];

/// The bits of socket(2)'s second argument that are the type.
const TYPE: u32 = 0xf;

/// A machine that is there: its dirty log, its state.
const MACHINE: &[Call] = &[Call::ioctl(ioctls::MACHINE)];

/// A machine that is built, with memory, faults, taps.
const BUILD: &[Call] = &[
    Call::any(libc::SYS_userfaultfd),
    Call::ioctl(ioctls::FAULTS),
    Call::ioctl(ioctls::BUILD),
    Call::ioctl(ioctls::TAP),
];

/// A vCPU.
const VCPU: &[Call] = &[
    Call::ioctl(ioctls::VCPU),
    // Its own cores only.
    Call::one_of(libc::SYS_sched_setaffinity, 0, &[0]),
];

/// Reading the state of a vCPU that is parked.
const VCPU_STATE: &[Call] = &[Call::ioctl(ioctls::VCPU_STATE)];

/// A device.
const DEVICE: &[Call] = &[Call::ioctl(ioctls::DEVICE)];

/// The control API's event loop and the terminal.
const CONTROL: &[Call] = &[
    Call::any(libc::SYS_epoll_create1),
    Call::any(libc::SYS_epoll_ctl),
    Call::any(libc::SYS_epoll_wait),
    Call::any(libc::SYS_epoll_pwait),
    Call::ioctl(ioctls::TERMINAL),
];

/// clone3's flags lie in memory, where no filter sees them; glibc then takes clone. And no other process of this host is
/// spoken to through its socket (Landlock knows nothing of that): the control socket is there before; glibc, which would ask
/// nscd for a host's name, then asks by itself.
const NOT_HERE: &[Refused] = &[
    Refused { call: Call::any(libc::SYS_clone3), error: libc::ENOSYS },
    Refused { call: Call::one_of(libc::SYS_socket, 0, &[libc::AF_UNIX as u32]), error: libc::EACCES },
];

/// glibc's malloc asks /proc and /sys for advice on any thread, and a panic's backtrace reads the program; both go on without.
const NO_FILES: &[Refused] = &[
    Refused { call: Call::any(libc::SYS_openat), error: libc::EACCES },
    Refused { call: Call::any(libc::SYS_open), error: libc::EACCES },
    Refused { call: Call::any(libc::SYS_readlink), error: libc::EACCES },
    Refused { call: Call::any(libc::SYS_statx), error: libc::EACCES },
    Refused { call: Call::any(libc::SYS_newfstatat), error: libc::EACCES },
    Refused { call: Call::any(libc::SYS_getcwd), error: libc::EACCES },
];
