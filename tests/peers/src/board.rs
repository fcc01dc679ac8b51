//! Everything that was measured, by row and by broker, and the tables made of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Result;

use crate::figures::{Figure, median, short};

/// A broker with one of its settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    /// Where a message or an output is stored when it is acknowledged.
    pub(crate) acknowledged: &'static str,
    /// Whether that survives a power cut.
    pub(crate) is_synced: bool,
}

/// Figures by row and column, several rounds each. Rows and columns are identified by their
/// position.
pub(crate) struct Board {
    columns: Vec<Column>,
    rows: &'static [&'static str],
    /// The first round that counts; earlier ones are for warming up.
    first_round: u32,
    figures: BTreeMap<(usize, usize), Vec<(u32, Figure)>>,
    failures: BTreeMap<(usize, usize), String>,
    began: Instant,
}

impl Board {
    /// Creates an empty board. If there is more than one round, the first does not count.
    pub(crate) fn new(columns: &[Column], rows: &'static [&'static str], rounds: u32) -> Self {
        Self {
            columns: columns.to_vec(),
            rows,
            first_round: 1 + u32::from(rounds > 1),
            figures: BTreeMap::new(),
            failures: BTreeMap::new(),
            began: Instant::now(),
        }
    }

    /// Records a measurement or its failure, and prints it as progress.
    pub(crate) fn note(&mut self, round: u32, row: usize, column: usize, measured: Result<Figure>) {
        let (what, who) = (self.rows[row], self.columns[column].title);
        let at = self.began.elapsed().as_secs();
        match measured {
            Ok(figure) => {
                eprintln!("{at} s, round {round}: {what}: {who}: {figure}");
                let figures = self.figures.entry((row, column)).or_default();
                figures.push((round, figure));
            }
            Err(error) => {
                eprintln!("{at} s, round {round}: {what}: {who}: failed: {error:#}");
                self.failures.insert((row, column), format!("{error:#}"));
            }
        }
    }

    /// The median over the rounds that count.
    pub(crate) fn median(&self, row: usize, column: usize) -> Option<Figure> {
        let figures: Vec<Figure> = self
            .counted(row, column)
            .map(|(_, figure)| figure)
            .collect();
        Figure::median(&figures)
    }

    pub(crate) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// The position of the column with this title.
    pub(crate) fn column(&self, title: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.title == title)
    }

    fn counted(&self, row: usize, column: usize) -> impl Iterator<Item = (u32, Figure)> {
        let figures = self.figures.get(&(row, column)).map(Vec::as_slice);
        let figures = figures.unwrap_or_default().iter().copied();
        figures.filter(|(round, _)| *round >= self.first_round)
    }

    /// A table in Markdown of the rows that have figures.
    pub(crate) fn table(&self) -> String {
        let titles: Vec<&str> = self.columns.iter().map(|column| column.title).collect();
        let says: Vec<&str> = self
            .columns
            .iter()
            .map(|column| column.acknowledged)
            .collect();
        let mut table = format!("| | {} |\n", titles.join(" | "));
        let _ = writeln!(table, "|---|{}", "---|".repeat(titles.len()));
        let _ = writeln!(table, "| acknowledged when | {} |", says.join(" | "));
        for (row, title) in self.rows.iter().enumerate() {
            let cells: Vec<String> = (0..titles.len())
                .map(|column| self.cell(row, column))
                .collect();
            if cells.iter().any(|cell| cell != NOTHING) {
                let _ = writeln!(table, "| {title} | {} |", cells.join(" | "));
            }
        }
        table
    }

    fn cell(&self, row: usize, column: usize) -> String {
        match self.median(row, column) {
            Some(figure) => figure.to_string(),
            None if self.failures.contains_key(&(row, column)) => "failed".to_owned(),
            None => NOTHING.to_owned(),
        }
    }

    /// A table in Markdown that tells, for each pair of columns, how many times as good the first
    /// is as the second: the median of the ratios within each round.
    pub(crate) fn ratios(&self, pairs: &[(usize, usize)]) -> String {
        let title = |&(one, other): &(usize, usize)| {
            format!(
                "{} beside {}",
                self.columns[one].title, self.columns[other].title
            )
        };
        let titles: Vec<String> = pairs.iter().map(title).collect();
        let mut table = format!("| times as good | {} |\n", titles.join(" | "));
        let _ = writeln!(table, "|---|{}", "---|".repeat(titles.len()));
        for (row, title) in self.rows.iter().enumerate() {
            let cells: Vec<String> = pairs.iter().map(|pair| self.ratio(row, *pair)).collect();
            if cells.iter().any(|cell| cell != NOTHING) {
                let _ = writeln!(table, "| {title} | {} |", cells.join(" | "));
            }
        }
        table
    }

    fn ratio(&self, row: usize, (one, other): (usize, usize)) -> String {
        let others: BTreeMap<u32, Figure> = self.counted(row, other).collect();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for (round, figure) in self.counted(row, one) {
            if let Some(other) = others.get(&round) {
                let (times, further) = figure.times_as_good(other);
                first.push(times);
                second.extend(further);
            }
        }
        match (first.is_empty(), second.is_empty()) {
            (true, _) => NOTHING.to_owned(),
            (false, true) => short(median(first)),
            (false, false) => format!("{} ({})", short(median(first)), short(median(second))),
        }
    }

    /// What failed, and why.
    pub(crate) fn failures(&self) -> impl Iterator<Item = String> {
        self.failures.iter().map(|(&(row, column), why)| {
            format!("{}, {}: {why}", self.rows[row], self.columns[column].title)
        })
    }

    /// Whether any figure may be bound by the load and not by the server.
    pub(crate) fn has_bound_by_load(&self) -> bool {
        let cells = self.figures.keys();
        cells
            .filter_map(|&(row, column)| self.median(row, column))
            .any(|figure| figure.is_bound_by_load())
    }
}

/// Stands for what was not measured.
const NOTHING: &str = "–";

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 2] = [
        Column {
            title: "one",
            acknowledged: "soon",
            is_synced: false,
        },
        Column {
            title: "other",
            acknowledged: "late",
            is_synced: true,
        },
    ];

    #[test]
    fn the_first_round_does_not_count_and_ratios_are_within_a_round() {
        let mut board = Board::new(&COLUMNS, &["time", "never"], 3);
        for (round, one, other) in [(1, 900.0, 1.0), (2, 100.0, 200.0), (3, 10.0, 80.0)] {
            board.note(round, 0, 0, Ok(Figure::Median(one)));
            board.note(round, 0, 1, Ok(Figure::Median(other)));
        }
        assert_eq!(board.median(0, 0), Some(Figure::Median(55.0)));
        let table = "| | one | other |\n|---|---|---|\n| acknowledged when | soon | late |\n| time | 55 µs | 140 µs |\n";
        assert_eq!(board.table(), table);
        let ratios = "| times as good | one beside other |\n|---|---|\n| time | 5.00 |\n";
        assert_eq!(board.ratios(&[(0, 1)]), ratios);
    }

    #[test]
    fn a_failure_is_told_and_is_no_figure() {
        let mut board = Board::new(&COLUMNS, &["time"], 1);
        board.note(1, 0, 0, Err(anyhow::anyhow!("gone")));
        assert!(board.table().ends_with("| time | failed | – |\n"));
        assert_eq!(board.failures().collect::<Vec<_>>(), ["time, one: gone"]);
    }
}
