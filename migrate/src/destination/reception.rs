//! Who is calling? Accepts connections, hears each one's hello, and passes on those that belong to a migration.
//!
//! A stranger (wrong first bytes, silence, an unknown session) is dropped and disturbs nobody. One who would be a source but
//! is not trusted, or speaks TLS where there is none, is told of here as well. Each caller is
//! heard on a thread of its own, so that a silent one keeps nobody waiting; so many at once and no more. Whoever is
//! still being heard when reception ends is refused: perhaps its hello is on the way.

use std::collections::{HashMap, VecDeque};
use std::net::Shutdown;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::Duration;

use uuid::Uuid;

use crate::alarm::Alarm;
use crate::channel::line::Line;
use crate::channel::{Link, Listen};
use crate::failure::Failure;
use crate::journal::{Journals, Past};
use crate::progress::{Event, Observer};
use crate::threads::start;
use crate::wire::limits::VERSIONS;
use crate::wire::message::{Refuse, Welcome};
use crate::wire::rejoin::{Fate, Told};
use crate::wire::{Error, Hello, Kind, Message, Role};

/// Sessions remembered that ended without a guest.
const REMEMBERED: usize = 1024;

/// Callers whose hello is awaited at the same time.
const CALLERS: usize = 32;

/// A connection that has said a good hello.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) hello: Hello,
    pub(super) line: Line,
}

/// Callers turned away that are told of, while one guest is waited for: so many lines nobody can fill a disk with.
const TOLD: u32 = 100;

/// TLS begins with these bytes: a handshake, of version 3.
const TLS_MAGIC: u16 = u16::from_le_bytes([0x16, 3]);

/// The desk where callers are heard. Shared by the accepting thread and the hearing ones, hence the lock.
pub(super) struct Desk<'a> {
    desk: Mutex<State>,
    patience: Duration,
    observer: &'a dyn Observer,
    memory: Memory,
}

/// What is known of sessions that are over, by this process and by the journals of those before it.
#[derive(Debug, Clone)]
pub(super) struct Memory {
    journals: Journals,
    /// Those that ended with the guest not here, the latest last.
    discarded: Arc<Mutex<VecDeque<Uuid>>>,
}

#[derive(Debug, Default)]
struct State {
    session: Option<Uuid>,
    /// How often its source has called again.
    call: u32,
    /// Ends the conversation that a call takes the place of.
    conversation: Option<Arc<Alarm>>,
    hearing: HashMap<u64, Arc<dyn Link>>,
    next: u64,
    closed: bool,
    /// Callers turned away that were told of.
    told: u32,
}

impl<'a> Desk<'a> {
    pub(super) fn new(patience: Duration, memory: Memory, observer: &'a dyn Observer) -> Self {
        Self { desk: Mutex::default(), patience, observer, memory }
    }

    /// A guest's source may call again.
    pub(super) fn expect(&self, session: Uuid, call: u32) {
        let mut desk = self.lock();
        (desk.session, desk.call) = (Some(session), call);
    }

    /// A conversation has begun: it ends when its source calls again.
    pub(super) fn converse(&self, alarm: &Arc<Alarm>) {
        self.lock().conversation = Some(Arc::clone(alarm));
    }

    /// Accepts until the listener is woken and `ends` says that it was for this.
    pub(super) fn accept<'scope>(
        self: Arc<Self>,
        scope: &'scope Scope<'scope, '_>,
        listen: &dyn Listen,
        callers: &Sender<Caller>,
        ends: impl Fn() -> bool,
    ) -> std::io::Result<()>
    where
        'a: 'scope,
    {
        while !ends() {
            // Woken for one that was here before, perhaps.
            let Some(link) = listen.accept()? else { continue };
            let Some(ticket) = self.seat(&link) else {
                link.shut(Shutdown::Both);
                continue;
            };
            let (desk, callers, caller) = (Arc::clone(&self), callers.clone(), Arc::clone(&link));
            let heard = start(scope, "caller", move || {
                let heard = desk.hear(&caller);
                desk.lock().hearing.remove(&ticket);
                match heard {
                    // A session that is over does not want callers any more.
                    Ok(caller) => drop(callers.send(caller)),
                    Err(failure) => {
                        caller.shut(Shutdown::Both);
                        desk.tell(&caller, &failure);
                    }
                }
            });
            if heard.is_err() {
                // The host has no thread for it now; it may call again.
                self.lock().hearing.remove(&ticket);
                link.shut(Shutdown::Both);
            }
        }
        Ok(())
    }

    /// No more callers: whoever is still being heard is refused, and keeps nobody waiting. What it has said by now
    /// can be read; nothing is read after it.
    pub(super) fn close(&self) {
        let mut desk = self.lock();
        desk.closed = true;
        desk.hearing.values().for_each(|link| link.shut(Shutdown::Read));
    }

    /// Whether a guest has begun to arrive.
    pub(super) fn busy(&self) -> bool {
        self.lock().session.is_some()
    }

    fn seat(&self, link: &Arc<dyn Link>) -> Option<u64> {
        let mut desk = self.lock();
        if desk.hearing.len() >= CALLERS {
            return None;
        }
        desk.next += 1;
        let ticket = desk.next;
        desk.hearing.insert(ticket, Arc::clone(link));
        Some(ticket)
    }

    /// Hears a caller's hello and answers it if it begins a conversation.
    fn hear(&self, link: &Arc<dyn Link>) -> Result<Caller, Failure> {
        link.open(self.patience).map_err(Failure::link(link.peer(), self.patience))?;
        let line = Line::new(Arc::clone(link), self.patience)?;
        let hello = hello(&line).inspect_err(|failure| self.turn_away(&line, failure))?;
        match self.judge(&hello) {
            Ok(Verdict::Past) => {
                self.memory.tell(&line, &hello)?;
                return Err(Failure::Closed { peer: line.peer().to_owned() });
            }
            Ok(Verdict::Welcome) if hello.role == Role::Control => {
                welcome(&line, &hello).inspect_err(|_| {
                    // A source that is gone before its welcome must not keep the place from the next one.
                    if hello.call == 0 {
                        self.lock().session = None;
                    }
                })?;
            }
            Ok(Verdict::Welcome) => {}
            Err(reason) => {
                if hello.role == Role::Control {
                    refuse(&line, &reason)?;
                }
                return Err(Failure::Aborted { peer: line.peer().to_owned(), reason });
            }
        }
        Ok(Caller { hello, line })
    }

    /// Tells of a caller who would be a source, if the way is the wrong one.
    fn tell(&self, link: &Arc<dyn Link>, failure: &Failure) {
        let reason = match failure {
            Failure::Untrusted { why, .. } => why.clone(),
            Failure::Protocol { error: Error::Magic { found: TLS_MAGIC }, .. } => {
                "it speaks TLS, and there is none here; vmm receive needs --tls or --psk as its migrate"
                    .to_owned()
            }
            _ => return,
        };
        let told = {
            let mut desk = self.lock();
            desk.told = desk.told.saturating_add(1);
            desk.told
        };
        if told <= TOLD {
            self.observer.tell(Event::TurnedAway { peer: link.peer().to_owned(), reason });
        }
    }

    /// Refuses whose hello had not come when the desk closed.
    fn turn_away(&self, line: &Line, failure: &Failure) {
        let reason = {
            let desk = self.lock();
            (desk.closed && failure.is_bare()).then(|| desk.busy())
        };
        // It may be gone itself.
        let _ = reason.map(|reason| refuse(line, reason));
    }

    /// Whether the caller belongs here. The first control connection makes its session the one that does.
    fn judge(&self, hello: &Hello) -> Result<Verdict, String> {
        let (known, theirs) = (VERSIONS, hello.versions);
        if theirs.min > known.1 || theirs.max < known.0 {
            return Err(format!(
                "versions {} to {} are known here, {} to {} there; update the older side",
                known.0, known.1, theirs.min, theirs.max
            ));
        }
        let mut desk = self.lock();
        match (hello.role, desk.session) {
            (Role::Control, Some(session)) if session == hello.session && hello.call > desk.call => {
                desk.call = hello.call;
                if let Some(alarm) = desk.conversation.take() {
                    alarm.trip(Failure::Closed { peer: "the source, which has called again,".to_owned() });
                }
                Ok(Verdict::Welcome)
            }
            (Role::Control, session) if hello.call > 0 && session != Some(hello.session) => Ok(Verdict::Past),
            (Role::Control, None) if !desk.closed => {
                desk.session = Some(hello.session);
                Ok(Verdict::Welcome)
            }
            (Role::Control, _) => Err(desk.busy().to_owned()),
            (_, session) if session == Some(hello.session) && hello.call == desk.call => Ok(Verdict::Welcome),
            _ => Err("no such session".to_owned()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a caller belongs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Welcome,
    /// It asks after a guest that is not here now.
    Past,
}

impl Memory {
    pub(super) fn new(journals: Journals) -> Self {
        Self { journals, discarded: Arc::default() }
    }

    pub(super) fn journals(&self) -> &Journals {
        &self.journals
    }

    /// The guest of this session is not here, was not, and will not be.
    pub(super) fn note_discarded(&self, session: Uuid) {
        let mut discarded = self.discarded.lock().unwrap_or_else(PoisonError::into_inner);
        discarded.push_back(session);
        if discarded.len() > REMEMBERED {
            discarded.pop_front();
        }
    }

    /// What became of a session that is not the one here now.
    fn fate(&self, session: Uuid) -> (Fate, &'static str) {
        let discarded = self.discarded.lock().unwrap_or_else(PoisonError::into_inner);
        if discarded.contains(&session) {
            return (Fate::NotRunning, "it has never run here and will not");
        }
        match self.journals.of_session(session) {
            Some(Past::NeverRan) => (Fate::NotRunning, "it has never run here and will not: its VMM is gone"),
            Some(Past::Ran) => (Fate::Gone, "it ran here, and its VMM is gone"),
            Some(Past::Unsure) => (Fate::Unknown, "power failed when it was to run here: it may have run"),
            None => (Fate::Unknown, "nothing is known of it here: another VMM of this host may have it"),
        }
    }

    /// Says what became of the guest of `session`, which is not here now.
    fn tell(&self, line: &Line, hello: &Hello) -> Result<(), Failure> {
        welcome(line, hello)?;
        match line.hear()? {
            Message::Rejoin(_) => {}
            other => return Err(line.unexpected(other.kind(), Kind::Rejoin.word())),
        }
        let (fate, reason) = self.fate(hello.session);
        line.tell(&Message::Fate(Told { fate, missing: 0, reason: reason.to_owned() }))
    }
}

impl State {
    /// Why there is no place for a guest.
    fn busy(&self) -> &'static str {
        self.session.map_or("no guest is awaited here any more", |_| "another guest is arriving here")
    }
}

/// What a caller says first.
fn hello(line: &Line) -> Result<Hello, Failure> {
    let head = line.hear_head()?;
    if head.kind != Kind::Hello {
        return Err(line.unexpected(head.kind, Kind::Hello.word()));
    }
    match line.body(&head)? {
        Message::Hello(hello) => Ok(hello),
        other => Err(line.unexpected(other.kind(), Kind::Hello.word())),
    }
}

/// Answers a hello whose versions are known here.
fn welcome(line: &Line, hello: &Hello) -> Result<(), Failure> {
    line.tell(&Message::Welcome(Welcome { version: VERSIONS.1.min(hello.versions.max) }))
}

fn refuse(line: &Line, reason: &str) -> Result<(), Failure> {
    line.tell(&Message::Refuse(Refuse { reasons: vec![reason.to_owned()] }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::memory;
    use crate::progress::Silent;
    use crate::wire::message::Versions;

    fn memory() -> Memory {
        Memory::new(Journals::default())
    }

    /// A caller that has said hello, and its other end.
    fn caller(role: Role) -> (Arc<dyn Link>, Arc<dyn Link>) {
        let (near, far) = memory::pair();
        let versions = Versions { min: VERSIONS.0, max: VERSIONS.1 };
        let hello = Hello { versions, role, session: Uuid::new_v4(), index: 0, call: 0 };
        near.send(&Message::Hello(hello).encode().expect("small")).expect("open");
        (near, far)
    }

    fn refusal(link: &Arc<dyn Link>) -> Vec<String> {
        let line = Line::new(Arc::clone(link), Duration::from_secs(5)).expect("open");
        match line.hear() {
            Ok(Message::Refuse(refuse)) => refuse.reasons,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_source_gone_before_its_welcome_leaves_the_place_free() {
        let desk = Desk::new(Duration::from_secs(5), memory(), &Silent);
        let (near, far) = caller(Role::Control);
        near.shut(Shutdown::Both);
        assert!(desk.hear(&far).is_err());
        assert!(!desk.busy());
    }

    #[test]
    fn whoever_is_still_being_heard_when_the_desk_closes_is_refused_at_once() {
        for taken in [true, false] {
            let desk = Desk::new(Duration::from_secs(60), memory(), &Silent);
            let (_first, arriving) = caller(Role::Control);
            if taken {
                desk.hear(&arriving).expect("the place is free");
            }
            let reason =
                if taken { "another guest is arriving here" } else { "no guest is awaited here any more" };
            let (said, heard) = caller(Role::Control);
            let (silent, unheard) = memory::pair();
            for link in [&heard, &unheard] {
                desk.seat(link).expect("a free seat");
            }
            desk.close();
            for (near, far) in [(said, heard), (silent, unheard)] {
                assert!(desk.hear(&far).is_err());
                assert_eq!(refusal(&near), [reason]);
            }
            assert_eq!(desk.busy(), taken);
        }
    }
}
