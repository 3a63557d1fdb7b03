//! Proves that a guest moves inside TLS, by certificates and by a shared key, and that whoever is not trusted is turned away:
//! with one line on both sides, the guest unharmed where it was, and the destination waiting for the next.

mod sim;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use migrate::channel::tcp::TcpListen;
use migrate::channel::tls::TlsListen;
use migrate::channel::{Deadlines, Listen};
use migrate::journal::Journals;
use migrate::options::{Mode, Options};
use migrate::progress::{Event, Silent};
use migrate::protection::{Admission, Protection, authority};
use migrate::report::Outcome;
use migrate::{Arrival, Cancel, Receiver};
use sim::{At, Habit, MODES, Runners, Sim, SimHost, options};
use tempfile::TempDir;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A CA with hosts `a`, `b` and 127.0.0.1, and a second CA with the same; two keys.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(TempDir::new().unwrap());
        let hosts = ["a", "b", "127.0.0.1"].map(str::to_owned);
        for ca in ["ours", "theirs"] {
            authority::init(&files.path(ca), &hosts).unwrap();
            authority::shared_key(&files.path(&format!("{ca}.psk"))).unwrap();
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn admits(&self, dir: &str, sources: &[&str]) -> Option<Admission> {
        let sources = sources.iter().map(ToString::to_string).collect();
        Some(Admission::Certificates { dir: self.path(dir), sources })
    }

    fn admits_key(&self, file: &str) -> Option<Admission> {
        Some(Admission::SharedKey { file: self.path(file) })
    }

    fn shows(&self, dir: &str, name: Option<&str>) -> Protection {
        Protection::Certificates { dir: self.path(dir), name: name.map(str::to_owned) }
    }

    fn shows_key(&self, file: &str) -> Protection {
        Protection::SharedKey { file: self.path(file) }
    }
}

/// A destination, and where it is.
struct Destination {
    receiver: Receiver,
    to: String,
}

impl Destination {
    fn new(admission: Option<Admission>, deadlines: Deadlines) -> Self {
        let listen = TcpListen::bind("127.0.0.1:0").expect("a free port");
        let to = listen.address().expect("bound").to_string();
        let listen: Box<dyn Listen> = match admission {
            None => Box::new(listen),
            Some(admission) => Box::new(TlsListen::new(listen, admission.identity().unwrap())),
        };
        Self { receiver: Receiver::over(listen, deadlines), to }
    }
}

/// Stops a destination from waiting.
struct Stop<'a>(&'a Receiver);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Lets each of `protections` try, and then one that must come through. Returns what the source said of each, and the
/// destination.
fn try_in_turn(
    admission: Option<Admission>,
    protections: &[Protection],
    last: Protection,
) -> (Vec<String>, Vec<String>) {
    let destination = Destination::new(admission, Deadlines::default());
    let (runners, habit) = (Runners::default(), Habit::default());
    let (guest, host) = (Sim::booted(habit, runners.clone()), SimHost::new(habit, &runners));
    let (sender, told) = mpsc::channel();
    let observer = At(move |event: &Event| {
        if let Event::TurnedAway { reason, .. } = event {
            sender.send(reason.clone()).unwrap();
        }
    });
    let ask = |protection: &Protection| {
        let options =
            Options { to: destination.to.clone(), protection: protection.clone(), ..options(Mode::Precopy) };
        migrate::migrate(&*guest, &options, Journals::nowhere(), &Cancel::new(), &Silent).report
    };
    let said = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| destination.receiver.receive(&host, &observer));
        let _stop = Stop(&destination.receiver);
        let mut said = (Vec::new(), Vec::new());
        for protection in protections {
            let report = ask(protection);
            assert_eq!(report.outcome, Outcome::Kept);
            assert!(guest.is_running());
            guest.wait_steps(5);
            said.0.push(report.reason.expect("a reason"));
            said.1.push(told.recv_timeout(PATIENCE).expect("the destination tells of it"));
        }
        let report = ask(&last);
        assert_eq!(report.outcome, Outcome::Moved, "{:?}", report.reason);
        let arrival = receiving.join().expect("no panic");
        assert!(matches!(arrival, Arrival::Arrived { .. }), "{arrival:?}");
        said
    });
    let arrived = host.guest().expect("built");
    arrived.check_all();
    [guest, arrived].iter().for_each(|sim| sim.shut_down());
    said
}

/// What both sides must say, in the order of the attempts.
fn check(said: (Vec<String>, Vec<String>), expected: &[(&str, &str)]) {
    assert_eq!(said.0.len(), expected.len());
    for ((source, destination), (source_says, destination_says)) in said.0.iter().zip(&said.1).zip(expected) {
        assert!(source.contains(source_says), "{source}");
        assert!(destination.contains(destination_says), "{destination}");
        assert!(!source.contains('\n') && !destination.contains('\n'));
    }
}

#[test]
fn every_mode_moves_a_larger_guest_inside_tls() {
    let files = Files::new();
    let habit = Habit {
        pages: 4096 + 64,
        working_set: 2000,
        burst: 20,
        rest: Some(Duration::from_micros(100)),
        ..Habit::default()
    };
    let ways = [
        (files.admits("ours/127.0.0.1", &["a"]), files.shows("ours/a", None)),
        (files.admits_key("ours.psk"), files.shows_key("ours.psk")),
    ];
    for mode in MODES {
        for (admission, protection) in &ways {
            let destination = Destination::new(admission.clone(), Deadlines::default());
            let runners = Runners::default();
            let (guest, host) = (Sim::booted(habit, runners.clone()), SimHost::new(habit, &runners));
            let options = Options {
                to: destination.to.clone(),
                verify: true,
                streams: 3,
                protection: protection.clone(),
                ..options(mode)
            };
            let (report, arrival) = std::thread::scope(|scope| {
                let receiving = scope.spawn(|| destination.receiver.receive(&host, &Silent));
                let report =
                    migrate::migrate(&*guest, &options, Journals::nowhere(), &Cancel::new(), &Silent).report;
                destination.receiver.stop();
                (report, receiving.join().expect("no panic"))
            });
            assert_eq!(report.outcome, Outcome::Moved, "{mode:?}: {:?}; {arrival:?}", report.reason);
            assert!(report.verification.is_some_and(|it| it.mismatched == 0), "{mode:?}");
            let arrived = host.guest().expect("built");
            arrived.check_all();
            [guest, arrived].iter().for_each(|sim| sim.shut_down());
        }
    }
}

#[test]
fn whoever_has_no_right_certificate_is_turned_away_and_the_next_is_let_in() {
    let files = Files::new();
    expire(&files.path("ours"), "a");
    let admission = files.admits("ours/127.0.0.1", &["b", "c"]);
    let attempts = [
        files.shows("theirs/b", None),
        files.shows("ours/b", Some("elsewhere")),
        files.shows("ours/127.0.0.1", None),
        files.shows("ours/a", None),
        files.shows_key("ours.psk"),
        Protection::None,
    ];
    let said = try_in_turn(admission, &attempts, files.shows("ours/b", None));
    check(
        said,
        &[
            ("its certificate is not of the CA in ca.pem here", "does not know the CA"),
            ("its certificate has another name", "does not take the certificate here"),
            ("not in its --allow-source", "has none of the names in --allow-source (b, c)"),
            ("the certificate here is not valid now", "its certificate has expired"),
            ("--psk", "--psk"),
            ("migrations to here are protected", "it has no TLS"),
        ],
    );
}

#[test]
fn a_source_finds_an_expired_destination_and_one_of_another_ca_finds_the_source() {
    let files = Files::new();
    expire(&files.path("ours"), "127.0.0.1");
    let destination = Destination::new(files.admits("ours/127.0.0.1", &[]), Deadlines::default());
    let guest = Sim::booted(Habit::default(), Runners::default());
    let host = SimHost::new(Habit::default(), &Runners::default());
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| destination.receiver.receive(&host, &Silent));
        let options = Options {
            to: destination.to.clone(),
            protection: files.shows("ours/a", None),
            ..options(Mode::Precopy)
        };
        let report = migrate::migrate(&*guest, &options, Journals::nowhere(), &Cancel::new(), &Silent).report;
        let reason = report.reason.expect("a reason");
        assert!(reason.contains("its certificate has expired"), "{reason}");
        destination.receiver.stop();
        receiving.join().expect("no panic");
    });
    assert!(guest.is_running());
    guest.shut_down();
}

#[test]
fn a_wrong_key_or_none_is_turned_away_and_the_next_is_let_in() {
    let files = Files::new();
    let attempts = [files.shows_key("theirs.psk"), files.shows("ours/a", None), Protection::None];
    let said = try_in_turn(files.admits_key("ours.psk"), &attempts, files.shows_key("ours.psk"));
    check(
        said,
        &[
            ("its pre-shared key is not the one here", "the pre-shared keys differ"),
            ("--psk", "--psk"),
            ("migrations to here are protected", "it has no TLS"),
        ],
    );
}

#[test]
fn tls_where_there_is_none_is_told_on_both_sides() {
    let files = Files::new();
    let attempts = [files.shows("ours/a", None), files.shows_key("ours.psk")];
    let expected = ("it closed the connection where TLS begins", "it speaks TLS, and there is none here");
    check(try_in_turn(None, &attempts, Protection::None), &[expected; 2]);
}

/// A client that shows no certificate at all.
#[test]
fn a_client_without_a_certificate_is_turned_away() {
    let files = Files::new();
    let destination = Destination::new(files.admits("ours/127.0.0.1", &[]), Deadlines::default());
    let host = SimHost::new(Habit::default(), &Runners::default());
    let (sender, told) = mpsc::channel();
    let observer = At(move |event: &Event| {
        if let Event::TurnedAway { reason, .. } = event {
            sender.send(reason.clone()).unwrap();
        }
    });
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| destination.receiver.receive(&host, &observer));
        let mut roots = rustls::RootCertStore::empty();
        let pem = fs::read(files.path("ours/ca.pem")).unwrap();
        let ca: rustls::pki_types::CertificateDer<'_> =
            rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
        roots.add(ca).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "127.0.0.1".try_into().unwrap();
        let mut connection = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut socket = TcpStream::connect(&destination.to).unwrap();
        let mut stream = rustls::Stream::new(&mut connection, &mut socket);
        let error = stream.read(&mut [0; 1]).expect_err("it is turned away").to_string();
        assert!(error.contains("CertificateRequired"), "{error}");
        let reason = told.recv_timeout(PATIENCE).expect("the destination tells of it");
        assert!(reason.contains("it shows no certificate"), "{reason}");
        destination.receiver.stop();
        receiving.join().expect("no panic");
    });
}

/// Whoever drips a handshake is dropped when its time is over, although each byte comes in time; others are let in meanwhile.
#[test]
fn a_handshake_that_drips_is_over_at_its_deadline_and_holds_up_nobody() {
    let files = Files::new();
    let deadlines = Deadlines { connect: Duration::from_millis(1500), ..Deadlines::default() };
    let destination = Destination::new(files.admits_key("ours.psk"), deadlines);
    let host = SimHost::new(Habit::default(), &Runners::default());
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| destination.receiver.receive(&host, &Silent));
        let mut dripping = TcpStream::connect(&destination.to).unwrap();
        // A handshake record of which nothing but its head comes soon.
        dripping.write_all(&[0x16, 3, 1, 2, 0]).unwrap();
        let mut silent: Vec<_> = (0..5).map(|_| TcpStream::connect(&destination.to).unwrap()).collect();
        dripping.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        let dropped = (0..50).any(|_| {
            let ended = match dripping.read(&mut [0; 1]) {
                Ok(count) => count == 0,
                Err(error) => error.kind() != io::ErrorKind::WouldBlock,
            };
            ended || dripping.write_all(&[1]).is_err()
        });
        assert!(dropped, "50 bytes, one in time after another, were all waited for");
        silent.iter_mut().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        destination.receiver.stop();
        receiving.join().expect("no panic");
    });
    let admission = files.admits_key("ours.psk");
    let said = {
        let stranger = |to: &str| {
            let mut stream = TcpStream::connect(to).unwrap();
            stream.write_all(&[0x16, 3, 1, 2, 0]).unwrap();
            stream
        };
        let destination = Destination::new(admission, Deadlines::default());
        let _strangers: Vec<_> = (0..5).map(|_| stranger(&destination.to)).collect();
        let (runners, habit) = (Runners::default(), Habit::default());
        let (guest, host) = (Sim::booted(habit, runners.clone()), SimHost::new(habit, &runners));
        let options = Options {
            to: destination.to.clone(),
            protection: files.shows_key("ours.psk"),
            ..options(Mode::Hybrid)
        };
        let report = std::thread::scope(|scope| {
            let receiving = scope.spawn(|| destination.receiver.receive(&host, &Silent));
            let report =
                migrate::migrate(&*guest, &options, Journals::nowhere(), &Cancel::new(), &Silent).report;
            destination.receiver.stop();
            receiving.join().expect("no panic");
            report
        });
        let arrived = host.guest();
        [Some(guest), arrived].into_iter().flatten().for_each(|sim| sim.shut_down());
        report
    };
    assert_eq!(said.outcome, Outcome::Moved, "{:?}", said.reason);
}

/// Somebody listens who never says a word: the source gives up when its time is over.
#[test]
fn a_silent_destination_is_given_up() {
    let files = Files::new();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let guest = Sim::booted(Habit::default(), Runners::default());
    let options = Options {
        to: silent.local_addr().unwrap().to_string(),
        protection: files.shows_key("ours.psk"),
        ..options(Mode::Precopy)
    };
    let report = migrate::migrate(&*guest, &options, Journals::nowhere(), &Cancel::new(), &Silent).report;
    let reason = report.reason.expect("a reason");
    assert!(reason.contains("has not finished the TLS handshake within 5 s"), "{reason}");
    assert!(guest.is_running());
    guest.shut_down();
}

/// Gives a host a certificate of its CA that was good last century only.
fn expire(ca: &Path, host: &str) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "CA of migrate");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let issuer = Issuer::new(authority, KeyPair::from_pem(&read(&ca.join("ca-key.pem"))).unwrap());
    let key = KeyPair::from_pem(&read(&ca.join(host).join("key.pem"))).unwrap();
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    params.not_before = date_time_ymd(1990, 1, 1);
    params.not_after = date_time_ymd(1999, 12, 31);
    let certificate = params.signed_by(&key, &issuer).unwrap();
    fs::write(ca.join(host).join("cert.pem"), certificate.pem()).unwrap();
}
