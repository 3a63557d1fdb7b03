//! The gaps as a picture: a bar for each way in each cell, on a scale of powers of ten, as SVG without scripts.

use std::fmt::Write;

use super::record::{GAP, Record, WayRecord};
use vmm::lab::table::short;

const LABELS: f64 = 270.0;
const BARS: f64 = 480.0;
const VALUES: f64 = 150.0;
const ROW: f64 = 18.0;
const HEAD: f64 = 30.0;
const TOP: f64 = 46.0;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#222}.small{fill:#666}.name{font-weight:600}.grid{stroke:#ddd}\
.ours{fill:#2a6fb0}.peer{fill:#c0792a}.range{stroke:#222;stroke-width:1.2}.back{fill:#fff}\
@media(prefers-color-scheme:dark){text{fill:#ddd}.small{fill:#999}.grid{stroke:#444}\
.ours{fill:#5aa2e6}.peer{fill:#e0a050}.range{stroke:#ddd}.back{fill:#161616}}";

/// The picture.
pub(super) fn svg(record: &Record) -> String {
    let scale = Scale::of(record);
    let (mut body, mut y) = (String::new(), TOP);
    for cell in &record.cells {
        let head = format!("{}: {}", cell.name, cell.description);
        let _ = writeln!(body, r#"<text class="name" x="10" y="{:.0}">{}</text>"#, y + 19.0, escape(&head));
        y += HEAD;
        for way in cell.shown() {
            body += &bar(way, &scale, y);
            y += ROW;
        }
    }
    let (width, height) = (LABELS + BARS + VALUES, y + 14.0);
    let grid = scale.grid(height);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\">\n\
         <title>Longest time the guest stood still while it was moved</title>\n<style>{STYLE}</style>\n\
         <rect class=\"back\" width=\"100%\" height=\"100%\"/>\n\
         <text class=\"name\" x=\"10\" y=\"18\">Longest time the guest stood still while it was moved, ms (median, line: min-max)</text>\n\
         {grid}{body}</svg>\n"
    )
}

fn bar(way: &WayRecord, scale: &Scale, y: f64) -> String {
    let middle = y + ROW / 2.0;
    let class = if way.way.is_ours() { "ours" } else { "peer" };
    let label = format!(
        "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        LABELS - 8.0,
        middle + 4.0,
        escape(way.way.name)
    );
    let Some(gap) = way.spread(GAP) else {
        let (x, y) = (LABELS + 4.0, middle + 4.0);
        return format!("{label}<text class=\"small\" x=\"{x:.0}\" y=\"{y:.1}\">no good run</text>\n");
    };
    let [low, mid, high] = [gap.min, gap.median, gap.max].map(|ms| scale.x(ms));
    let (top, width) = (y + 3.0, mid - LABELS);
    format!(
        "{label}<rect class=\"{class}\" x=\"{LABELS:.0}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"12\"/>\
         <line class=\"range\" x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
        high.max(mid) + 6.0,
        middle + 4.0,
        short(gap.median)
    )
}

/// Whole powers of ten around everything.
struct Scale {
    least: i32,
    most: i32,
}

impl Scale {
    fn of(record: &Record) -> Self {
        let gaps = record.cells.iter().flat_map(|cell| &cell.ways).filter_map(|way| way.spread(GAP));
        let (mut least, mut most) = (0, 1);
        for gap in gaps {
            least = least.min(gap.min.max(0.01).log10().floor() as i32);
            most = most.max(gap.max.max(0.01).log10().ceil() as i32);
        }
        Self { least, most }
    }

    fn x(&self, ms: f64) -> f64 {
        let (least, most) = (f64::from(self.least), f64::from(self.most));
        let share = (ms.max(1e-9).log10() - least) / (most - least);
        LABELS + BARS * share.clamp(0.0, 1.0)
    }

    fn grid(&self, height: f64) -> String {
        (self.least..=self.most)
            .map(|power| {
                let ms = 10f64.powi(power);
                let (x, end) = (self.x(ms), height - 10.0);
                format!(
                    "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP:.0}\" y2=\"{end:.0}\"/>\
                     <text class=\"small\" x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{ms}</text>\n",
                    TOP - 8.0
                )
            })
            .collect()
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::record::tests::sample;

    #[test]
    fn longer_gaps_are_longer_bars() {
        let scale = Scale::of(&sample());
        assert_eq!((scale.least, scale.most), (0, 2));
        assert_eq!((scale.x(1.0), scale.x(10.0), scale.x(1e9)), (LABELS, LABELS + BARS / 2.0, LABELS + BARS));
    }

    #[test]
    fn every_way_is_in_the_picture() {
        let picture = svg(&sample());
        assert_eq!(picture.matches("no good run").count(), 3);
        assert_eq!(picture.matches("class=\"ours\"").count(), 3);
        assert_eq!(picture.matches('<').count(), picture.matches('>').count());
    }
}
