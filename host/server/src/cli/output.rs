//! Standard output: tables for people, JSON for programs, and no complaint when the reader goes away.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use millrace_model::plain::plain;
use serde_json::Value;

use super::failure::Failure;
use super::gathered::missing;
use super::table;

/// Where a command's answer is printed.
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

    /// Prints a line. At a terminal, control characters are escaped, including line ends within it.
    pub(super) fn line(&mut self, line: &str) -> Result<(), Failure> {
        match self.terminal {
            true => writeln!(self.out, "{}", plain(line))?,
            false => writeln!(self.out, "{line}")?,
        }
        Ok(())
    }

    /// Prints a line of outside texts: separated and escaped at a terminal, unchanged and separated by tabs in a pipe.
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

    /// Prints a value on a line.
    pub(super) fn json_line(&mut self, value: &Value) -> Result<(), Failure> {
        match self.terminal {
            true => writeln!(self.out, "{}", table::harmless_json(value))?,
            false => writeln!(self.out, "{value}")?,
        }
        Ok(())
    }

    /// Prints the JSON value, or a form for people, which names the hosts that are missing from it.
    pub(super) fn answer(
        &mut self,
        value: &Value,
        for_people: impl FnOnce(&Value) -> String,
    ) -> Result<(), Failure> {
        let for_people = |value| match missing(value) {
            None => for_people(value),
            Some(missing) => format!("{}\n\n{missing}", for_people(value)),
        };
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
