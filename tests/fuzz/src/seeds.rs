//! What seeds of the wire are made of.

use migrate::guest::Description;
use migrate::options::Mode;
use migrate::pages::{PAGE_SIZE, PageRun};
use migrate::wire::limits::{RUN_BYTES, VERSIONS};
use migrate::wire::message::{Hello, Preflight, Versions};
use migrate::wire::packed::Packer;
use migrate::wire::rejoin::{Fate, Knows, Rejoin, Told};
use migrate::wire::{Codec, Head, Kind, Message, Role};
use uuid::Uuid;

/// The one migration of all seeds.
const SESSION: Uuid = Uuid::from_u128(0x5e55_1011);

/// What a source says that has come back.
pub(crate) fn rejoin(knows: Knows) -> Message {
    Message::Rejoin(Rejoin { guest: Uuid::nil(), epoch: 1, knows })
}

/// What a destination answers it.
pub(crate) fn fate(fate: Fate, missing: u64) -> Message {
    Message::Fate(Told { fate, missing, reason: "so it is".to_owned() })
}

pub(crate) fn description(ram: Vec<PageRun>, nics: u32) -> Description {
    Description {
        name: "seed".to_owned(),
        uuid: Uuid::nil(),
        epoch: 0,
        vcpus: 1,
        ram,
        nics,
        machine: serde_json::Value::Null,
    }
}

pub(crate) fn hello(role: Role, index: u32) -> Message {
    call(role, index, 0)
}

/// The hello of a connection of a call.
pub(crate) fn call(role: Role, index: u32, call: u32) -> Message {
    let versions = Versions { min: VERSIONS.0, max: VERSIONS.1 };
    Message::Hello(Hello { versions, role, session: SESSION, index, call })
}

pub(crate) fn preflight(mode: Mode, ram: Vec<PageRun>, verify: bool, nics: u32) -> Message {
    let description = description(ram, nics);
    Message::Preflight(Box::new(Preflight {
        description,
        mode,
        streams: 1,
        verify,
        packets: nics > 0,
        recovery_ms: if mode == Mode::Stopcopy { 0 } else { 60_000 },
        may_postcopy: mode == Mode::Hybrid,
        codecs: vec![Codec::Zstd.word().to_owned()],
        vcpu_cores: vec![1],
    }))
}

/// A message's bytes.
pub(crate) fn frame(message: &Message) -> Vec<u8> {
    message.encode().expect("seeds are small")
}

/// A frame of pages: its table, and where the kind has it their content, all of one byte.
pub(crate) fn page_frame(kind: Kind, runs: &[PageRun], fill: u8) -> Vec<u8> {
    next_page_frame(&mut Packer::new(), kind, runs, fill)
}

/// … after others of its connection, packed by the same.
pub(crate) fn next_page_frame(packer: &mut Packer, kind: Kind, runs: &[PageRun], fill: u8) -> Vec<u8> {
    let pages: u64 = runs.iter().map(|run| run.count).sum();
    let plain = vec![fill; pages as usize * PAGE_SIZE];
    let mut content = Vec::new();
    match kind {
        Kind::Pages | Kind::Push => content = plain,
        Kind::Packed | Kind::PackedPush => drop(packer.pack(&plain, &plain, 0, 2, &mut content)),
        _ => {}
    }
    let head = Head::new(kind, runs.len() * RUN_BYTES + content.len(), runs.len() as u64);
    let mut bytes = head.encode().to_vec();
    for run in runs {
        bytes.extend(run.first.to_le_bytes());
        bytes.extend((run.count as u32).to_le_bytes());
    }
    bytes.extend(content);
    bytes
}
