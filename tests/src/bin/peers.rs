//! Measures our VMM and QEMU side by side on this host: `docs/benchmarks.md`. Usually called by `tests/peers/run`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tests::peers::landed::{self, Landed};
use tests::peers::record::Record;
use tests::peers::{self, Order, PeersError, cells, ways};
use vmm::lab::unless_interrupted;

/// What a check may take, without the time to find out what runs here.
const CHECK: Duration = Duration::from_secs(95);

/// Moves the demo guest by our VMM and by QEMU, in turn, and says what each costs it.
///
/// Exit status: 0 measured, 1 ended early or a move of ours failed, 2 nothing can be measured here (with --check: 0).
#[derive(Debug, Parser)]
#[command(name = "tests/peers/run")]
struct Arguments {
    /// Only cells whose name is one of these words, or contains one that is no name
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    cells: Vec<String>,
    /// Only ways to move whose name is one of these words, or contains one that is no name
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    ways: Vec<String>,
    /// Moves of each cell by each way, 0 for none [default: 5; with --slow 3, with --quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1000))]
    runs: Option<u32>,
    /// Starts of each VMM without a move [default: 10; with --slow 0, with --quick 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1000))]
    starts: Option<u32>,
    /// Where peers.json, peers.md and peers.svg go
    #[arg(long, value_name = "DIR", default_value = "target/peers")]
    out: PathBuf,
    /// Two cells and a few ways: a few minutes
    #[arg(long)]
    quick: bool,
    /// Four guests over a network of 100 Mbit/s with a round trip of 50 ms, and ways that suit it: 25 minutes
    #[arg(long, conflicts_with_all = ["quick", "check", "land"])]
    slow: bool,
    /// Measure for a minute and a half, and compare ratios with those in FILE; fail only when something is badly wrong
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "tests/peers/landed.json",
          conflicts_with = "quick")]
    check: Option<PathBuf>,
    /// Write the ratios that --check compares with to FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "tests/peers/landed.json")]
    land: Option<PathBuf>,
    /// List cells and ways, and measure nothing
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let order = order(&arguments);
    if arguments.list {
        order.cells.iter().for_each(|cell| println!("{}: {}", cell.name, cell.describe()));
        order.ways.iter().for_each(|way| println!("{}", way.name));
        return ExitCode::SUCCESS;
    }
    let ended = match &arguments.check {
        Some(path) => check(&arguments, &order, path),
        None => measure(&arguments, &order),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::from(if matches!(error, PeersError::Unfit(_)) { 2 } else { 1 })
        }
    }
}

fn order(arguments: &Arguments) -> Order {
    let (mut cells, mut ways, runs, starts) = match arguments {
        Arguments { check: Some(_), .. } => (cells::few(), ways::checked(), 3, 0),
        Arguments { quick: true, .. } => (cells::few(), ways::few(), 2, 5),
        Arguments { slow: true, .. } => (cells::slow(), ways::slow(), 3, 0),
        _ => (cells::all(), ways::all(), 5, 10),
    };
    let names: Vec<&str> =
        cells.iter().map(|cell| cell.name).chain(ways.iter().map(|way| way.name)).collect();
    let is_meant = |word: &str, name: &str| word == name || !names.contains(&word) && name.contains(word);
    let asked =
        |words: &[String], name: &str| words.is_empty() || words.iter().any(|word| is_meant(word, name));
    cells.retain(|cell| asked(&arguments.cells, cell.name));
    ways.retain(|way| asked(&arguments.ways, way.name));
    let (runs, starts) = (arguments.runs.unwrap_or(runs), arguments.starts.unwrap_or(starts));
    Order { cells, ways, runs, starts, limit: arguments.check.as_ref().map(|_| CHECK) }
}

/// Measures and shows all of it.
fn measure(arguments: &Arguments, order: &Order) -> Result<bool, PeersError> {
    let out = &arguments.out;
    std::fs::create_dir_all(out).map_err(host("make the folder for results"))?;
    let (record, measured) = record(order)?;
    if !record.is_empty() {
        println!("{}", peers::write(&record, out)?);
        eprintln!("written: peers.json, peers.md, peers.svg in {}", out.display());
    }
    measured?;
    land(arguments, &record)?;
    Ok(record.is_good())
}

/// Measures little, and compares it with what was landed. What the host cannot do is ignored, as Cargo's tests say it.
fn check(arguments: &Arguments, order: &Order, path: &Path) -> Result<bool, PeersError> {
    let landed = Landed::read(path)?;
    let (record, measured) = record(order)?;
    let mut wrong = match measured {
        Err(PeersError::Unfit(why)) => return Ok(ignored(&why)),
        Ok(()) if record.is_empty() => return Ok(ignored(&record.skipped.join("; "))),
        Err(error) => vec![error.to_string()],
        Ok(()) => Vec::new(),
    };
    let verdict = landed::check(&record, &landed);
    wrong.extend(verdict.wrong);
    println!("{}", verdict.table);
    land(arguments, &record)?;
    if wrong.is_empty() && verdict.judged == 0 {
        return Ok(ignored(
            "no two runs were quiet, or nothing was landed: all moves went well, no ratio was judged",
        ));
    }
    for line in &wrong {
        println!("wrong: {line}");
    }
    let (word, passed) = if wrong.is_empty() { ("ok", 1) } else { ("FAILED", 0) };
    println!(
        "test beside-qemu ... {word}\n\ntest result: {word}. {passed} passed; {} failed; 0 ignored",
        1 - passed
    );
    Ok(wrong.is_empty())
}

fn ignored(why: &str) -> bool {
    println!("test beside-qemu ... ignored, {why}\n\ntest result: ok. 0 passed; 0 failed; 1 ignored");
    true
}

fn land(arguments: &Arguments, record: &Record) -> Result<(), PeersError> {
    arguments.land.as_ref().map_or(Ok(()), |path| Landed::of(record).write(path))
}

/// What was measured, and how that ended.
fn record(order: &Order) -> Result<(Record, Result<(), PeersError>), PeersError> {
    if order.cells.is_empty() || order.ways.is_empty() {
        return Err(PeersError::Failed("no such cell or way: --list shows them".to_owned()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut record = Record::here();
    // What fails is told by the inner result, an interruption by the outer.
    let measuring = async { Ok(peers::measure(order, &mut record).await) };
    let measured = runtime.map_err(host("start"))?.block_on(unless_interrupted(measuring));
    let measured = measured.map_err(PeersError::from).flatten();
    record.stopped = measured.as_ref().err().map(ToString::to_string);
    Ok((record, measured))
}

fn host(what: &str) -> impl FnOnce(io::Error) -> PeersError {
    let what = what.to_owned();
    move |error| PeersError::Host { what, error }
}
