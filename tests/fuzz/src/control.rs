//! The control API: the server itself on its socket, with a machine that only pretends; and what clients read of it.
//!
//! The first byte of an input chooses a request, whose body is the rest; or the rest is what a client sends, whatever it is;
//! or it is what a server answers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use migrate::cli::words;
use migrate::client::RuntimeDir;
use migrate::client::types::{
    Life, MigrateRequest, MigrationStatus, Problem, RecoverRequest, Resolution, ResolveRequest, Salvage,
    VmInfo,
};
use migrate::options::{Mode, Options};
use migrate::progress::Event;
use migrate::report::{GuestMeasured, Postcopy, Report, Switchover};
use tokio::sync::broadcast;
use vmm::control::{ControlSocket, Ending, Refusal, Vm, serve};
use vmm::devices::{Console, ConsoleReader};

use crate::script::Script;

const REQUESTS: &[&str] = &[
    "GET /vm",
    "POST /vm/pause",
    "POST /vm/resume",
    "POST /vm/shutdown",
    "POST /vm/stop",
    "POST /console",
    "POST /migration",
    "GET /migration",
    "DELETE /migration",
    "POST /migration/resolve",
    "POST /migration/continue",
    "POST /migration/recover",
    "POST /migration/salvage",
    "GET /openapi.json",
    "PUT /vm",
    "POST /nothing?a=b",
    "GET /events",
];
/// Whatever a client sends.
const RAW: u8 = REQUESTS.len() as u8;
/// Whatever a server answers.
const ANSWER: u8 = RAW + 1;

/// Streams have no end, and raw clients may leave a request unfinished: neither is listened to for long.
const PATIENCE: Duration = Duration::from_millis(10);
const LONG: Duration = Duration::from_secs(5);

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    match script.u8() % (ANSWER + 1) {
        RAW => drop(exchange(script.rest(), PATIENCE, PATIENCE)),
        ANSWER => answer(script.rest()),
        request => {
            let (request, body) = (REQUESTS[usize::from(request)], script.rest());
            let head = format!(
                "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let more = if request == "GET /events" { PATIENCE } else { LONG };
            let answer = exchange(&[head.as_bytes(), body].concat(), LONG, more);
            assert!(answer.starts_with(b"HTTP/1.1 "), "{request}: {}", answer.escape_ascii());
            let status = &answer[9..12];
            assert!(status != b"500", "{request}: {}", answer.escape_ascii());
        }
    }
    if let Ok(request) = serde_json::from_slice::<MigrateRequest>(input.get(1..).unwrap_or_default()) {
        let _ = request.options();
    }
}

/// What a client of ours makes of an answer, and what people are told.
fn answer(body: &[u8]) {
    let _ = serde_json::from_slice::<VmInfo>(body);
    let _ = serde_json::from_slice::<Problem>(body);
    let _ = serde_json::from_slice::<ResolveRequest>(body);
    if let Ok(event) = serde_json::from_slice::<Event>(body) {
        let _ = words::event(&event);
        if let Event::Progress(progress) = &event {
            let _ = (words::progress(progress), words::brief(progress), words::place(progress));
        }
    }
    if let Ok(status) = serde_json::from_slice::<MigrationStatus>(body) {
        let _ = status.progress.map(|progress| words::progress(&progress));
        let _ = status.report.map(|report| (words::report(&report), words::too_slow(&report, Some(LONG))));
    }
}

/// Says this to the server and hears until it closes, or says nothing for so long after its first words.
fn exchange(said: &[u8], first: Duration, more: Duration) -> Vec<u8> {
    static SERVED: LazyLock<PathBuf> = LazyLock::new(start);
    let mut stream = UnixStream::connect(&*SERVED).expect("the server listens");
    // A server that has heard enough may close first.
    let _ = stream.write_all(said);
    stream.set_read_timeout(Some(first)).expect("a socket");
    let mut answer = vec![0; 1 << 12];
    let heard = stream.read(&mut answer).unwrap_or(0);
    answer.truncate(heard);
    stream.set_read_timeout(Some(more)).expect("a socket");
    let _ = stream.take(1 << 20).read_to_end(&mut answer);
    answer
}

/// One server for the life of this process, on a thread of its own.
fn start() -> PathBuf {
    let (told, path) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = ControlSocket::claim(&RuntimeDir::at(folder.path()), "fuzz").expect("a socket");
        told.send(socket.path().to_owned()).expect("somebody waits for it");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime
            .block_on(serve(socket, Arc::new(Pretender::new()), std::future::pending()))
            .expect("it serves");
    });
    path.recv().expect("the server starts")
}

/// Obeys everything that the API lets through to it.
struct Pretender {
    events: broadcast::Sender<Event>,
    console: Console,
}

impl Pretender {
    fn new() -> Self {
        Self { events: broadcast::Sender::new(8), console: Console::new() }
    }
}

impl Vm for Pretender {
    fn info(&self) -> VmInfo {
        VmInfo {
            name: "fuzz".to_owned(),
            pid: std::process::id(),
            life: Life::Running,
            guest: None,
            uuid: None,
            memory: Some(1 << 30),
            vcpus: Some(2),
            listen: None,
            corruptions: None,
            work_per_s: None,
            doubt: None,
            reboots: 0,
        }
    }

    fn pause(&self) -> Result<(), Refusal> {
        Ok(())
    }

    fn resume(&self) -> Result<(), Refusal> {
        Err(Refusal::Conflict("it runs".to_owned()))
    }

    fn shutdown(&self) -> Result<(), Refusal> {
        Ok(())
    }

    fn stop(&self) -> Result<(), Refusal> {
        Ok(())
    }

    fn console(&self) -> ConsoleReader {
        self.console.listen()
    }

    fn type_in(&self, bytes: &[u8]) -> usize {
        bytes.len() / 2
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn start_migration(&self, options: Options) -> Result<(), Refusal> {
        assert!((1..=migrate::options::MAX_STREAMS).contains(&options.streams));
        assert!(
            options.timeout != Some(Duration::ZERO)
                && !options.max_downtime.is_zero()
                && options.bandwidth != Some(0)
        );
        Ok(())
    }

    fn migration(&self) -> MigrationStatus {
        MigrationStatus::default()
    }

    fn cancel_migration(&self) -> Result<(), Refusal> {
        Ok(())
    }

    fn continue_migration(&self) -> Result<(), Refusal> {
        Err(Refusal::Conflict("it does not wait".to_owned()))
    }

    fn recover(&self, request: RecoverRequest) -> Result<(), Refusal> {
        assert!(request.to.is_none_or(|to| to.contains(':')));
        Ok(())
    }

    fn salvage(&self) -> Result<Salvage, Refusal> {
        Err(Refusal::Conflict("all of it is here".to_owned()))
    }

    fn resolve(&self, _: Resolution) -> Result<(), Refusal> {
        Ok(())
    }

    fn wait_ended(&self) -> Ending {
        Ending::Stopped
    }
}

pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let with = |choice: u8, body: &str| [&[choice], body.as_bytes()].concat();
    let post = |path: &str, body| {
        let known = REQUESTS.iter().position(|request| request.strip_prefix("POST ") == Some(path));
        with(known.expect("a request of the API") as u8, body)
    };
    let all = r#"{"to":"there:7000","mode":"hybrid","streams":3,"max_downtime_us":300000,"timeout_ms":60000,
        "bandwidth":1000000,"on_timeout":"postcopy","pause_before_switchover":true,"verify":true,"in_flight":"forward",
        "clock":"realtime","recovery_ms":5000}"#;
    let progress = r#"{"event":"progress","phase":"precopy","round":1,"pages_total":100,"pages_left":50,
        "bytes":4096,"bytes_per_s":1e9,"dirty_rate":10.5,"eta_ms":7}"#;
    let mut seeds: Vec<_> = (0..)
        .zip(REQUESTS)
        .map(|(number, request)| {
            let name: String = request.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
            (name.to_lowercase(), with(number, ""))
        })
        .collect();
    seeds.extend([
        ("migrate".to_owned(), post("/migration", all)),
        ("migrate-little".to_owned(), post("/migration", r#"{"to":"h:1","mode":"precopy"}"#)),
        ("resolve".to_owned(), post("/migration/resolve", r#"{"resolution":"force-source"}"#)),
        ("recover".to_owned(), post("/migration/recover", r#"{"to":"there:7001","recovery_ms":5000}"#)),
        ("raw".to_owned(), with(RAW, "GET /vm HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")),
        ("chunked".to_owned(), with(RAW, "POST /console HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n2\r\nls\r\n0\r\n\r\n")),
        ("answer-progress".to_owned(), with(ANSWER, progress)),
        ("answer-problem".to_owned(), with(ANSWER, r#"{"error":"no","taken":3}"#)),
    ]);
    seeds.push(("answer-report".to_owned(), with(ANSWER, &report())));
    seeds
}

/// Of a migration in which much happened.
fn report() -> String {
    let mut report = Report::blank("demo", "there:7000", Mode::Hybrid, 2);
    report.switchover = Some(Switchover { pause_us: 180, downtime_us: 11_900, ..Switchover::default() });
    report.postcopy = Some(Postcopy { missing_pages: 512, faults: 7, ..Postcopy::default() });
    report.guest_measured = Some(GuestMeasured { downtime_us: 900.5, ..GuestMeasured::default() });
    let status = MigrationStatus { active: true, report: Some(report), ..MigrationStatus::default() };
    serde_json::to_string(&status).expect("a report can be written")
}
