//! What a misbehaving guest costs its neighbours: one message at a time through a processor, alone
//! and next to another one whose guest never returns or takes all the memory that it can get.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use guest_artifacts as guests;
use millrace_broker::{Broker, Caller, FetchRequest, NewMessage, Session};
use millrace_engine::Engine;
use millrace_model::{Durability, Message, Offset, PartitionId, ProcessorSpec, Timestamp};
use rustix::process::setpriority_process;
use serde_json::json;

use crate::setup;
use crate::table::{Table, median, percentile};

/// Many rounds, each compared with itself: other work of a shared machine moves a p99 by more than
/// guests do.
const ROUNDS: usize = 20;
const WARM_UP: usize = 100;
const MESSAGES: usize = 1_000;
/// Partitions of the other processor, which is how many of its calls run at once.
const PARTITIONS: u32 = 4;
/// Messages for the other processor: each takes the whole time of a call, and is tried again.
const MISCHIEF: usize = 1_000;

/// A row for each kind of misbehaviour.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    for (what, guest, value) in [
        ("never returns", guests::ENDLESS, "endless"),
        ("takes all memory", guests::HOARD, "hoard"),
    ] {
        let world = World::new(guest).await?;
        let mut rounds = Rounds::default();
        for _ in 0..ROUNDS {
            rounds.alone.push(world.messages().await?);
            let loops = Loops::start();
            rounds.beside_loops.push(world.messages().await?);
            drop(loops);
            world.begin(value).await?;
            rounds.beside_guests.push(world.messages().await?);
            world.end().await?;
        }
        world.broker.stop().await;
        rounds.show(table, what);
    }
    Ok(())
}

/// The duration of each message, round by round.
#[derive(Default)]
struct Rounds {
    alone: Vec<Vec<f64>>,
    beside_guests: Vec<Vec<f64>>,
    /// Next to native loops with the same low priority as guests: what busy cores alone cost here.
    beside_loops: Vec<Vec<f64>>,
}

impl Rounds {
    fn show(&self, table: &mut Table, what: &str) {
        let what = |name| {
            format!(
                "one message at a time, {name}, beside {PARTITIONS} calls of a guest that {what}"
            )
        };
        for (name, part) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
            let bar = if name == "p99" { " (≤ 1.2)" } else { "" };
            self.row(table, &what(name), part, "the same alone", &self.alone, bar);
        }
        let loops = "the same beside a native loop for each core";
        self.row(table, &what("p99"), 0.99, loops, &self.beside_loops, "");
    }

    fn row(
        &self,
        table: &mut Table,
        what: &str,
        part: f64,
        beside: &str,
        others: &[Vec<f64>],
        bar: &str,
    ) {
        let (guests, others) = (
            percentiles(&self.beside_guests, part),
            percentiles(others, part),
        );
        let ratios = guests
            .iter()
            .zip(&others)
            .map(|(guests, other)| guests / other);
        let says = format!("{:.2}{bar}", median(ratios.collect()));
        let (guests, others) = (median(guests), median(others));
        table.row(
            what,
            format!("{guests:.2} ms"),
            beside,
            format!("{others:.2} ms"),
            says,
        );
    }
}

/// A thread for each core that computes until this is dropped, with the niceness of guests' threads
/// (10).
struct Loops(Arc<AtomicBool>);

impl Loops {
    fn start() -> Self {
        let ended = Arc::<AtomicBool>::default();
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            let ended = Arc::clone(&ended);
            std::thread::spawn(move || {
                // If that is refused, the thread only competes harder.
                let _ = setpriority_process(None, 10);
                while !ended.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(ended)
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// This percentile of each round.
fn percentiles(rounds: &[Vec<f64>], part: f64) -> Vec<f64> {
    let one = |round: &Vec<f64>| percentile(round.clone(), part);
    rounds.iter().map(one).collect()
}

struct World {
    broker: Broker,
    session: Session,
    _engine: Arc<dyn Engine>,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new(mischievous: &'static [u8]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let components = setup::components(directory.path())?;
        let engine = setup::engine(directory.path()).await?;
        let broker = setup::broker(&engine, components).await?;
        let session = broker.session(Caller::unnamed());
        let world = Self {
            broker,
            session,
            _engine: engine,
            _directory: directory,
        };
        world.deploy("good", guests::UPPERCASE, 1).await?;
        world.deploy("bad", mischievous, PARTITIONS).await?;
        world.end().await?;
        Ok(world)
    }

    /// Deploys a processor between its own topics.
    async fn deploy(&self, name: &str, guest: &'static [u8], partitions: u32) -> Result<()> {
        let (input, output) = (format!("{name}-in"), format!("{name}-out"));
        for topic in [&input, &output] {
            setup::topic(&self.session, topic, partitions, Durability::Os).await?;
        }
        let module = self
            .session
            .catalogue()
            .upload_module(Bytes::from_static(guest), None);
        let spec = json!({
            "topics": [input], "output": output, "module": module.await?.facts.digest,
            // It keeps misbehaving.
            "breaker": {"enabled": false}, "order": "none", "batch": {"messages_max": 1},
            "retry": {"attempts_max": 1_000_000, "delay_first_ms": 0, "delay_max_ms": 0},
        });
        let spec: ProcessorSpec = serde_json::from_value(spec)?;
        self.session
            .processors()
            .deploy(&name.parse()?, spec)
            .await?;
        Ok(())
    }

    /// Starts the mischief, and returns when it is under way.
    async fn begin(&self, value: &'static str) -> Result<()> {
        let mischief = |number: usize| NewMessage {
            partition: Some(PartitionId(number as u32 % PARTITIONS)),
            ..message(value)
        };
        let mischief = (0..MISCHIEF).map(mischief).collect();
        self.session
            .messages()
            .produce(&"bad-in".parse()?, mischief)
            .await?;
        self.session
            .processors()
            .resume(&"bad".parse()?, None)
            .await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(())
    }

    async fn end(&self) -> Result<()> {
        let status = self.session.processors().processor(&"bad".parse()?).await;
        let status = status.context("the processor")?;
        ensure!(
            status
                .partitions
                .iter()
                .all(|one| !one.state.contains("stopped")),
            "{:?}",
            status.partitions
        );
        self.session.processors().pause(&"bad".parse()?).await?;
        Ok(())
    }

    /// Milliseconds from each message's request until its output is there.
    async fn messages(&self) -> Result<Vec<f64>> {
        let (input, output) = ("good-in".parse()?, "good-out".parse()?);
        let topic = self
            .session
            .catalogue()
            .topic(&output)
            .context("its topic")?;
        let ends = self.session.catalogue().ends(&topic, PartitionId(0));
        let mut next = ends.map_or(Offset(0), |ends| ends.end);
        let mut times = Vec::with_capacity(MESSAGES);
        for number in 0..WARM_UP + MESSAGES {
            let began = Instant::now();
            self.session
                .messages()
                .produce(&input, vec![message("hello")])
                .await?;
            let request = FetchRequest {
                topic: output.clone(),
                partition: PartitionId(0),
                from: next,
                messages_max: 1,
                bytes_max: 1 << 20,
                wait: Duration::from_secs(10),
            };
            let fetched = self.session.messages().fetch(request).await?;
            ensure!(fetched.messages.len() == 1, "it did not come");
            next = fetched.next;
            if number >= WARM_UP {
                times.push(began.elapsed().as_secs_f64() * 1_000.0);
            }
        }
        Ok(times)
    }
}

fn message(value: &'static str) -> NewMessage {
    NewMessage {
        deliver_at: None,
        partition: None,
        message: Message {
            key: None,
            value: Some(Bytes::from_static(value.as_bytes())),
            headers: Vec::new(),
            timestamp: Timestamp(1_700_000_000_000),
        },
    }
}
