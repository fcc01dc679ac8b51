//! The report of a run, as Markdown.

use std::fmt;

use crate::board::Board;
use crate::figures::{grouped, short};
use crate::through::{Measure, PAIRS};
use crate::{direct, machine};

/// Millrace's columns, which come first.
const OURS: usize = 2;

pub(crate) struct Report {
    /// How Millrace was built.
    pub(crate) build: String,
    pub(crate) versions: Vec<String>,
    pub(crate) left_out: Vec<String>,
    /// The machine's load average before anything was measured.
    pub(crate) load_before: String,
    pub(crate) measure: Measure,
    pub(crate) direct: Board,
    pub(crate) through: Board,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measure {
            rounds,
            time,
            messages,
        } = self.measure;
        let counted = rounds.saturating_sub(1).max(1);
        writeln!(
            f,
            "{}, on {}; load average {} before. Millrace is {}.",
            self.versions.join(", "),
            machine::cores(),
            self.load_before,
            self.build
        )?;
        writeln!(
            f,
            "{rounds} × {} s a measurement, medians of the last {counted}; messages of 100 bytes; in brackets, microseconds of the \
             server's processor time a message.",
            time.as_secs()
        )?;
        for left_out in &self.left_out {
            writeln!(f, "Left out: {left_out}.")?;
        }
        write!(f, "\n{}\n", self.direct.table())?;
        let pairs = self.pairs();
        if !pairs.is_empty() {
            writeln!(
                f,
                "How many times as good (above 1: Millrace does more a second, in less time, with less memory); in brackets by processor \
                 time, or by p99. Medians of the ratios within each round.\n"
            )?;
            writeln!(f, "{}", self.direct.ratios(&pairs))?;
        }
        if let Some(sentence) = self.sentence() {
            writeln!(f, "{sentence}\n")?;
        }
        writeln!(
            f,
            "Through a function, {} messages of 10,000 keys in 4 partitions (in brackets, processor time of the broker, and of \
             the program with Kafka Streams):\n",
            grouped(messages)
        )?;
        writeln!(f, "{}", self.through.table())?;
        let ratios = self.through.ratios(self.through_pairs());
        if !self.through_pairs().is_empty() {
            writeln!(f, "{ratios}")?;
        }
        if self.direct.has_bound_by_load() || self.through.has_bound_by_load() {
            writeln!(
                f,
                "† The load, which is one thread, was busy all the time: the server may do more."
            )?;
        }
        for failure in self.direct.failures().chain(self.through.failures()) {
            writeln!(f, "Failed: {failure}.")?;
        }
        Ok(())
    }
}

impl Report {
    /// Pairs of one of our columns and one of theirs with the same durability.
    fn pairs(&self) -> Vec<(usize, usize)> {
        let columns = self.direct.columns();
        let pair = |other: usize| {
            let ours = columns[..OURS].iter();
            let mut ours = ours.map(|column| column.is_synced);
            Some((
                ours.position(|is_synced| is_synced == columns[other].is_synced)?,
                other,
            ))
        };
        (OURS..columns.len()).filter_map(pair).collect()
    }

    fn through_pairs(&self) -> &'static [(usize, usize)] {
        match self.through.columns().len() {
            OURS => &[],
            _ => &PAIRS,
        }
    }

    /// A sentence from the figures about where batches of the others are better.
    fn sentence(&self) -> Option<String> {
        let kafka = self.direct.column("Kafka, default")?;
        let cost = |row, column| self.direct.median(row, column)?.server_us();
        let say = |row| {
            let (ours, theirs) = (cost(row, 0)?, cost(row, kafka)?);
            Some(format!(
                "{} µs of processor time a message, and ours {} µs, {} times as much",
                short(theirs),
                short(ours),
                short(ours / theirs)
            ))
        };
        Some(format!(
            "Kafka takes and gives record batches as they are; Millrace decodes and encodes JSON lines over HTTP here. Batches in cost \
             Kafka's server {}; reading costs Kafka's {}.",
            say(direct::BATCHES)?,
            say(direct::CONSUME)?
        ))
    }
}
