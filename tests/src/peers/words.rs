//! The record as Markdown. Figures are medians, with the smallest and the largest.

use std::fmt::Write;

use migrate::options::default_streams;
use vmm::bench::RawTcp;
use vmm::lab::stats::Spread;
use vmm::lab::table::{or_dash, short};

use super::cells::bare;
use super::record::{
    BYTES, BYTES_PER_S, COMPARED, CPU, CellRecord, DESTINATION_RSS, ENGINE_CPU, GAP, GAP_BEFORE, LOST,
    Record, SOURCE_RSS, TOTAL, WORK_AFTER, WORK_DURING, WayRecord,
};
use super::ways::How;

/// The whole of it.
pub(super) fn words(record: &Record) -> String {
    let setting = &record.setting;
    let revision = record.revision.as_deref().unwrap_or("unknown");
    let mut text = format!("{}, revision {revision}", setting.line());
    if let Some(qemu) = &record.qemu {
        let _ = write!(text, "; {}, `-machine {} -cpu {}`", qemu.version, qemu.machine, qemu.cpu);
    }
    if let Some(it) = &record.cloud_hypervisor {
        let _ = write!(text, "; {}", it.version);
    }
    let command = setting.command_line.get(1..).unwrap_or_default().join(" ");
    let _ = writeln!(text, "; {}, by `tests/peers/run {}`\n", setting.date, command.trim());
    for warning in setting.warning().iter().chain(&record.stopped) {
        let _ = writeln!(text, "**{warning}**\n");
    }
    if !record.cells.is_empty() {
        text += &ratios(record);
    }
    text += &startups(record);
    record.cells.iter().for_each(|cell| text += &section(cell));
    for skipped in &record.skipped {
        let _ = writeln!(text, "\nSkipped: {skipped}");
    }
    text
}

/// Each of our ways by the best of the peers', figure by figure.
fn ratios(record: &Record) -> String {
    let mut text = "Ours ÷ the best peer, each figure by the peer's way that is best at it (below 1: ours is better)\n\n\
                    | cell | ours | gap | lost | total | CPU without vCPUs |\n|---|---|---|---|---|---|\n"
        .to_owned();
    for cell in &record.cells {
        for ours in cell.ways.iter().filter(|way| way.way.is_ours()) {
            let _ = write!(text, "| {} | {} |", cell.name, ours.way.name);
            for (_, figure) in COMPARED {
                let best = cell.best_peer(figure, |_| true);
                let ratio =
                    ours.spread(figure).zip(best).map(|(ours, (best, whose))| (ours.median / best, whose));
                let _ =
                    write!(text, " {} |", or_dash(ratio, |(ratio, whose)| format!("{ratio:.2} ({whose})")));
            }
            text.push('\n');
        }
    }
    text
}

fn startups(record: &Record) -> String {
    if record.startups.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "\n### Start-up: {}\n\n| VMM | starts | first byte of the console ms | RSS beyond the guest MiB | program MiB \
         | libraries MiB |\n|---|---|---|---|---|---|\n",
        bare().describe()
    );
    let mib = |bytes: f64| format!("{:.1}", bytes / f64::from(1 << 20));
    for it in &record.startups {
        let cells = [
            it.vmm.clone(),
            it.first_byte_ms.runs.to_string(),
            range(it.first_byte_ms),
            mib(it.rss_beyond_guest.median),
            mib(it.program_bytes as f64),
            mib(it.library_bytes as f64),
        ];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

fn section(cell: &CellRecord) -> String {
    let mut text = format!("\n### {}: {}\n\n", cell.name, cell.description);
    for raw in &cell.raw_tcp {
        let _ = writeln!(text, "- raw TCP: {}", raw.line());
    }
    let quiet = Spread::of(cell.ways.iter().flat_map(WayRecord::good).filter_map(GAP_BEFORE.1));
    let _ = writeln!(text, "- gap without a move: {} ms\n", or_dash(quiet, range));
    text += "| way | good | gap ms | lost ms | total ms | wire MB | CPU s | without vCPUs | RSS beyond the guest MB \
             | work during, after % | of raw TCP, cold / warm / beside % |\n|---|---|---|---|---|---|---|---|---|---|---|\n";
    cell.shown().for_each(|way| text += &row(way, &cell.raw_tcp));
    for way in cell.shown() {
        if let Some(first) = way.failures().next() {
            let (failed, runs) = (way.failures().count(), way.runs.len());
            let _ = writeln!(text, "\n{}: {failed} of {runs} failed, the first: {first}", way.way.name);
        }
    }
    text
}

fn row(way: &WayRecord, raw: &[RawTcp]) -> String {
    let cell = |figure| or_dash(way.spread(figure), range);
    let number = |figure, scale: f64, digits: usize| {
        or_dash(way.spread(figure), |spread| format!("{:.digits$}", spread.median * scale))
    };
    let percent = |figure| number(figure, 100.0, 0);
    let raw = raw.iter().find(|raw| raw.streams == connections(way));
    let share = way.spread(BYTES_PER_S).zip(raw).map(|(rate, raw)| {
        let of = |raw: Spread| format!("{:.0}", 100.0 * rate.median / raw.median);
        [raw.cold_bytes_per_s, raw.warm_bytes_per_s, raw.beside_bytes_per_s].map(of).join(" / ")
    });
    let cells = [
        way.way.name.to_owned(),
        format!("{}/{}", way.good().count(), way.runs.len()),
        cell(GAP),
        cell(LOST),
        cell(TOTAL),
        number(BYTES, 1e-6, 0),
        cell(CPU),
        cell(ENGINE_CPU),
        format!("{} / {}", number(SOURCE_RSS, 1e-6, 0), number(DESTINATION_RSS, 1e-6, 0)),
        format!("{}, {}", percent(WORK_DURING), percent(WORK_AFTER)),
        or_dash(share, |share| share),
    ];
    format!("| {} |\n", cells.join(" | "))
}

/// Connections that carry memory.
fn connections(way: &WayRecord) -> u32 {
    match &way.way.how {
        How::Vmm { streams, .. } => streams.unwrap_or_else(default_streams),
        How::Qemu(way) => way.multifd_channels.unwrap_or(1),
        How::CloudHypervisor(way) => way.connections,
    }
}

fn range(spread: Spread) -> String {
    format!("{} ({}-{})", short(spread.median), short(spread.min), short(spread.max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::record::tests::sample;

    #[test]
    fn a_table_has_every_way_and_every_failure() {
        let text = words(&sample());
        assert!(
            text.contains(
                "| vmm pre-copy | 2/2 | 3.00 (2.00-4.00) | 6.00 (4.00-8.00) | 500 (500-500) | 1074 |"
            )
        );
        assert!(text.contains("| 1G-10k | vmm pre-copy | 0.10 (QEMU"), "{text}");
        assert!(text.contains("2 of 2 failed, the first: never <ended>"));
        let columns = |line: &str| line.matches('|').count();
        let rows =
            text.lines().filter(|line| line.starts_with("| vmm pre-copy |") || line.starts_with("| way"));
        assert_eq!(rows.map(columns).collect::<Vec<_>>(), [12, 12]);
    }
}
