//! Through a function: a component in Millrace, and the same function with Kafka Streams on Kafka,
//! for the same messages.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::board::{Board, Column};
use crate::direct::PER_SECOND;
use crate::doors::http::Http;
use crate::doors::kafka::Kafka;
use crate::doors::{PartitionReader, Store};
use crate::figures::Figure;
use crate::line::Line;
use crate::load::{Done, end_to_end, value, wait_for_answers};
use crate::machine::Meter;
use crate::servers::{Jars, Streams, Topology};

pub(crate) const ROWS: [&str; 3] = [
    "upper case, as fast as it goes",
    "count by key, each change an output",
    "upper case, end to end at 1,000/s, p50 · p99",
];
const COUNT: usize = 1;
const END_TO_END: usize = 2;

/// Partitions in the rows that run at full speed.
const PARTITIONS: u32 = 4;
/// Number of keys; each gets an equal share of the messages.
pub(crate) const KEYS: usize = 10_000;
/// Time between two checks of the progress.
const PAUSE: Duration = Duration::from_millis(2);
/// How long the slowest function may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Settings that make Kafka Streams faster than its defaults: larger batches for the rate, and no
/// waiting for batches for the time from end to end.
const FOR_RATE: [&str; 2] = ["producer.batch.size=262144", "max.poll.records=5000"];
const FOR_TIME: [&str; 1] = ["producer.linger.ms=0"];
const OFTEN: &str = "commit.interval.ms=10";

/// The places where functions run.
pub(crate) struct Places<'a> {
    pub(crate) home: &'a Path,
    pub(crate) millrace: Millrace<'a>,
    pub(crate) kafka: Option<BesideKafka>,
}

pub(crate) struct Millrace<'a> {
    pub(crate) binary: &'a Path,
    /// The directory of components, as files named after their guests.
    pub(crate) modules: &'a Path,
    pub(crate) address: SocketAddr,
    pub(crate) process: u32,
}

pub(crate) struct BesideKafka {
    pub(crate) jars: Jars,
    pub(crate) address: SocketAddr,
    pub(crate) process: u32,
}

/// The extent of the measurement.
#[derive(Clone, Copy)]
pub(crate) struct Measure {
    pub(crate) rounds: u32,
    pub(crate) time: Duration,
    /// Messages that pass through a function in one round.
    pub(crate) messages: u64,
}

/// A place with one of its settings.
#[derive(Clone, Copy)]
struct Way {
    column: Column,
    name: &'static str,
    runs: Runs,
}

#[derive(Clone, Copy)]
enum Runs {
    Component {
        durability: &'static str,
    },
    Streams {
        guarantee: &'static str,
        /// Whether it commits more often than by default, which helps only the time from end to
        /// end.
        is_often: bool,
    },
}

const WAYS: [Way; 5] = [
    Way {
        column: Column {
            title: "Millrace `durable`, exactly once",
            acknowledged: "on the disk",
            is_synced: true,
        },
        name: "durable",
        runs: Runs::Component {
            durability: "durable",
        },
    },
    Way {
        column: Column {
            title: "Millrace `os`, exactly once",
            acknowledged: "in the page cache",
            is_synced: false,
        },
        name: "os",
        runs: Runs::Component { durability: "os" },
    },
    Way {
        column: Column {
            title: "Kafka Streams `exactly_once_v2`",
            acknowledged: "in the page cache",
            is_synced: false,
        },
        name: "once",
        runs: Runs::Streams {
            guarantee: "exactly_once_v2",
            is_often: false,
        },
    },
    Way {
        column: Column {
            title: "Kafka Streams `exactly_once_v2`, `commit.interval.ms=10`",
            acknowledged: "in the page cache",
            is_synced: false,
        },
        name: "often",
        runs: Runs::Streams {
            guarantee: "exactly_once_v2",
            is_often: true,
        },
    },
    Way {
        column: Column {
            title: "Kafka Streams `at_least_once`",
            acknowledged: "in the page cache",
            is_synced: false,
        },
        name: "least",
        runs: Runs::Streams {
            guarantee: "at_least_once",
            is_often: false,
        },
    },
];

/// The columns that are compared in ratios: both of ours with both guarantees.
pub(crate) const PAIRS: [(usize, usize); 5] = [(0, 2), (1, 2), (1, 3), (0, 4), (1, 4)];

/// A running function.
struct Running {
    column: usize,
    store: Box<dyn Store>,
    steering: Steering,
    servers: Vec<u32>,
    input: String,
    output: String,
    /// Partitions of both topics.
    partitions: u32,
}

enum Steering {
    /// A processor with this name.
    Processor(String),
    Program(Streams),
}

/// Measures all rows in each round, and each row in all places in turn. Programs keep running from
/// round to round, so that they are warm.
pub(crate) fn measure(places: &Places<'_>, measure: Measure) -> Board {
    let ways = match places.kafka {
        Some(_) => &WAYS[..],
        None => &WAYS[..2],
    };
    let columns: Vec<Column> = ways.iter().map(|way| way.column).collect();
    let mut board = Board::new(&columns, &ROWS, measure.rounds);
    for row in 0..ROWS.len() {
        let mut running = Vec::new();
        for (column, way) in ways.iter().enumerate() {
            match places.start(*way, column, row) {
                Ok(started) => running.extend(started),
                Err(error) => board.note(0, row, column, Err(error)),
            }
        }
        for round in 1..=measure.rounds {
            for function in &mut running {
                rustix::fs::sync();
                let measured = match row {
                    END_TO_END => function.end_to_end(measure.time),
                    _ => function.rate(measure.messages),
                };
                board.note(round, row, function.column, measured);
            }
        }
        for function in running {
            let column = function.column;
            if let Err(error) = function.end() {
                board.note(measure.rounds, row, column, Err(error));
            }
        }
    }
    board
}

impl Places<'_> {
    /// `None` if this way does not take part in this row.
    fn start(&self, way: Way, column: usize, row: usize) -> Result<Option<Running>> {
        let (input, output) = (
            format!("in-{row}-{}", way.name),
            format!("out-{row}-{}", way.name),
        );
        let partitions = if row == END_TO_END { 1 } else { PARTITIONS };
        let (store, steering, servers): (Box<dyn Store>, _, _) = match way.runs {
            Runs::Component { durability } => {
                let store = Http {
                    address: self.millrace.address,
                    durability,
                };
                store.make_partitioned(&input, partitions)?;
                store.make_partitioned(&output, partitions)?;
                let module = if row == COUNT { "counter" } else { "uppercase" };
                self.millrace.deploy(&output, module, &input, &output)?;
                let servers = vec![self.millrace.process];
                (
                    Box::new(store),
                    Steering::Processor(output.clone()),
                    servers,
                )
            }
            Runs::Streams {
                guarantee,
                is_often,
            } => {
                let Some(kafka) = &self.kafka else {
                    return Ok(None);
                };
                if is_often && row != END_TO_END {
                    return Ok(None);
                }
                let store = Kafka {
                    address: kafka.address,
                    is_flushed: false,
                };
                store.make_partitioned(&input, partitions)?;
                store.make_partitioned(&output, partitions)?;
                let mut settings = match row {
                    END_TO_END => FOR_TIME.to_vec(),
                    _ => FOR_RATE.to_vec(),
                };
                settings.extend(is_often.then_some(OFTEN));
                let topology = Topology {
                    function: if row == COUNT { "count" } else { "upper" },
                    guarantee,
                    settings: &settings,
                    input: &input,
                    output: &output,
                };
                let program = kafka.jars.streams(kafka.address, self.home, &topology)?;
                let servers = vec![kafka.process, program.process()];
                (Box::new(store), Steering::Program(program), servers)
            }
        };
        Ok(Some(Running {
            column,
            store,
            steering,
            servers,
            input,
            output,
            partitions,
        }))
    }
}

impl Millrace<'_> {
    fn deploy(&self, name: &str, module: &str, input: &str, output: &str) -> Result<()> {
        let file = self.modules.join(format!("{module}.wasm"));
        let tag = format!("{name}-{module}@1");
        self.tell(&["module", "push", &file.to_string_lossy(), "--tag", &tag])?;
        self.tell(&[
            "processor",
            "deploy",
            name,
            "--module",
            &tag,
            "--topic",
            input,
            "--output",
            output,
        ])
    }

    fn tell(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(self.binary);
        command.env("MILLRACE_HOST", format!("http://{}", self.address));
        let said = command.args(arguments).output()?;
        let why = String::from_utf8_lossy(&said.stderr);
        ensure!(said.status.success(), "{command:?}: {why}");
        Ok(())
    }
}

impl Running {
    /// Measures from the first output to the last, for messages that were there before.
    fn rate(&mut self, messages: u64) -> Result<Figure> {
        let mut line = self.store.open()?;
        self.pause(&mut line)?;
        let before = self.ends(&mut line)?;
        self.fill(&mut line, messages)?;
        rustix::fs::sync();
        self.resume(&mut line)?;
        let done_after = |ends: Vec<u64>| ends.iter().sum::<u64>() - before.iter().sum::<u64>();
        let began = Instant::now();
        let mut first = 0;
        while first == 0 {
            first = done_after(self.ends(&mut line)?);
            ensure!(began.elapsed() < PATIENCE, "nothing came out");
        }
        ensure!(
            first < messages / 2,
            "{first} of {messages} messages were through at the first look; take more"
        );
        let meter = Meter::start(&self.servers)?;
        let mut done = first;
        // Kafka's transaction markers have offsets, too, so that the end is seen a few messages
        // early there.
        while done < messages {
            thread::sleep(PAUSE);
            done = done_after(self.ends(&mut line)?);
            ensure!(
                began.elapsed() < PATIENCE,
                "{done} of {messages} came out in time"
            );
        }
        let spent = meter.end()?;
        self.count_outputs(&mut line, &before, messages)?;
        Ok(Figure::rate(&Done {
            count: messages - first,
            spent,
        }))
    }

    /// Reads the outputs and checks that there are as many as inputs, none lost and none twice.
    fn count_outputs(&self, line: &mut Line, before: &[u64], messages: u64) -> Result<()> {
        let from = |(partition, from): (usize, &u64)| {
            self.store.reader_at(&self.output, partition as u32, *from)
        };
        let readers = before.iter().enumerate().map(from);
        let mut readers: Vec<Box<dyn PartitionReader>> = readers.collect();
        let began = Instant::now();
        let mut count = 0;
        while count < messages {
            for (reader, end) in readers.iter_mut().zip(self.ends(line)?) {
                count += read_to(line, &mut **reader, end)?;
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "{count} outputs of {messages} messages"
            );
        }
        ensure!(count == messages, "{count} outputs of {messages} messages");
        Ok(())
    }

    fn end_to_end(&self, time: Duration) -> Result<Figure> {
        let mut line = self.store.open()?;
        let end = self.ends(&mut line)?[0];
        let mut reader = self.store.reader_at(&self.output, 0, end);
        let store = &*self.store;
        let times = end_to_end(
            store,
            &self.input,
            &mut line,
            &mut *reader,
            PER_SECOND,
            time,
        )?;
        Ok(Figure::spread(times))
    }

    fn ends(&self, line: &mut Line) -> Result<Vec<u64>> {
        self.store.ends(line, &self.output, self.partitions)
    }

    fn fill(&self, line: &mut Line, messages: u64) -> Result<()> {
        let requests = self
            .store
            .fill(&self.input, self.partitions, KEYS, &value());
        let mut filled = 0;
        for (request, count) in requests.iter().cycle() {
            if filled >= messages {
                break;
            }
            line.send(request)?;
            wait_for_answers(&*self.store, line, 1)?;
            filled += count;
        }
        ensure!(filled == messages, "messages are a multiple of {KEYS}");
        Ok(())
    }

    fn pause(&mut self, line: &mut Line) -> Result<()> {
        match &mut self.steering {
            Steering::Processor(name) => steer(line, name, "pause"),
            Steering::Program(streams) => streams.pause(),
        }
    }

    fn resume(&mut self, line: &mut Line) -> Result<()> {
        match &mut self.steering {
            Steering::Processor(name) => steer(line, name, "resume"),
            Steering::Program(streams) => streams.resume(),
        }
    }

    /// Ends the function and removes its topics, so that the disk does not fill up.
    fn end(self) -> Result<()> {
        match self.steering {
            Steering::Processor(name) => {
                let path = format!("/v1/processors/{name}");
                Http::ask(&mut self.store.open()?, "DELETE", &path, "")?;
            }
            Steering::Program(streams) => drop(streams),
        }
        self.store.remove(&self.input)?;
        self.store.remove(&self.output)
    }
}

fn steer(line: &mut Line, processor: &str, what: &str) -> Result<()> {
    Http::ask(
        line,
        "POST",
        &format!("/v1/processors/{processor}/{what}"),
        "",
    )
    .map(drop)
}

fn read_to(line: &mut Line, reader: &mut dyn PartitionReader, end: u64) -> Result<u64> {
    let mut count = 0;
    while reader.position() < end {
        line.send(&reader.ask())?;
        loop {
            line.more()?;
            let taken = reader.take(line.held(), None)?;
            line.take(taken.bytes);
            count += taken.messages;
            if taken.is_answered {
                break;
            }
        }
    }
    Ok(count)
}
