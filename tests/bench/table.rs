//! The table of results.

use std::fmt;

/// What was measured, what it is compared with, and the bar that it should meet.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<[String; 5]>,
}

impl Table {
    /// Adds a row: what was measured and its figure, what it is compared with and that figure, and
    /// the ratio or the bar.
    pub(crate) fn row(
        &mut self,
        what: &str,
        figure: String,
        beside: &str,
        other: String,
        says: String,
    ) {
        self.rows
            .push([what.to_owned(), figure, beside.to_owned(), other, says]);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | measured | beside | measured | ratio, bar |")?;
        writeln!(f, "|---|---|---|---|---|")?;
        for row in &self.rows {
            writeln!(f, "| {} |", row.join(" | "))?;
        }
        Ok(())
    }
}

/// The median, which the noise of a shared machine hardly moves.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The figure below which `share` (0 to 1) of all figures are.
pub(crate) fn percentile(mut figures: Vec<f64>, share: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    let place = (figures.len() as f64 * share) as usize;
    figures
        .get(place.min(figures.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}
