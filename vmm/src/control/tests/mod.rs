//! The server with a machine that only pretends, and the real client, over a real socket.

mod command;
mod strangers;

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};

use migrate::client::types::{
    Life, MigrateRequest, MigrationStatus, RecoverRequest, Resolution, Salvage, VmInfo,
};
use migrate::client::{Client, ClientError, RuntimeDir};
use migrate::options::{Mode, Options};
use migrate::progress::Event;
use migrate::report::{Phase, Report};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;

use super::routes::routes;
use super::{ControlSocket, Ending, Refusal, Vm, openapi, serve};
use crate::devices::{Console, ConsoleReader, Device, SerialPort};

/// Remembers what it was asked, and refuses what it was told to refuse.
struct Pretender {
    asked: Mutex<Vec<String>>,
    refusal: Mutex<Option<Refusal>>,
    life: Life,
    /// Told when a migration is started: it is over at once.
    report: Mutex<Option<Report>>,
    events: broadcast::Sender<Event>,
    console: Console,
}

impl Pretender {
    fn new(life: Life) -> Arc<Self> {
        let (events, console) = (broadcast::Sender::new(8), Console::new());
        Arc::new(Self {
            asked: Mutex::default(),
            refusal: Mutex::default(),
            life,
            report: Mutex::default(),
            events,
            console,
        })
    }

    fn note(&self, what: impl Into<String>) -> Result<(), Refusal> {
        self.asked.lock().unwrap().push(what.into());
        self.refusal.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Vm for Pretender {
    fn info(&self) -> VmInfo {
        VmInfo {
            name: "demo".to_owned(),
            pid: std::process::id(),
            life: self.life,
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
        self.note("pause")
    }

    fn resume(&self) -> Result<(), Refusal> {
        self.note("resume")
    }

    fn shutdown(&self) -> Result<(), Refusal> {
        self.note("shutdown")
    }

    fn stop(&self) -> Result<(), Refusal> {
        self.note("stop")
    }

    fn console(&self) -> ConsoleReader {
        self.console.listen()
    }

    fn type_in(&self, bytes: &[u8]) -> usize {
        self.note(format!("type {}", bytes.len())).unwrap();
        self.console.input(bytes)
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn start_migration(&self, options: Options) -> Result<(), Refusal> {
        self.note(format!("migrate to {} by {} streams", options.to, options.streams))?;
        if let Some(report) = self.report.lock().unwrap().take() {
            self.events.send(Event::Ended { report: Box::new(report) }).unwrap();
        }
        Ok(())
    }

    fn migration(&self) -> MigrationStatus {
        MigrationStatus { active: self.life == Life::Running, ..MigrationStatus::default() }
    }

    fn cancel_migration(&self) -> Result<(), Refusal> {
        self.note("cancel")
    }

    fn continue_migration(&self) -> Result<(), Refusal> {
        self.note("continue")
    }

    fn recover(&self, request: RecoverRequest) -> Result<(), Refusal> {
        self.note(format!("recover for {:?}", request.recovery_ms))
    }

    fn salvage(&self) -> Result<Salvage, Refusal> {
        let kept = Salvage { memory: "m".into(), list: "l".into(), pages: 7, missing_pages: 3 };
        self.note("salvage").map(|()| kept)
    }

    fn resolve(&self, resolution: Resolution) -> Result<(), Refusal> {
        self.note(format!("{resolution:?}"))
    }

    fn wait_ended(&self) -> Ending {
        Ending::Stopped
    }
}

/// A pretender that is served, in a directory of its own.
struct Served {
    vm: Arc<Pretender>,
    directory: TempDir,
    end: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Served {
    fn start() -> Self {
        Self::start_as(Life::Running)
    }

    fn start_as(life: Life) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = ControlSocket::claim(&RuntimeDir::at(directory.path()), "demo").unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let vm = Pretender::new(life);
        let serving =
            tokio::spawn(serve(socket, Arc::clone(&vm) as Arc<dyn Vm>, async { drop(ended.await) }));
        Self { vm, directory, end, serving }
    }

    fn runtime(&self) -> RuntimeDir {
        RuntimeDir::at(self.directory.path())
    }

    fn client(&self) -> Client {
        Client::named_in(&self.runtime(), "demo").unwrap()
    }

    /// A request no client of ours would make; the status and the body of the answer.
    async fn raw(&self, head: &str, body: &[u8]) -> (u16, String) {
        let mut stream =
            tokio::net::UnixStream::connect(self.directory.path().join("demo.sock")).await.unwrap();
        let head = format!(
            "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split("\r\n\r\n").nth(1).unwrap().to_owned())
    }
}

fn request() -> MigrateRequest {
    serde_json::from_str(r#"{"to": "there:7000", "mode": "hybrid", "streams": 3}"#).unwrap()
}

#[tokio::test]
async fn every_request_reaches_the_machine() {
    let served = Served::start();
    let client = served.client();
    assert_eq!(client.info().await.unwrap(), served.vm.info());
    client.pause().await.unwrap();
    client.resume().await.unwrap();
    client.shutdown().await.unwrap();
    client.stop().await.unwrap();
    client.type_in("ls\n").await.unwrap();
    client.migrate(&request()).await.unwrap();
    client.cancel_migration().await.unwrap();
    client.continue_migration().await.unwrap();
    client.recover(&RecoverRequest::default()).await.unwrap();
    assert_eq!(client.salvage().await.unwrap().missing_pages, 3);
    client.resolve(Resolution::ForceSource).await.unwrap();
    client.resolve(Resolution::ForceDestination).await.unwrap();
    client.resolve(Resolution::Discard).await.unwrap();
    assert!(client.migration().await.unwrap().active);
    #[rustfmt::skip]
    let asked = [
        "pause", "resume", "shutdown", "stop", "type 3", "migrate to there:7000 by 3 streams", "cancel",
        "continue", "recover for None", "salvage", "ForceSource", "ForceDestination", "Discard",
    ];
    assert_eq!(served.vm.asked(), asked);
}

#[tokio::test]
async fn a_refusal_keeps_its_words_and_has_its_status() {
    let served = Served::start();
    let client = served.client();
    let cases = [(Refusal::Conflict("too late".into()), 409), (Refusal::Failed("ah".into()), 500)];
    for (refusal, expected) in cases {
        *served.vm.refusal.lock().unwrap() = Some(refusal.clone());
        match client.cancel_migration().await {
            Err(ClientError::Refused { status, reason }) => {
                assert_eq!((status, reason), (expected, refusal.to_string()))
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn requests_that_make_no_sense_do_not_reach_the_machine() {
    let served = Served::start();
    let wrong = MigrateRequest { streams: Some(99), mode: Mode::Precopy, ..request() };
    let error = served.client().migrate(&wrong).await.unwrap_err();
    assert_eq!(error.to_string(), "99 streams: choose 1 to 16");
    for body in
        ["{", "{}", r#"{"to": "h:1", "mode": "magic"}"#, r#"{"to": "h:1", "mode": "hybrid", "stream": 2}"#]
    {
        let (status, problem) = served.raw("POST /migration", body.as_bytes()).await;
        assert_eq!(status, 400, "{body}");
        assert!(
            problem.starts_with(r#"{"error":"the body is not what /openapi.json describes: "#),
            "{problem}"
        );
    }
    assert_eq!(served.raw("POST /migration/resolve", b"null").await.0, 400);
    assert_eq!(served.vm.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn bodies_are_bounded_and_paths_are_known() {
    let served = Served::start();
    let client = served.client();
    client.type_in(vec![b'x'; 64 << 10]).await.unwrap();
    match client.type_in(vec![b'x'; (64 << 10) + 1]).await {
        Err(ClientError::Refused { status: 413, reason }) => {
            assert_eq!(reason, "the body has more than 65536 bytes: send less");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(served.vm.asked(), ["type 65536"]);
    let (status, problem) = served.raw("GET /nothing", b"").await;
    assert_eq!((status, problem.as_str()), (404, r#"{"error":"there is no /nothing: see /openapi.json"}"#));
    let (status, problem) = served.raw("PUT /vm", b"").await;
    assert_eq!((status, problem.as_str()), (405, r#"{"error":"/vm does not take PUT: see /openapi.json"}"#));
}

#[tokio::test]
async fn what_is_typed_and_finds_no_room_is_told_and_can_be_typed_again() {
    let served = Served::start();
    let client = served.client();
    client.type_in(vec![b'x'; (64 << 10) - 3]).await.unwrap();
    match client.type_in("hello").await {
        Err(ClientError::NotAllTaken { taken: 3, reason }) => assert_eq!(
            reason,
            "3 of 5 bytes were taken: the guest has not read what was typed before, or is leaving; \
             send the other 2 again later"
        ),
        other => panic!("{other:?}"),
    }
    let (status, problem) = served.raw("POST /console", b"lo").await;
    let problem: serde_json::Value = serde_json::from_str(&problem).unwrap();
    assert_eq!((status, &problem["taken"]), (409, &serde_json::json!(0)));
    // The guest reads.
    let port = SerialPort::new(served.vm.console.clone(), Arc::new(|| {}));
    port.open();
    client.type_in("lo").await.unwrap();
}

#[tokio::test]
async fn events_come_in_order_and_the_last_arrives_although_the_vm_ends() {
    let served = Served::start();
    let mut events = served.client().events().await.unwrap();
    let phases = [Phase::Connect, Phase::Precopy, Phase::Finish];
    for phase in phases {
        served.vm.events.send(Event::Phase { phase }).unwrap();
    }
    served.end.send(()).unwrap();
    for phase in phases {
        assert_eq!(events.next().await.unwrap(), Some(Event::Phase { phase }));
    }
    assert_eq!(events.next().await.unwrap(), None);
    served.serving.await.unwrap().unwrap();
    assert_eq!(fs::read_dir(served.directory.path()).unwrap().count(), 0, "the socket is removed");
}

#[tokio::test]
async fn the_console_starts_with_what_was_said_before() {
    let served = Served::start();
    let serial = SerialPort::new(served.vm.console.clone(), Arc::new(|| ()));
    let say = |text: &[u8]| drop(serial.write(0, text));
    say(b"hello");
    let mut console = served.client().console().await.unwrap();
    say(b" world");
    let mut said = Vec::new();
    while said.len() < b"hello world".len() {
        said.extend_from_slice(&console.next().await.unwrap());
    }
    assert_eq!(said, b"hello world");
    say(b"!");
    served.end.send(()).unwrap();
    assert_eq!(console.next().await.as_deref(), Some(&b"!"[..]), "what was said before the end is heard");
    assert_eq!(console.next().await, None);
}

#[tokio::test]
async fn the_description_has_each_route_and_each_route_is_described() {
    let served = Served::start();
    let (status, body) = served.raw("GET /openapi.json", b"").await;
    let document: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &document), (200, &serde_json::to_value(openapi()).unwrap()));
    let paths = document["paths"].as_object().unwrap().iter();
    let described: BTreeSet<(String, String)> = paths
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let routed =
        routes().into_iter().map(|(method, path, _)| (method.to_string(), path.to_owned())).collect();
    assert_eq!(described, routed);
    let mut unresolved = Vec::new();
    references(&document, &mut |name| {
        let known = document.pointer(&name[1..]).is_some();
        unresolved.extend((!known).then(|| name.to_owned()));
    });
    assert_eq!(unresolved, Vec::<String>::new());
}

fn references(value: &serde_json::Value, found: &mut impl FnMut(&str)) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(name) if key == "$ref" => found(name),
                    _ => references(value, found),
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn one_vm_needs_no_name_and_several_are_listed() {
    let served = Served::start();
    assert_eq!(Client::only_in(&served.runtime()).await.unwrap().name(), "demo");
    let other = ControlSocket::claim(&served.runtime(), "other").unwrap();
    let (_end, ended) = oneshot::channel::<()>();
    tokio::spawn(serve(other, Pretender::new(Life::Waiting), async { drop(ended.await) }));
    assert_eq!(
        Client::only_in(&served.runtime()).await.unwrap().name(),
        "demo",
        "one that waits does not count"
    );
    let third = ControlSocket::claim(&served.runtime(), "third").unwrap();
    let (_end, ended) = oneshot::channel::<()>();
    tokio::spawn(serve(third, Pretender::new(Life::Paused), async { drop(ended.await) }));
    let error = Client::only_in(&served.runtime()).await.unwrap_err();
    assert_eq!(error.to_string(), "3 VMs are running: name one of demo, other, third");
    let error = Client::named_in(&served.runtime(), "fourth").unwrap_err();
    assert_eq!(error.to_string(), "no VM named fourth is running; these are: demo, other, third");
}
