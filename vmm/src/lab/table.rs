//! Tables for people: columns as wide as what is in them, figures to the right.

use std::fmt;

/// A table under construction.
#[derive(Debug, Clone)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    words: usize,
}

impl Table {
    /// A table with these columns: the first `words` of them hold words and go to the left.
    #[must_use]
    pub fn new(words: usize, head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new(), words }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// When it has not as many cells as the table has columns.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.head.len(), "one cell for each column");
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.head[column].chars().count()]).max().unwrap_or(0)
        };
        (0..self.head.len()).map(width).collect()
    }

    fn line<'a>(&self, widths: &[usize], cells: impl Iterator<Item = &'a str>) -> String {
        let padded = cells.enumerate().map(|(column, cell)| {
            let width = widths[column];
            if column < self.words { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        writeln!(f, "{}", self.line(&widths, self.head.iter().copied()))?;
        for row in &self.rows {
            writeln!(f, "{}", self.line(&widths, row.iter().map(String::as_str)))?;
        }
        Ok(())
    }
}

/// Microseconds as milliseconds, with as many digits as mean something.
#[must_use]
pub fn ms(us: f64) -> String {
    short(us / 1000.0)
}

/// A figure with as many digits as mean something.
#[must_use]
pub fn short(value: f64) -> String {
    match value {
        small if small < 10.0 => format!("{small:.2}"),
        middle if middle < 100.0 => format!("{middle:.1}"),
        large => format!("{large:.0}"),
    }
}

/// A figure, or a dash where there is none.
#[must_use]
pub fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_to_the_left_figures_to_the_right() {
        let mut table = Table::new(1, &["mode", "ms", "verdict"]);
        table.row(vec!["precopy".into(), "7.25".into(), "good".into()]);
        table.row(vec!["x".into(), "–".into(), "µs".into()]);
        assert_eq!(
            table.to_string(),
            "mode       ms  verdict\nprecopy  7.25     good\nx           –       µs\n"
        );
    }

    #[test]
    #[should_panic(expected = "one cell for each column")]
    fn a_short_row_is_a_mistake() {
        Table::new(0, &["a", "b"]).row(vec![String::new()]);
    }

    #[test]
    fn digits_that_mean_something() {
        assert_eq!(
            ["0.05", "3.14", "31.4", "314"].map(String::from),
            [ms(50.0), ms(3140.0), ms(31_400.0), ms(314_159.0)]
        );
        assert_eq!(or_dash(None, |us: f64| ms(us)), "–");
    }
}
