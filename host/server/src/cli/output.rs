//! Standard output: tables for people, JSON for programs, and no complaint when the reader goes away.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

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

    /// A line. Control characters of strangers' text do not reach a terminal.
    pub(super) fn line(&mut self, line: &str) -> Result<(), Failure> {
        match self.terminal {
            true => writeln!(self.out, "{}", table::harmless(line))?,
            false => writeln!(self.out, "{line}")?,
        }
        Ok(())
    }

    /// The value as it came, or what people would rather see.
    pub(super) fn answer(
        &mut self,
        value: &Value,
        for_people: impl FnOnce(&Value) -> String,
    ) -> Result<(), Failure> {
        match self.json {
            true => writeln!(self.out, "{value}")?,
            false => writeln!(self.out, "{}", for_people(value))?,
        }
        self.flush()
    }

    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.out.flush()?)
    }
}
