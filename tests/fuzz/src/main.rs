//! `fuzz`: feeds hostile bytes to the project's readers, with stable Rust alone. `tests/fuzz/run` is the door to it.

use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use fuzz::driver::{self, home};
use fuzz::limits::Counting;
use fuzz::{TARGETS, Target};

#[global_allocator]
static COUNTING: Counting = Counting;

const USAGE: &str = "\
fuzz run SECONDS [TARGET] [--seed N]   the corpus, then mutations of it for so long, each target
fuzz replay TARGET FILE...             these inputs
fuzz seed                              writes the seeds of the corpus anew
fuzz list                              the targets";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match obey(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("fuzz: {why}");
            ExitCode::FAILURE
        }
    }
}

fn obey(words: &[&str]) -> Result<(), String> {
    match *words {
        ["run", seconds, ref more @ ..] => run(number(seconds)?, more),
        ["replay", target, ref files @ ..] => {
            let target = named(target)?;
            files.iter().try_for_each(|file| {
                driver::replay(target, Path::new(file)).map_err(|error| format!("{file}: {error}"))?;
                println!("{file}: nothing happened");
                Ok(())
            })
        }
        ["seed"] => TARGETS.iter().try_for_each(|target| {
            let count =
                driver::write_seeds(target).map_err(|error| format!("{}: {error}", home().display()))?;
            println!("{}: {count} seeds", target.name);
            Ok(())
        }),
        ["list"] => {
            TARGETS.iter().for_each(|target| println!("{:10} {}", target.name, target.about));
            Ok(())
        }
        ["feed", target, seconds, seed, present] => {
            let target = named(target)?;
            let inputs = driver::feed(target, number(seconds)?, number(seed)?, Path::new(present))
                .map_err(|error| error.to_string())?;
            println!("{}: {inputs} inputs, nothing found", target.name);
            Ok(())
        }
        _ => Err(format!("usage:\n{USAGE}")),
    }
}

fn run(seconds: u64, more: &[&str]) -> Result<(), String> {
    let (target, seed) = match *more {
        [] => (None, None),
        ["--seed", seed] => (None, Some(seed)),
        [target] => (Some(named(target)?), None),
        [target, "--seed", seed] => (Some(named(target)?), Some(seed)),
        _ => return Err(format!("usage:\n{USAGE}")),
    };
    let seed = seed.map_or_else(|| Ok(by_clock()), number)?;
    println!("seed {seed}");
    let found: Vec<String> = TARGETS
        .iter()
        .filter(|known| target.is_none_or(|wanted| wanted.name == known.name))
        .filter_map(|target| driver::run(target, seconds, seed).err())
        .collect();
    if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
}

fn by_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn named(name: &str) -> Result<&'static Target, String> {
    Target::named(name).ok_or_else(|| format!("there is no target {name}: see `fuzz list`"))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("\"{text}\" is not a number\n{USAGE}"))
}
