//! Hosting a guest: from the arguments until it has ended or moved away.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail, ensure};
use migrate::Receiver;
use migrate::client::RuntimeDir;
use migrate::journal::Journals;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::args::{HostingArgs, ReceiveArgs, RunArgs};
use super::confinement;
use super::detach::{self, Ready};
use super::keyboard::{self, Held, Typed};
use super::machine::{self, ConsoleSink};
use super::terminal::RawTerminal;
use super::words;
use crate::control::{ControlSocket, Ending, Vm, serve};

/// `vmm run`.
pub(super) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    if args.hosting.detach && !args.hosting.detached {
        return detach::start(&args.hosting);
    }
    let console = prepare(&args.hosting)?;
    let runtime = RuntimeDir::from_env()?;
    let config = args.machine();
    let begun = machine::begin(&config)?;
    let socket = ControlSocket::claim(&runtime, args.name.as_str())?;
    let journals = Journals::from_env(args.name.as_str()).remembering(args.uuid.is_some());
    // Before the VMM is confined to it. Only a guest that moves needs it, and is kept here without it.
    let _ = journals.prepare();
    if let Some((file, gone)) = journals.handed_on(config.uuid) {
        bail!(
            "guest {} left this host for {} and may be running there; if it never will again, remove {}",
            config.uuid,
            gone.peer,
            file.display()
        );
    }
    confinement::of_run(&args.hosting, &runtime, &config)?;
    let vm = machine::boot(begun, &config, console, journals)?;
    words::say(&words::runs(args.name.as_str(), socket.path()));
    host(socket, vm, &args.hosting, None)
}

/// `vmm receive`.
pub(super) fn receive(args: ReceiveArgs) -> anyhow::Result<ExitCode> {
    if args.hosting.detach && !args.hosting.detached {
        return detach::start(&args.hosting);
    }
    let console = prepare(&args.hosting)?;
    let identity = args.admission().map(|admission| admission.identity()).transpose()?;
    let listener = TcpListener::bind(&args.listen).with_context(|| {
        format!("cannot listen on {}; give HOST:PORT of this host, port 0 for a free one", args.listen)
    })?;
    let address = listener.local_addr().context("cannot say where it listens")?;
    ensure!(
        !args.exposes(&address),
        "{address} can be reached from other hosts, and whoever reaches it could send a guest: give --tls DIR or --psk FILE, \
         or --insecure if all of them are trusted"
    );
    let arrival = args.arrival();
    let name = match args.name {
        Some(name) => name,
        None => format!("receive-{}", address.port()).parse()?,
    };
    let runtime = RuntimeDir::from_env()?;
    let socket = ControlSocket::claim(&runtime, name.as_str())?;
    let journals = Journals::from_env(name.as_str());
    journals.prepare().with_context(|| {
        let folder = journals.folder().unwrap_or(Path::new("")).display();
        format!("cannot make {folder}, where the VMM keeps what it has promised; VMM_STATE_DIR names another folder")
    })?;
    confinement::of_receive(&args.hosting, &runtime, &args.guest_files)?;
    let receiver = Receiver::on(listener, identity).context("cannot wait for a guest")?;
    let vm = machine::receive(&name, receiver, arrival, console, journals)?;
    words::say(&words::listens(&address));
    host(socket, vm, &args.hosting, Some(address.to_string()))
}

/// What must be before anything else: the session of our own, and a console that can be written to.
fn prepare(args: &HostingArgs) -> anyhow::Result<ConsoleSink> {
    if args.detached {
        detach::leave_session()?;
    }
    match args.console.as_deref() {
        None if args.detached => Ok(None),
        None => Ok(Some(Box::new(io::stdout()))),
        Some(path) if path.as_os_str() == "-" => Ok(Some(Box::new(io::stdout()))),
        Some(path) => {
            let file = File::create(path)
                .with_context(|| format!("cannot write the console to {}", path.display()))?;
            Ok(Some(Box::new(file)))
        }
    }
}

/// Serves the VM until it ends, and says how it did.
fn host(
    socket: ControlSocket,
    vm: Arc<dyn Vm>,
    args: &HostingArgs,
    listen: Option<String>,
) -> anyhow::Result<ExitCode> {
    let name = socket.name().to_owned();
    let ready = Ready { name: name.clone(), socket: socket.path().to_owned(), listen };
    let runtime = super::runtime()?;
    let attached = !args.detached && args.console.as_deref().is_none_or(|path| path.as_os_str() == "-");
    let terminal = if attached && io::stdin().is_terminal() { Some(RawTerminal::enter()?) } else { None };
    if terminal.is_some() {
        words::say(words::HOW_TO_STOP);
    }
    let ending = runtime.block_on(async {
        if args.detached {
            ready.tell();
        }
        until_it_ends(socket, Arc::clone(&vm), attached.then(keyboard::listen)).await
    });
    drop(terminal);
    // Threads that still read the keyboard would be waited for otherwise.
    runtime.shutdown_background();
    // The last owner of a console waits until all that the guest has said is written.
    drop(vm);
    let ending = ending?;
    words::say(&words::ended(&name, &ending));
    if args.detached {
        detach::forget_log(&name, &ending);
    }
    Ok(match ending {
        Ending::Moved { .. } | Ending::Stopped => ExitCode::SUCCESS,
        Ending::Crashed(_) => ExitCode::FAILURE,
    })
}

async fn until_it_ends(
    socket: ControlSocket,
    vm: Arc<dyn Vm>,
    keyboard: Option<mpsc::Receiver<Typed>>,
) -> anyhow::Result<Ending> {
    let mut signals = Signals::new().context("cannot listen to signals")?;
    let waiting = Arc::clone(&vm);
    let mut ending = tokio::task::spawn_blocking(move || waiting.wait_ended());
    let (end, ended) = oneshot::channel::<()>();
    let serving = tokio::spawn(serve(socket, Arc::clone(&vm), async { drop(ended.await) }));
    let (leave, mut left) = mpsc::channel(1);
    let not_taken = Arc::new(AtomicUsize::new(0));
    if let Some(keyboard) = keyboard {
        tokio::spawn(type_in(Arc::clone(&vm), keyboard, leave, Arc::clone(&not_taken)));
    }
    let ending = loop {
        tokio::select! {
            ending = &mut ending => break ending.context("the VMM failed")?,
            name = signals.next() => stop(&vm, name).await?,
            Some(()) = left.recv() => stop(&vm, "Ctrl-A x").await?,
        }
    };
    match not_taken.load(Ordering::Relaxed) {
        0 => {}
        bytes => words::say(&words::not_read(bytes)),
    }
    // Fails only when the server has ended before, which its own result tells.
    let _ = end.send(());
    serving.await.context("the control API failed")?.context("the control API failed")?;
    Ok(ending)
}

/// Asks the guest to end. A refusal is said and accepted: a guest that another host depends on is not lost by a key.
async fn stop(vm: &Arc<dyn Vm>, why: &str) -> anyhow::Result<()> {
    words::say(&words::stopping(why));
    let vm = Arc::clone(vm);
    match tokio::task::spawn_blocking(move || vm.stop()).await? {
        Ok(()) => {}
        Err(refusal) => words::say(&words::cannot_stop(&refusal.to_string())),
    }
    Ok(())
}

/// In order, and beside everything else: a guest that does not read must not make the VMM deaf. `not_taken`: how many bytes
/// wait here.
async fn type_in(
    vm: Arc<dyn Vm>,
    mut keyboard: mpsc::Receiver<Typed>,
    leave: mpsc::Sender<()>,
    not_taken: Arc<AtomicUsize>,
) {
    let (mut held, mut again) = (Held::default(), keyboard::again());
    let take = async |bytes: Vec<u8>| {
        let vm = Arc::clone(&vm);
        tokio::task::spawn_blocking(move || vm.type_in(&bytes)).await
    };
    loop {
        tokio::select! {
            Some(typed) = keyboard.recv(), if !held.is_full() => match typed {
                Typed::Leave => {
                    let _ = leave.send(()).await;
                    continue;
                }
                Typed::Bytes(bytes) => held.push(&bytes),
            },
            _ = again.tick(), if held.bytes() > 0 => {}
            else => return,
        }
        let given = held.give(take).await;
        not_taken.store(held.bytes(), Ordering::Relaxed);
        if given.is_err() {
            return;
        }
    }
}

/// The signals that ask a process to end.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The name of the next one.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
