//! A slow link by hand: passes connections on to a destination, so many bytes per second, and says what has gone by at the end.
//!
//! For measurements on one host; `docs/benchmarks.md` says how. It ends when its standard input does.

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use vmm::lab::slow::SlowLink;

const USAGE: &str = "slow DESTINATION BYTES-PER-SECOND DELAY-MS (of each direction)";

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let Some((to, rate, delay)) = parse(&words) else {
        eprintln!("usage: {USAGE}");
        return ExitCode::from(2);
    };
    let link = SlowLink::new(to, rate, Duration::from_millis(delay));
    println!("{}", link.address());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    println!("{} bytes to the destination", link.bytes());
    ExitCode::SUCCESS
}

fn parse(words: &[String]) -> Option<(&str, u64, u64)> {
    let [to, rate, delay] = words else { return None };
    Some((to, rate.parse().ok().filter(|rate| *rate > 0)?, delay.parse().ok()?))
}
