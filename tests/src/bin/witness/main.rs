//! The witnesses: what runs in a Linux guest of the test bed and knows whether all is well, and what judges it from outside.
//!
//! ```text
//! in the guest            says once a second                            is judged outside by
//! churn MIB               the digest of all it has sorted and hashed    churn-digests, made without a guest
//! records FOLDER          how many records are on the disk              records-check, on the disk itself
//! clock                   its clocks, ticks and largest gap             clock-follow and clock-judge: the host's clock
//! stream-serve PORT       what it has heard and said                    stream-visit, a client outside the guest
//! dirty MIB               how many pages it has written                 (the report of the migration)
//! ```
//!
//! What a witness says is one line, `inner second N: NAME …`, N counting its own lines from 1; damage is a line with
//! `CORRUPT`. It never stops for damage it can work on with. One program, linked statically, without any of the rooms it
//! judges: small to build and to carry.

mod churn;
mod clock;
mod dirty;
mod follow;
mod random;
mod records;
mod says;
mod stream;
mod visit;

use std::io;
use std::process::ExitCode;

const USAGE: &str = "witness churn MIB | churn-digests ROUNDS | records FOLDER | records-check FOLDER TOLD | clock | \
                     clock-follow FILE… | clock-judge SAMPLES SLACK_MS DOWNTIME_MS… | stream-serve PORT | \
                     stream-visit HOST:PORT STOP-FILE | dirty MIB";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match play(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("witness {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn play(words: &[&str]) -> io::Result<()> {
    match words {
        ["churn", mib] => churn::run(number(mib)? as usize),
        ["churn-digests", rounds] => churn::digests(number(rounds)?),
        ["records", folder] => records::write(folder.as_ref()),
        ["records-check", folder, told] => records::check(folder.as_ref(), number(told)?),
        ["clock"] => clock::run(),
        ["clock-follow", files @ ..] => follow::run(files),
        ["clock-judge", samples, slack_ms, downtimes_ms @ ..] => {
            let downtimes = downtimes_ms.iter().map(|it| number(it)).collect::<io::Result<Vec<_>>>()?;
            follow::judge(samples.as_ref(), number(slack_ms)?, &downtimes)
        }
        ["stream-serve", port] => stream::serve(number(port)? as u16),
        ["stream-visit", address, stop] => visit::run(address, stop.as_ref()),
        ["dirty", mib] => dirty::run(number(mib)? as usize),
        _ => Err(io::Error::other(USAGE)),
    }
}

fn number(word: &str) -> io::Result<u64> {
    word.parse().map_err(|_| io::Error::other(format!("{word:?} is not a number; {USAGE}")))
}
