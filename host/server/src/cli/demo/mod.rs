//! `demo`: sends a week of real earthquakes through components on a host of its own, and tells it
//! as a story. Everything is real: the engine on disk, the compiler process, the swap under load.
//! Only the pauses are for the reader.

mod events;
mod story;
mod tally;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use millrace_broker::{Caller, Module, NewTopic, RedriveRequest, Session};
use millrace_model::{Digest, Durability, Processor, ProcessorName, ProcessorSpec};
use serde_json::json;

use super::failure::Failure;
use crate::config::Config;
use crate::host::Host;
use story::Story;
use tally::Tally;

const PARTITIONS: u32 = 4;
/// How long the week takes.
const WEEK: Duration = Duration::from_secs(6);
const WEEK_FAST: Duration = Duration::from_secs(1);
/// How long everything else may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// See real messages go the whole way, in half a minute
#[derive(clap::Args)]
#[command(after_help = "Example:\n  millrace demo\n  millrace demo --fast")]
pub(super) struct Args {
    /// No pauses for the reader
    #[arg(long)]
    fast: bool,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    told(Story::new(args.fast))
        .await
        .map_err(|error| Failure::failed(format!("the demo stopped: {error:#}")))
}

async fn told(story: Story) -> Result<()> {
    let directory = tempfile::tempdir()?;
    story.title("A week of real earthquakes, through WebAssembly")?;
    story.say("1,707 events of the U.S. Geological Survey, 31 January to 7 February 2018.")?;
    let host = start(directory.path()).await?;
    story.done(&format!(
        "A host runs at {}, its data in a temporary directory.",
        host.url()
    ))?;
    let demo = Demo {
        session: host.broker().session(Caller::unnamed()),
        processor: "classify".parse()?,
        story,
    };
    let outcome = demo.play().await;
    host.stop().await;
    outcome
}

async fn start(directory: &Path) -> Result<Host> {
    let mut config = Config {
        data_dir: directory.join("data"),
        ..Config::default()
    };
    config.listen.http.address = "127.0.0.1:0".to_owned();
    Ok(Host::start(config).await?)
}

/// The two revisions of the story.
struct Revisions {
    first: Digest,
    second: Digest,
}

struct Demo {
    session: Session,
    processor: ProcessorName,
    story: Story,
}

impl Demo {
    async fn play(&self) -> Result<()> {
        let revisions = self.prepare().await?;
        self.week_with_a_swap(&revisions).await?;
        let week = self.totals().await?;
        self.roll_back().await?;
        self.redrive(&week).await?;
        self.story.ending(&week)
    }

    /// Uploads, topics, and the first revision.
    async fn prepare(&self) -> Result<Revisions> {
        self.story
            .chapter("Components are uploaded; each is checked and compiled in a child process")?;
        let partitioner = self.upload("region-partitioner").await?;
        let first = self.upload("quake-classifier").await?;
        let second = self.upload("quake-classifier-2").await?;

        self.story.chapter("Topics, and a processor between them")?;
        self.topic("quakes", PARTITIONS, Some(partitioner)).await?;
        self.topic("classified", PARTITIONS, None).await?;
        self.topic("alerts", 1, None).await?;
        self.deploy(first).await?;
        self.story.done(
            "quakes ─► classify (revision 1) ─► classified, and magnitude 4.5 and more ─► alerts",
        )?;
        Ok(Revisions { first, second })
    }

    async fn upload(&self, name: &str) -> Result<Digest> {
        let guest = guest_artifacts::find(name).with_context(|| format!("no guest {name}"))?;
        let bytes = Bytes::from_static(guest.bytes);
        let Module { facts, .. } = self.session.catalogue().upload_module(bytes, None).await?;
        self.story.done(&format!(
            "{name:20} {:>4} KiB  sha256 {}…  compiled in {} ms",
            facts.byte_count / 1024,
            &facts.digest.to_string()[..12],
            facts.compile_ms,
        ))?;
        Ok(facts.digest)
    }

    async fn topic(&self, name: &str, partitions: u32, partitioner: Option<Digest>) -> Result<()> {
        let by = partitioner.map_or(
            "",
            |_| ", chosen by the component region-partitioner (the seismic network)",
        );
        let topic = NewTopic {
            name: name.parse()?,
            partitions,
            durability: Durability::Durable,
            partitioner,
            settings: Default::default(),
        };
        self.session.catalogue().create_topic(topic).await?;
        self.story
            .done(&format!("{name:20} {partitions} partition(s){by}"))
    }

    async fn deploy(&self, module: Digest) -> Result<Processor> {
        let spec: ProcessorSpec = serde_json::from_value(json!({
            "module": module, "topics": ["quakes"], "output": "classified", "grants": ["alerts"],
        }))?;
        Ok(self
            .session
            .processors()
            .deploy(&self.processor, spec)
            .await?)
    }

    /// Sends the events; when two fifths have been sent, revision 2 takes over.
    async fn week_with_a_swap(&self, revisions: &Revisions) -> Result<()> {
        ensure!(
            revisions.first != revisions.second,
            "the revisions are the same component"
        );
        self.story
            .chapter("Events flow; revision 2 is swapped in while they do")?;
        let week = if self.story.is_fast() {
            WEEK_FAST
        } else {
            WEEK
        };
        let sender = events::send(self.session.clone(), week);
        self.story
            .watch(&sender.sent, events::count() * 2 / 5)
            .await?;
        let deployed = self.deploy(revisions.second).await?;
        self.story.done(&format!(
            "revision {} took over at a batch boundary in each partition; nothing waited or stopped",
            deployed.current
        ))?;
        self.story.watch(&sender.sent, events::count()).await?;
        sender.finish().await?;
        self.settle().await
    }

    /// Waits until nothing is unread and nothing is parked.
    async fn settle(&self) -> Result<()> {
        let settled = async {
            while !self.is_settled().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, settled)
            .await
            .context("the processor did not finish in time")
    }

    async fn is_settled(&self) -> bool {
        let status = self.session.processors().processor(&self.processor).await;
        status.is_some_and(|status| {
            status
                .partitions
                .iter()
                .all(|at| at.lag == 0 && at.parked == 0)
        })
    }

    async fn totals(&self) -> Result<Tally> {
        self.story.chapter("Was anything lost or repeated?")?;
        let tally = Tally::read(&self.session, &self.processor).await?;
        tally.check()?;
        self.story.tally(&tally)?;
        Ok(tally)
    }

    async fn roll_back(&self) -> Result<()> {
        self.story.chapter("Second thoughts: back to revision 1")?;
        let processor = self
            .session
            .processors()
            .rollback(&self.processor, None)
            .await?;
        ensure!(
            processor.current == 1,
            "revision {} is current",
            processor.current
        );
        self.story
            .done("revision 1 is current again; its code was still warm")
    }

    /// Sends the dead letters again, to this processor only; revision 1 judges them as revision 2 did.
    async fn redrive(&self, before: &Tally) -> Result<()> {
        self.story
            .chapter("The dead letters are sent again, to this processor only")?;
        let all = RedriveRequest::all();
        let redriven = self
            .session
            .dead_letters()
            .redrive(&self.processor, all)
            .await?;
        ensure!(
            redriven.sent == before.dead.len(),
            "{} dead letters were sent",
            redriven.sent
        );
        self.settle().await?;
        let after = Tally::read(&self.session, &self.processor).await?;
        after.check()?;
        ensure!(
            after.dead.len() == before.dead.len(),
            "there are {} dead letters",
            after.dead.len()
        );
        self.story.done(&format!(
            "{} sent, {} refused once more (a blast is no earthquake for revision 1 either); the outputs are as they were",
            redriven.sent,
            after.dead.len(),
        ))
    }
}
