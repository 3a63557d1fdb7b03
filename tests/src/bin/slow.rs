//! A slow link by hand: passes connections on to a destination, so many bytes per second, and says what has gone by at the end.
//!
//! For measurements on one host; `docs/benchmarks.md` says how. It ends when its standard input does.

use std::io::Read;
use std::net::SocketAddr;
use std::process::ExitCode;

use vmm::lab::slow::{Network, SlowLink};

const USAGE: &str = "slow ADDRESS:PORT BYTES-PER-SECOND DELAY-MS (of each direction)";

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let Some((to, network)) = parse(&words) else {
        eprintln!("usage: {USAGE}");
        return ExitCode::from(2);
    };
    let link = match SlowLink::to(to, network) {
        Ok(link) => link,
        Err(error) => {
            eprintln!("cannot listen: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{}", link.address());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    println!("{} bytes to the destination", link.bytes());
    ExitCode::SUCCESS
}

fn parse(words: &[String]) -> Option<(SocketAddr, Network)> {
    let [to, rate, delay] = words else { return None };
    let bytes_per_s = rate.parse().ok().filter(|rate| *rate > 0)?;
    let round_trip_us = delay.parse::<u64>().ok()?.checked_mul(2000)?;
    Some((to.parse().ok()?, Network { bytes_per_s, round_trip_us }))
}
