//! Brokers without a function: producing, consuming, and the time from end to end.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::board::{Board, Column};
use crate::doors::Door;
use crate::figures::{Figure, percentile};
use crate::load::{Done, Load, consume, end_to_end, one_at_a_time, value};
use crate::machine::resident_bytes;

pub(crate) const ROWS: [&str; 7] = [
    "batches of 1,000 in",
    "consume",
    "64 producers, a message at a time each",
    "64 messages at once over one connection",
    "one message at a time, p50",
    "end to end at 1,000/s, p50 · p99",
    "resident memory after the batches",
];
pub(crate) const BATCHES: usize = 0;
pub(crate) const CONSUME: usize = 1;
const PRODUCERS: usize = 2;
const AT_ONCE: usize = 3;
const ONE: usize = 4;
const END_TO_END: usize = 5;
const MEMORY: usize = 6;

/// Messages per batch.
const BATCH: usize = 1_000;
/// Connections that send batches.
const CONNECTIONS: usize = 4;
/// Producers, or unanswered messages, at once.
const MANY: usize = 64;
/// Rate of the messages that are timed from end to end.
pub(crate) const PER_SECOND: u32 = 1_000;

/// A running broker with one of its settings.
pub(crate) struct Contender {
    pub(crate) column: Column,
    pub(crate) door: Box<dyn Door>,
    /// The process ids of the broker.
    pub(crate) servers: Vec<u32>,
    /// Whether a connection may have many unanswered requests.
    pub(crate) may_pipeline: bool,
    /// Messages in this round's batches.
    pub(crate) batched: u64,
}

/// Measures all rows in each round, and each row with all brokers in turn.
pub(crate) fn measure(contenders: &mut [Contender], rounds: u32, time: Duration) -> Board {
    let columns: Vec<Column> = contenders.iter().map(|one| one.column).collect();
    let mut board = Board::new(&columns, &ROWS, rounds);
    for round in 1..=rounds {
        for row in [BATCHES, CONSUME, PRODUCERS, AT_ONCE, ONE, END_TO_END] {
            for (column, contender) in contenders.iter_mut().enumerate() {
                // So that data of other brokers in the page cache is not written during this
                // measurement.
                rustix::fs::sync();
                if let Some(measured) = contender.row(row, column, round, time).transpose() {
                    board.note(round, row, column, measured);
                }
                if row == CONSUME {
                    let memory = resident_bytes(&contender.servers);
                    let memory = memory.map(|bytes| Figure::Memory(bytes as f64));
                    board.note(round, MEMORY, column, memory);
                }
            }
        }
    }
    board
}

impl Contender {
    /// `None` if the broker's protocol cannot do this row.
    fn row(
        &mut self,
        row: usize,
        column: usize,
        round: u32,
        time: Duration,
    ) -> Result<Option<Figure>> {
        if row == AT_ONCE && !self.may_pipeline {
            return Ok(None);
        }
        if row == CONSUME && self.batched == 0 {
            bail!("there are no batches to read");
        }
        // Batches are kept for the row that reads them.
        let topic = match row {
            CONSUME => format!("row-{BATCHES}-{round}-{column}"),
            row => format!("row-{row}-{round}-{column}"),
        };
        if row != CONSUME {
            self.door.make(&topic)?;
        }
        let measured = self.figure(row, &topic, time);
        if row != BATCHES {
            self.door.remove(&topic)?;
        }
        measured.map(Some)
    }

    fn figure(&mut self, row: usize, topic: &str, time: Duration) -> Result<Figure> {
        let door = &*self.door;
        let value = value();
        let single = door.produce(topic, &[&value]);
        Ok(match row {
            BATCHES => {
                self.batched = 0;
                let (request, messages) = match door.has_batches() {
                    true => (door.produce(topic, &vec![&value[..]; BATCH]), BATCH),
                    false => (single, 1),
                };
                let mut done = self.load(request, CONNECTIONS, BATCH / messages, time)?;
                done.count *= messages as u64;
                self.batched = done.count;
                Figure::rate(&done)
            }
            CONSUME => Figure::rate(&consume(door, topic, &self.servers, self.batched, time)?),
            PRODUCERS => Figure::rate(&self.load(single, MANY, 1, time)?),
            AT_ONCE => Figure::rate(&self.load(single, 1, MANY, time)?),
            ONE => Figure::Median(percentile(one_at_a_time(door, single, time)?, 0.5)),
            _ => {
                let mut line = door.open()?;
                let mut reader = door.reader(topic, &mut line)?;
                let times = end_to_end(door, topic, &mut line, &mut *reader, PER_SECOND, time)?;
                Figure::spread(times)
            }
        })
    }

    fn load(
        &self,
        request: Vec<u8>,
        connections: usize,
        window: usize,
        time: Duration,
    ) -> Result<Done> {
        let load = Load {
            door: &*self.door,
            connections,
            window,
            request,
        };
        load.run(&self.servers, time)
    }
}
