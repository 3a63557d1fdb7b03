//! Measures our VMM and QEMU side by side on this host: `docs/benchmarks.md`. Usually called by `tests/peers/run`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tests::peers::record::Record;
use tests::peers::{self, Order, PeersError, cells, ways};
use vmm::lab::unless_interrupted;

/// Moves the demo guest by our VMM and by QEMU, in turn, and says what each costs it.
///
/// Exit status: 0 measured, 1 ended early or a move of ours failed, 2 nothing can be measured here.
#[derive(Debug, Parser)]
#[command(name = "tests/peers/run")]
struct Arguments {
    /// Only cells whose name contains one of these words
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    cells: Vec<String>,
    /// Only ways to move whose name contains one of these words
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    ways: Vec<String>,
    /// Moves of each cell by each way [default: 5; with --quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: Option<u32>,
    /// Where peers.json, peers.md and peers.svg go
    #[arg(long, value_name = "DIR", default_value = "target/peers")]
    out: PathBuf,
    /// Two cells and a few ways: a few minutes
    #[arg(long)]
    quick: bool,
    /// List cells and ways, and measure nothing
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let order = order(&arguments);
    if arguments.list {
        order.cells.iter().for_each(|cell| println!("{}: {}", cell.name, cell.guest.describe()));
        order.ways.iter().for_each(|way| println!("{}", way.name));
        return ExitCode::SUCCESS;
    }
    match measure(&order) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::from(if matches!(error, PeersError::Unfit(_)) { 2 } else { 1 })
        }
    }
}

fn order(arguments: &Arguments) -> Order {
    let (mut cells, mut ways) =
        if arguments.quick { (cells::few(), ways::few()) } else { (cells::all(), ways::all()) };
    let asked = |words: &[String], name: &str| {
        words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))
    };
    cells.retain(|cell| asked(&arguments.cells, cell.name));
    ways.retain(|way| asked(&arguments.ways, way.name));
    let runs = arguments.runs.unwrap_or(if arguments.quick { 2 } else { 5 });
    Order { cells, ways, runs, out: arguments.out.clone() }
}

fn measure(order: &Order) -> Result<bool, PeersError> {
    let host = |what: &str| {
        let what = what.to_owned();
        move |error| PeersError::Host { what, error }
    };
    if order.cells.is_empty() || order.ways.is_empty() {
        return Err(PeersError::Unfit("no such cell or way: --list shows them".to_owned()));
    }
    std::fs::create_dir_all(&order.out).map_err(host("make the folder for results"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut record = Record::here();
    // What fails is told by the inner result, an interruption by the outer.
    let measuring = async { Ok(peers::measure(order, &mut record).await) };
    let measured = runtime.map_err(host("start"))?.block_on(unless_interrupted(measuring));
    let measured = measured.map_err(PeersError::from).flatten();
    record.stopped = measured.as_ref().err().map(ToString::to_string);
    if !record.is_empty() {
        println!("{}", peers::write(&record, &order.out)?);
        eprintln!("written: peers.json, peers.md, peers.svg in {}", order.out.display());
    }
    measured.map(|()| record.is_good())
}
