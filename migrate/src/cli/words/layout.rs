//! Sections and columns.

/// A page of sections, each with a title and rows whose columns line up.
#[derive(Debug, Default)]
pub(super) struct Page(String);

/// A row: what it is, its figure, a remark.
pub(super) type Row = (&'static str, String, String);

impl Page {
    pub(super) fn line(&mut self, line: &str) {
        self.0 += line;
        self.0.push('\n');
    }

    /// Rows of label, figure and remark. The labels have one width in all sections; so have the figures.
    pub(super) fn section(&mut self, title: &str, rows: impl IntoIterator<Item = Row>) {
        self.line("");
        self.line(title);
        for (label, figure, remark) in rows {
            let line = format!("  {label:<26}{figure:>12}  {remark}");
            self.line(line.trim_end());
        }
    }

    /// A table whose columns are as wide as they must be, figures to the right.
    pub(super) fn table<const N: usize>(&mut self, title: &str, head: [&str; N], rows: &[[String; N]]) {
        let wide = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([head[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: [usize; N] = std::array::from_fn(wide);
        self.line("");
        self.line(title);
        self.cells(&head.map(str::to_owned), &widths);
        for row in rows {
            self.cells(row, &widths);
        }
    }

    pub(super) fn finish(self) -> String {
        self.0
    }

    fn cells<const N: usize>(&mut self, cells: &[String; N], widths: &[usize; N]) {
        let line: String =
            cells.iter().zip(widths).map(|(cell, &width)| format!("  {cell:>width$}")).collect();
        self.line(&line);
    }
}
