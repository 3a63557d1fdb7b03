//! Sorting and hashing under memory pressure, with a result that is known.
//!
//! A round takes the chunk that the digest so far points to, checks that it is as it was left, fills it with numbers that
//! follow from the digest, sorts them, and takes their hash into the digest. So the digest after a round depends on every
//! round before, and on nothing else: where memory lay, how often it was swapped out, and where the guest ran do not matter.

use std::{fs, io};

use crate::random::{Sequence, hash, mix};
use crate::says::{Seconds, corrupt};

/// Words of a chunk: 256 KiB.
const CHUNK: usize = 1 << 15;
const FIRST_DIGEST: u64 = 0x5eed;

/// Goes on until it is killed, with so many MiB of chunks.
pub(crate) fn run(mib: usize) -> io::Result<()> {
    let mut seconds = Seconds::new("churn");
    let mut fill = |seed| {
        seconds.tell(|| format!("fills chunk {seed} of {}, {} pages swapped out", mib * 4, swapped_out()));
        let chunk = filled(seed as u64);
        let hash = hash(&chunk);
        (chunk, hash)
    };
    let (mut chunks, mut hashes): (Vec<Vec<u64>>, Vec<u64>) = (0..mib * 4).map(&mut fill).unzip();
    let mut digest = FIRST_DIGEST;
    for round in 1.. {
        let chosen = digest as usize % chunks.len();
        if hash(&chunks[chosen]) != hashes[chosen] {
            corrupt("churn", &format!("chunk {chosen} is not as it was left, in round {round}"));
        }
        (digest, hashes[chosen]) = play(digest, round, &mut chunks[chosen]);
        seconds.tell(|| format!("{}, {} pages swapped out", told(round, digest), swapped_out()));
    }
    Ok(())
}

/// The digests of the first rounds, a line each, in the words of [`run`].
pub(crate) fn digests(rounds: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut digest = FIRST_DIGEST;
    for round in 1..=rounds {
        digest = play(digest, round, &mut chunk).0;
        println!("churn {}", told(round, digest));
    }
    Ok(())
}

/// Pages that this kernel has swapped out since it booted: whether there was pressure.
fn swapped_out() -> String {
    let all = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    all.lines().find_map(|line| line.strip_prefix("pswpout ")).unwrap_or("no").to_owned()
}

fn told(round: u64, digest: u64) -> String {
    format!("round {round} digest {digest:016x}")
}

/// One round on a chunk: the digest after it, and the chunk's hash.
fn play(digest: u64, round: u64, chunk: &mut [u64]) -> (u64, u64) {
    let mut sequence = Sequence::new(digest ^ round);
    chunk.fill_with(|| sequence.next());
    chunk.sort_unstable();
    let hash = hash(chunk);
    (mix(digest ^ hash), hash)
}

fn filled(seed: u64) -> Vec<u64> {
    let mut sequence = Sequence::new(seed);
    (0..CHUNK).map(|_| sequence.next()).collect()
}
