//! Standard output: tables for people, JSON for programs, and no complaint when the reader goes away.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use millrace_model::plain::plain;
use serde_json::Value;

use super::failure::Failure;
use super::table;

/// Where a command's answer goes.
pub(super) struct Output {
    out: BufWriter<Stdout>,
    json: bool,
    terminal: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        let stdout = io::stdout();
        Self {
            terminal: stdout.is_terminal(),
            out: BufWriter::new(stdout),
            json,
        }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// A line. What would steer a terminal is written out there, line ends within it as well.
    pub(super) fn line(&mut self, line: &str) -> Result<(), Failure> {
        match self.terminal {
            true => writeln!(self.out, "{}", plain(line))?,
            false => writeln!(self.out, "{line}")?,
        }
        Ok(())
    }

    /// A line of texts from outside: for a terminal told apart and harmless, for a pipe as they are, with tabs between them.
    pub(super) fn row(&mut self, cells: &[Option<&str>]) -> Result<(), Failure> {
        let (between, nothing) = (if self.terminal { "  " } else { "\t" }, "-");
        let shown = |cell: &Option<&str>| match (self.terminal, *cell) {
            (_, None) => nothing.to_owned(),
            (true, Some(text)) => table::told_apart(&plain(text)).into_owned(),
            (false, Some(text)) => text.to_owned(),
        };
        let line = cells.iter().map(shown).collect::<Vec<_>>().join(between);
        writeln!(self.out, "{line}")?;
        Ok(())
    }

    /// A value on a line.
    pub(super) fn json_line(&mut self, value: &Value) -> Result<(), Failure> {
        match self.terminal {
            true => writeln!(self.out, "{}", table::harmless_json(value))?,
            false => writeln!(self.out, "{value}")?,
        }
        Ok(())
    }

    /// The value as it came, or what people would rather see.
    pub(super) fn answer(
        &mut self,
        value: &Value,
        for_people: impl FnOnce(&Value) -> String,
    ) -> Result<(), Failure> {
        match (self.json, self.terminal) {
            (true, _) => self.json_line(value)?,
            (false, true) => writeln!(self.out, "{}", table::harmless(&for_people(value)))?,
            (false, false) => writeln!(self.out, "{}", for_people(value))?,
        }
        self.flush()
    }

    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.out.flush()?)
    }
}
