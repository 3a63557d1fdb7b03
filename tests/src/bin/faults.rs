//! Injects faults into migrations of real guests between real VMMs, and says what came of it: `docs/guarantees.md`.

use std::process::ExitCode;

use tests::faults::{Run, Sort};

const USAGE: &str = "faults [--faults N] [--seed N] [--kind KIND] [--lanes N] [--only NUMBER] [--protected]";

fn main() -> ExitCode {
    let Some(run) = parse(std::env::args().skip(1)) else {
        let kinds: Vec<_> = Sort::ALL.iter().map(|(sort, _)| sort.word()).collect();
        eprintln!("usage: {USAGE}\nkinds: {}", kinds.join(", "));
        return ExitCode::from(2);
    };
    println!("seed {}", run.seed);
    let tally = run.run();
    println!("{tally}");
    for wrong in &tally.violations {
        println!("VIOLATION: {wrong}");
    }
    if tally.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Run> {
    let seed = std::process::id().into();
    let mut run = Run { seed, faults: 1000, sort: None, only: None, lanes: 6, protected: false };
    while let Some(word) = words.next() {
        let mut number = || words.next()?.parse::<u32>().ok();
        match word.as_str() {
            "--faults" => run.faults = number()?,
            "--seed" => run.seed = words.next()?.parse().ok()?,
            "--lanes" => run.lanes = number()?.max(1),
            "--only" => (run.only, run.lanes) = (Some(number()?), 1),
            "--protected" => run.protected = true,
            "--kind" => {
                let kind = words.next()?;
                let known = Sort::ALL.iter().find(|(sort, _)| sort.word() == kind);
                run.sort = Some(known?.0);
            }
            _ => return None,
        }
    }
    Some(run)
}
