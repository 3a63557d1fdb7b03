//! The wire's decoders: an input is a stream of frames as it comes off a connection.

use migrate::guest::{Packet, Rehearsal, Telemetry};
use migrate::options::Mode;
use migrate::pages::{PAGE_SIZE, PageRun, PageSet};
use migrate::report::{Postcopy, Takeover, Verification};
use migrate::wire::limits::{HEAD_BYTES, PAGES_PER_PACKED, VERSIONS};
use migrate::wire::message::{Accept, Figures, Ready, Reason, Refuse, Role, Welcome, tame};
use migrate::wire::packed::{Packer, Unpacker, body_bytes};
use migrate::wire::rejoin::{Fate, Knows};
use migrate::wire::{Codec, Head, Kind, Message, RamMap};

use crate::seeds;

/// Where RAM is said to be.
fn ram() -> Vec<PageRun> {
    vec![PageRun { first: 0, count: 1000 }, PageRun { first: 1 << 20, count: 77 }]
}

pub(crate) fn run(input: &[u8]) {
    let map = RamMap::of(&seeds::description(ram(), 0)).expect("a map that can be");
    let (mut rest, mut unpacker) = (input, Unpacker::default());
    while let Some((bytes, body)) = rest.split_first_chunk::<HEAD_BYTES>() {
        let Ok(head) = Head::decode(bytes) else { return };
        assert_eq!(Head::decode(&head.encode()), Ok(head), "a head is written as it was read");
        assert!(head.length <= head.kind.limit());
        let payload = &body[..head.length.min(body.len())];
        table(&map, &head, payload, &mut unpacker);
        if let Ok(message) = Message::decode(&head, payload) {
            heard(&map, &message);
        }
        rest = &body[payload.len()..];
    }
}

fn table(map: &RamMap, head: &Head, payload: &[u8], unpacker: &mut Unpacker) {
    let Ok(bytes) = head.table_bytes() else { return };
    let mut runs = Vec::new();
    if let Ok(admitted) = map.admit(head.kind, &payload[..bytes.min(payload.len())], &mut runs) {
        let pages = admitted.runs().iter().map(|run| run.count).sum::<u64>();
        assert!(pages == admitted.pages() && admitted.runs().iter().all(|run| map.holds(*run)));
        assert!(admitted.runs().len() <= head.kind.runs());
        if head.kind.is_packed() && body_bytes(head, &admitted).is_ok() {
            unpack(unpacker, head.kind, payload.get(bytes..).unwrap_or_default(), pages);
        }
    }
}

/// Unpacks pages that may be anything.
fn unpack(unpacker: &mut Unpacker, kind: Kind, body: &[u8], pages: u64) {
    assert!(pages <= PAGES_PER_PACKED);
    let mut content = vec![0; pages as usize * PAGE_SIZE];
    let base = |at: usize, into: &mut [u8]| {
        assert!(at < pages as usize && kind == Kind::Packed);
        into.fill(7);
    };
    // It says by itself when what comes out is not what was packed; no byte may be outside of what there is room for.
    let _ = unpacker.unpack(kind, body, &mut content, base);
}

fn heard(map: &RamMap, message: &Message) {
    let mut set = PageSet::new(map.limit());
    match message {
        Message::Populated { first, words } | Message::Missing { first, words }
            if map.admit_bitmap(message.kind(), *first, words, &mut set).is_ok() =>
        {
            assert!(set.runs().all(|run| map.holds(run)));
        }
        Message::Preflight(preflight) => {
            if let Ok(map) = RamMap::of(&preflight.description) {
                assert!(preflight.description.pages() <= map.limit());
                assert_eq!(preflight.description.gfn_limit(), map.limit());
            }
        }
        Message::Abort(Reason { reason }) | Message::NotRunning(Reason { reason }) => {
            assert_eq!(*reason, tame(reason), "what a peer says is bounded and on one line");
        }
        _ => {}
    }
    // Too long a one cannot be written, and was then not read from a frame of its kind's limit.
    if let Ok(frame) = message.encode() {
        let (head, payload) = frame.split_first_chunk::<HEAD_BYTES>().expect("a head");
        let again = Head::decode(head).and_then(|head| Message::decode(&head, payload));
        assert_eq!(again.map(|again| again.kind()), Ok(message.kind()));
    }
}

pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds: Vec<_> = messages()
        .into_iter()
        .map(|message| (message.kind().word().to_owned(), seeds::frame(&message)))
        .collect();
    for kind in [Kind::Pages, Kind::Zeros, Kind::Push, Kind::PushZeros, Kind::Packed, Kind::PackedPush] {
        let runs = [PageRun { first: 3, count: 1 }, PageRun { first: 1 << 20, count: 1 }];
        seeds.push((kind.word().to_owned(), seeds::page_frame(kind, &runs, 7)));
    }
    let (mut packer, runs) = (Packer::new(), [PageRun { first: 5, count: 2 }]);
    let mut next = |kind| seeds::next_page_frame(&mut packer, kind, &runs, 9);
    seeds.push(("packed-in-a-row".to_owned(), [next(Kind::Packed), next(Kind::PackedPush)].concat()));
    let all: Vec<u8> = messages().iter().flat_map(seeds::frame).collect();
    seeds.push(("all-in-a-row".to_owned(), all));
    seeds
}

/// One of each kind.
fn messages() -> Vec<Message> {
    let telemetry = Telemetry { tsc: 5, tsc_khz: 2_000_000, work: 9, ..Telemetry::default() };
    let figures = Figures { telemetry: Some(telemetry), takeover: Some(Takeover::default()) };
    let reason = || Reason { reason: "enough".to_owned() };
    let verification =
        Verification { pages: 1000, skipped: 0, mismatched: 1, first_mismatches: vec![5], us: 7 };
    vec![
        seeds::hello(Role::Control, 0),
        Message::Welcome(Welcome { version: VERSIONS.1 }),
        seeds::preflight(Mode::Hybrid, ram(), false, 1),
        Message::Accept(Accept {
            rehearsal: Rehearsal { save_us: 50, restore_us: 60 },
            took_us: Some(900),
            codec: Some(Codec::Zstd),
        }),
        Message::Refuse(Refuse { reasons: vec!["no room".to_owned(), "no disk".to_owned()] }),
        seeds::rejoin(Knows::Committed),
        seeds::fate(Fate::Held, 3),
        Message::Populated { first: 0, words: vec![u64::MAX, 1] },
        Message::Request { gfns: vec![5, 1 << 20] },
        Message::Placed,
        Message::Packet(Packet { nic: 0, bytes: vec![0xff; 60] }),
        Message::RoundEnd { round: 3, last: true },
        Message::RoundDone { round: 3 },
        Message::Missing { first: 64, words: vec![0xff00] },
        Message::Clock { shown_ns: 1 << 60 },
        Message::State { after_round: Some(3), blob: vec![1; 100] },
        Message::Hashes { first: 0, hashes: vec![1, 2, 3] },
        Message::Verified(verification),
        Message::Ready(Ready { restore_us: 400 }),
        Message::Commit,
        Message::Running,
        Message::NotRunning(reason()),
        Message::Complete(Postcopy::default()),
        Message::Finish,
        Message::Figures(figures.clone()),
        Message::Settled(figures),
        Message::Bye,
        Message::Abort(reason()),
        Message::Alive,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_seed() {
        let seeds = seeds();
        let lacking =
            Kind::ALL.iter().map(|kind| kind.word()).find(|word| seeds.iter().all(|(name, _)| name != word));
        assert_eq!(lacking, None);
    }
}
