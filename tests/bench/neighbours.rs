//! What a guest that misbehaves costs its neighbours: one message at a time through a processor, alone and beside another one whose
//! guest never returns, or takes all the memory that it can get.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use guest_artifacts as guests;
use millrace_broker::{Broker, FetchRequest, NewMessage};
use millrace_engine::Engine;
use millrace_model::{Durability, Message, Offset, PartitionId, Timestamp};
use serde_json::json;

use crate::setup;
use crate::table::{Table, median, percentile};

/// Many, and each is compared with itself: what else a shared machine does in between moves a p99 by more than guests do.
const ROUNDS: usize = 20;
const WARM_UP: usize = 100;
const MESSAGES: usize = 1_000;
/// The other one's partitions: so many of its calls run at once.
const PARTITIONS: u32 = 4;
/// Messages for it: each takes a call's whole time, and is tried again.
const MISCHIEF: usize = 1_000;

/// A row for each kind of misbehaviour.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    for (what, guest, value) in [
        ("never returns", guests::ENDLESS, "endless"),
        ("takes all memory", guests::HOARD, "hoard"),
    ] {
        let world = World::new(guest).await?;
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            alone.push(world.messages().await?);
            world.begin(value).await?;
            beside.push(world.messages().await?);
            world.end().await?;
        }
        world.broker.stop().await;
        for (name, part, bar) in [
            ("p50", 0.5, ""),
            ("p90", 0.9, ""),
            ("p99", 0.99, " (≤ 1.2)"),
        ] {
            let (alone, beside) = (percentiles(&alone, part), percentiles(&beside, part));
            let ratios = alone
                .iter()
                .zip(&beside)
                .map(|(alone, beside)| beside / alone);
            table.row(
                &format!(
                    "one message at a time, {name}, beside {PARTITIONS} calls of a guest that {what}"
                ),
                format!("{:.2} ms", median(beside.clone())),
                "the same alone, round by round",
                format!("{:.2} ms", median(alone.clone())),
                format!("{:.2}{bar}", median(ratios.collect())),
            );
        }
    }
    Ok(())
}

/// That percentile of each round.
fn percentiles(rounds: &[Vec<f64>], part: f64) -> Vec<f64> {
    let one = |round: &Vec<f64>| percentile(round.clone(), part);
    rounds.iter().map(one).collect()
}

struct World {
    broker: Broker,
    _engine: Arc<dyn Engine>,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new(mischievous: &'static [u8]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let components = setup::components(directory.path())?;
        let engine = setup::engine(directory.path()).await?;
        let broker = setup::broker(&engine, components).await?;
        let world = Self {
            broker,
            _engine: engine,
            _directory: directory,
        };
        world.deploy("good", guests::UPPERCASE, 1).await?;
        world.deploy("bad", mischievous, PARTITIONS).await?;
        world.end().await?;
        Ok(world)
    }

    /// A processor between topics of its own.
    async fn deploy(&self, name: &str, guest: &'static [u8], partitions: u32) -> Result<()> {
        let (input, output) = (format!("{name}-in"), format!("{name}-out"));
        for topic in [&input, &output] {
            setup::topic(&self.broker, topic, partitions, Durability::Os).await?;
        }
        let module = self.broker.upload_module(Bytes::from_static(guest), None);
        let spec = json!({
            "topics": [input], "output": output, "module": module.await?.facts.digest,
            // It goes on misbehaving.
            "breaker": {"enabled": false}, "order": "none", "batch": {"messages_max": 1},
            "retry": {"attempts_max": 1_000_000, "delay_first_ms": 0, "delay_max_ms": 0},
        });
        let spec = serde_json::from_value(spec)?;
        self.broker.deploy(&name.parse()?, spec).await?;
        Ok(())
    }

    /// The mischief begins, and is under way on return.
    async fn begin(&self, value: &'static str) -> Result<()> {
        let mischief = |number: usize| NewMessage {
            partition: Some(PartitionId(number as u32 % PARTITIONS)),
            ..message(value)
        };
        let mischief = (0..MISCHIEF).map(mischief).collect();
        self.broker.produce(&"bad-in".parse()?, mischief).await?;
        self.broker.resume(&"bad".parse()?, None).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(())
    }

    async fn end(&self) -> Result<()> {
        let status = self.broker.processor(&"bad".parse()?).await;
        let status = status.context("the processor")?;
        ensure!(
            status
                .partitions
                .iter()
                .all(|one| !one.state.contains("stopped")),
            "{:?}",
            status.partitions
        );
        self.broker.pause(&"bad".parse()?).await?;
        Ok(())
    }

    /// Milliseconds from each message's request until it is out.
    async fn messages(&self) -> Result<Vec<f64>> {
        let (input, output) = ("good-in".parse()?, "good-out".parse()?);
        let topic = self.broker.topic(&output).context("its topic")?;
        let ends = self.broker.ends(&topic, PartitionId(0));
        let mut next = ends.map_or(Offset(0), |ends| ends.end);
        let mut times = Vec::with_capacity(MESSAGES);
        for number in 0..WARM_UP + MESSAGES {
            let began = Instant::now();
            self.broker.produce(&input, vec![message("hello")]).await?;
            let request = FetchRequest {
                topic: output.clone(),
                partition: PartitionId(0),
                from: next,
                messages_max: 1,
                bytes_max: 1 << 20,
                wait: Duration::from_secs(10),
            };
            let fetched = self.broker.fetch(request).await?;
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
