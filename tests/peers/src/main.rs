//! Compares Millrace with the brokers that people would use instead, all in one run, with one load.
//! `tests/peers/run` fetches what this needs and starts it; the README next to that file describes
//! what is measured and how.
#![forbid(unsafe_code)]

mod board;
mod direct;
mod doors;
mod figures;
mod line;
mod load;
mod machine;
mod options;
mod report;
mod servers;
mod through;

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::board::Column;
use crate::direct::Contender;
use crate::doors::Door;
use crate::doors::http::Http;
use crate::doors::kafka::Kafka;
use crate::doors::nats::Nats;
use crate::doors::redis::Redis;
use crate::options::Options;
use crate::report::Report;
use crate::servers::{Jars, Server, version};
use crate::through::{BesideKafka, Measure, Millrace, Places};

const PAGE_CACHE: Acknowledged = Acknowledged("in the page cache", false);
const DISK: Acknowledged = Acknowledged("on the disk", true);

/// Where a message is stored when it is acknowledged, and whether that survives a loss of power.
#[derive(Clone, Copy)]
struct Acknowledged(&'static str, bool);

fn main() -> ExitCode {
    match run() {
        Ok(report) => {
            print!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Report> {
    let options = Options::read(std::env::args().skip(1))?;
    let mut field = Field::default();
    let millrace = field.millrace(&options)?;
    let kafka = field.perhaps("Apache Kafka", options.kafka(), |field, jars| {
        field.kafka(&jars, &options)
    });
    field.perhaps("NATS", options.nats.clone(), |field, binary| {
        field.nats(&binary, &options)
    });
    field.perhaps("Redis", options.redis.clone(), |field, binary| {
        field.redis(&binary, &options)
    });
    let load_before = machine::load_average();
    let direct = direct::measure(&mut field.contenders, options.rounds, options.time());
    let places = Places {
        home: &options.home,
        millrace,
        kafka,
    };
    let measure = Measure {
        rounds: options.rounds,
        time: options.time(),
        messages: options.messages,
    };
    let through = through::measure(&places, measure);
    Ok(Report {
        build: options.build.clone(),
        versions: field.versions,
        left_out: field.left_out,
        load_before,
        measure,
        direct,
        through,
    })
}

/// The participants.
#[derive(Default)]
struct Field {
    contenders: Vec<Contender>,
    /// They run until this is dropped.
    servers: Vec<Server>,
    versions: Vec<String>,
    left_out: Vec<String>,
}

impl Field {
    fn millrace<'a>(&mut self, options: &'a Options) -> Result<Millrace<'a>> {
        let server = Server::millrace(&options.millrace, &options.home)?;
        let (address, process) = (server.address, server.process());
        self.servers.push(server);
        self.versions
            .push(format!("Millrace {}", version(&options.millrace)?));
        for (title, durability, acknowledged) in [
            ("Millrace `os`", "os", PAGE_CACHE),
            ("Millrace `durable`", "durable", DISK),
        ] {
            let door = Http {
                address,
                durability,
            };
            // HTTP/1.1 answers requests one by one, and clients wait for each answer.
            self.add(title, acknowledged, door, process, false);
        }
        Ok(Millrace {
            binary: &options.millrace,
            modules: &options.modules,
            address,
            process,
        })
    }

    fn kafka(&mut self, jars: &Jars, options: &Options) -> Result<BesideKafka> {
        let version = jars.version()?;
        let server = Server::kafka(jars, &options.home)?;
        let (address, process) = (server.address, server.process());
        self.servers.push(server);
        self.versions.push(format!("Apache Kafka {version}"));
        for (title, is_flushed, acknowledged) in [
            ("Kafka, default", false, PAGE_CACHE),
            ("Kafka, `flush.messages=1`", true, DISK),
        ] {
            let door = Kafka {
                address,
                is_flushed,
            };
            self.add(title, acknowledged, door, process, true);
        }
        Ok(BesideKafka {
            jars: jars.clone(),
            address,
            process,
        })
    }

    fn nats(&mut self, binary: &std::path::Path, options: &Options) -> Result<()> {
        let version = version(binary)?;
        self.versions.push(format!("NATS {version}"));
        for (title, sync, acknowledged) in [
            (
                "NATS JetStream, default",
                None,
                Acknowledged("in the page cache, synced every 2 minutes", false),
            ),
            (
                "NATS JetStream, `sync_interval: always`",
                Some("always"),
                DISK,
            ),
        ] {
            let server = Server::nats(binary, &options.home, sync)?;
            let door = Nats {
                address: server.address,
            };
            self.add(title, acknowledged, door, server.process(), true);
            self.servers.push(server);
        }
        Ok(())
    }

    fn redis(&mut self, binary: &std::path::Path, options: &Options) -> Result<()> {
        let version = version(binary)?;
        self.versions.push(format!("Redis {version}"));
        for (title, sync, acknowledged) in [
            (
                "Redis streams, `everysec`",
                "everysec",
                Acknowledged("in the page cache, synced every second", false),
            ),
            ("Redis streams, `always`", "always", DISK),
        ] {
            let server = Server::redis(binary, &options.home, sync)?;
            let door = Redis {
                address: server.address,
            };
            self.add(title, acknowledged, door, server.process(), true);
            self.servers.push(server);
        }
        Ok(())
    }

    fn add(
        &mut self,
        title: &'static str,
        acknowledged: Acknowledged,
        door: impl Door + 'static,
        process: u32,
        may_pipeline: bool,
    ) {
        self.contenders.push(Contender {
            column: Column {
                title,
                acknowledged: acknowledged.0,
                is_synced: acknowledged.1,
            },
            door: Box::new(door),
            servers: vec![process],
            may_pipeline,
            batched: 0,
        });
    }

    /// Continues without a peer that is not available, and remembers why.
    fn perhaps<P, T>(
        &mut self,
        name: &str,
        given: Option<P>,
        start: impl FnOnce(&mut Self, P) -> Result<T>,
    ) -> Option<T> {
        let started = given
            .context("it could not be had")
            .and_then(|given| start(self, given));
        match started {
            Ok(started) => Some(started),
            Err(error) => {
                eprintln!("{name} is left out: {error:#}");
                self.left_out.push(format!("{name}: {error:#}"));
                None
            }
        }
    }
}
