//! The hostile side of a conversation: says what its script says, on whichever connection, and hears when it is told to.
//!
//! ```text
//! script = step*        step = what (8 bits), with (8 bits), payload (counted)
//! what:  0 … 4  says the payload on this connection: control, data 0, data 1, urgent, packets
//!        5      waits on connection with/64 for a frame of kind with%64
//!        6      closes connection `with`
//!        7, 8   says a frame of pages on connection with/64, of the kind with%64: the payload has runs of two bytes each,
//!               its first page and how many, and the pages' content is made up (else the corpus would be large)
//!        9      all connections from here on are new ones, as of another call; those before are closed, if `with` is even
//! ```

use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use migrate::channel::{Deadlines, Link};
use migrate::pages::PageRun;
use migrate::wire::limits::{HEAD_BYTES, PAGES_PER_PUSH};
use migrate::wire::{Head, Kind, Message, Role};

use crate::script::{Script, counted};
use crate::seeds;

/// Connections there can be.
const CONNECTIONS: usize = 5;
const STEPS: u8 = 10;
/// Steps of one script: more only take time.
const MOST_STEPS: usize = 256;

/// Waits that end soon. A conversation that stalls ends by them.
pub(crate) const DEADLINES: Deadlines = Deadlines {
    connect: Duration::from_millis(40),
    idle: Duration::from_millis(60),
    pause: Duration::from_millis(60),
    beat: Duration::from_millis(20),
    settle: Duration::from_millis(1),
};

/// Where a connection for this is in a script.
pub(crate) fn number(role: Role, index: u32) -> usize {
    match role {
        Role::Control => 0,
        Role::Data => 1 + (index as usize).min(1),
        Role::Urgent => 3,
        Role::Packets => 4,
    }
}

/// The same for a test that is to see the end, however slow the machine is.
#[cfg(test)]
pub(crate) fn patient() -> Deadlines {
    let long = Duration::from_secs(3);
    Deadlines { connect: long, idle: long, pause: long, ..DEADLINES }
}

/// Follows a script to its end, then closes everything. `open` gives a connection when it is used first; a frame is waited
/// for, and tried to be said, as long as `patience`.
pub(crate) fn follow(
    mut script: Script<'_>,
    patience: Duration,
    mut open: impl FnMut(usize) -> Option<Arc<dyn Link>>,
) {
    let mut links: [Option<Arc<dyn Link>>; CONNECTIONS] = Default::default();
    let mut left = Vec::new();
    for _ in 0..MOST_STEPS {
        if script.is_over() {
            break;
        }
        let (what, with, payload) = (script.u8() % STEPS, script.u8(), script.counted());
        if what == 9 {
            left.extend(links.iter_mut().filter_map(Option::take));
            if with.is_multiple_of(2) {
                left.drain(..).for_each(|link| link.shut(Shutdown::Both));
            }
            continue;
        }
        let connection = match what {
            0..=4 => what.into(),
            6 => usize::from(with) % CONNECTIONS,
            _ => usize::from(with / 64) % CONNECTIONS,
        };
        let link = links[connection].take().or_else(|| {
            let link = open(connection)?;
            link.set_limit(patience).ok().map(|()| link)
        });
        let Some(link) = link else { continue };
        match what {
            0..=4 => drop(link.send(payload)),
            5 => wait(&*link, with % 64),
            6 => link.shut(Shutdown::Both),
            _ => pages(&*link, with % 64, payload),
        }
        links[connection] = Some(link);
    }
    links.iter().flatten().for_each(|link| link.shut(Shutdown::Write));
    // Heard to the end: whoever still speaks must not be held up by an ear that is full.
    for link in links.iter().flatten() {
        while hear(&**link).is_some() {}
        link.shut(Shutdown::Both);
    }
}

/// The next frame's kind.
fn hear(link: &dyn Link) -> Option<Kind> {
    let mut head = [0; HEAD_BYTES];
    link.receive(&mut head).ok()?;
    let head = Head::decode(&head).ok()?;
    let mut payload = vec![0; head.length];
    link.receive(&mut payload).ok()?;
    if let Ok(message) = Message::decode(&head, &payload) {
        assert_eq!(message.kind(), head.kind);
    }
    Some(head.kind)
}

fn wait(link: &dyn Link, kind: u8) {
    while hear(link).is_some_and(|heard| heard as u8 != kind) {}
}

fn pages(link: &dyn Link, kind: u8, runs: &[u8]) {
    let Some(kind) = Kind::from_byte(kind).filter(|kind| kind.runs() > 0) else { return };
    let runs = runs.chunks_exact(2).take(kind.runs());
    let mut left = PAGES_PER_PUSH;
    let runs: Vec<_> = runs
        .map(|run| {
            let count = u64::from(run[1]).min(left);
            left -= count;
            PageRun { first: run[0].into(), count }
        })
        .collect();
    let _ = link.send(&seeds::page_frame(kind, &runs, 0x5a));
}

/// Steps of a script, for seeds.
#[derive(Default)]
pub(crate) struct Steps(pub(crate) Vec<u8>);

impl Steps {
    pub(crate) fn say(self, connection: usize, message: &Message) -> Self {
        self.step(connection as u8, 0, &seeds::frame(message))
    }

    pub(crate) fn wait(self, connection: usize, kind: Kind) -> Self {
        self.step(5, (connection * 64) as u8 | kind as u8, &[])
    }

    pub(crate) fn close(self, connection: usize) -> Self {
        self.step(6, connection as u8, &[])
    }

    pub(crate) fn pages(self, connection: usize, kind: Kind, runs: &[[u8; 2]]) -> Self {
        self.step(7, (connection * 64) as u8 | kind as u8, &runs.concat())
    }

    /// Another call. The one before is over, or `lingers` until the other side ends it.
    pub(crate) fn again(self, lingers: bool) -> Self {
        self.step(9, lingers.into(), &[])
    }

    fn step(mut self, what: u8, with: u8, payload: &[u8]) -> Self {
        self.0.extend([what, with]);
        self.0.extend(counted(payload));
        self
    }
}
