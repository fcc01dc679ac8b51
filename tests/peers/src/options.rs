//! The command line's options.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::servers::Jars;
use crate::through::KEYS;

const USAGE: &str = "\
usage: peers --millrace FILE --modules DIRECTORY --home DIRECTORY [OPTIONS]
  --millrace FILE         Millrace's binary
  --modules DIRECTORY     where uppercase.wasm and counter.wasm are
  --home DIRECTORY        where the servers keep what they hold; empty, and not removed
  --kafka DIRECTORY       Kafka's jars, with those of Kafka Streams
  --classes DIRECTORY     the compiled program for Kafka Streams
  --nats FILE             NATS' binary
  --redis FILE            Redis' binary
  --build TEXT            what Millrace it is, for the report
  --rounds COUNT          how often everything is measured; the first round does not count (default: 4)
  --seconds COUNT         how long a measurement takes (default: 3)
  --messages COUNT        messages through a function in one go, a multiple of 10,000 (default: 2000000)
  --quick                 the shortest that shows that all works: 2 rounds of 1 second, 200,000 messages";

/// The rounds, seconds and messages of `--quick`.
const QUICK: (u32, u64, u64) = (2, 1, 200_000);

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) millrace: PathBuf,
    pub(crate) modules: PathBuf,
    pub(crate) home: PathBuf,
    kafka: Option<PathBuf>,
    classes: Option<PathBuf>,
    pub(crate) nats: Option<PathBuf>,
    pub(crate) redis: Option<PathBuf>,
    pub(crate) build: String,
    pub(crate) rounds: u32,
    seconds: u64,
    pub(crate) messages: u64,
}

impl Options {
    pub(crate) fn read(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let (mut millrace, mut modules, mut home) = (None, None, None);
        let (mut kafka, mut classes, mut nats, mut redis) = (None, None, None, None);
        let (mut rounds, mut seconds, mut messages) = (4, 3, 2_000_000);
        let mut build = String::new();
        let mut arguments = arguments.peekable();
        while let Some(name) = arguments.next() {
            if name == "--quick" {
                (rounds, seconds, messages) = QUICK;
                continue;
            }
            let value = || format!("{name} needs a value\n{USAGE}");
            let mut value = || arguments.next().with_context(value);
            match name.as_str() {
                "--millrace" => millrace = Some(value()?.into()),
                "--modules" => modules = Some(value()?.into()),
                "--home" => home = Some(value()?.into()),
                "--kafka" => kafka = Some(value()?.into()),
                "--classes" => classes = Some(value()?.into()),
                "--nats" => nats = Some(value()?.into()),
                "--redis" => redis = Some(value()?.into()),
                "--build" => build = value()?,
                "--rounds" => rounds = count(&name, &value()?)?,
                "--seconds" => seconds = count(&name, &value()?)?,
                "--messages" => messages = count(&name, &value()?)?,
                _ => bail!("{name} is no option\n{USAGE}"),
            }
        }
        ensure!(rounds > 0 && seconds > 0, "at least one round and second");
        ensure!(
            messages > 0 && messages.is_multiple_of(KEYS as u64),
            "--messages is a multiple of {KEYS}"
        );
        Ok(Self {
            millrace: millrace.context(USAGE)?,
            modules: modules.context(USAGE)?,
            home: home.context(USAGE)?,
            kafka,
            classes,
            nats,
            redis,
            build,
            rounds,
            seconds,
            messages,
        })
    }

    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// Kafka's jars and our classes, if both are given.
    pub(crate) fn kafka(&self) -> Option<Jars> {
        Some(Jars {
            libraries: self.kafka.clone()?,
            classes: self.classes.clone()?,
        })
    }
}

fn count<N: std::str::FromStr>(name: &str, text: &str) -> Result<N> {
    let number = text.replace('_', "").parse().ok();
    number.with_context(|| format!("{name} is a whole number, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &str) -> Result<Options> {
        let all = format!("--millrace m --modules d --home h {arguments}");
        Options::read(all.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn later_options_win_over_quick() {
        let options = read("--quick --messages 500_000").unwrap();
        assert_eq!((options.rounds, options.messages), (2, 500_000));
        assert_eq!(options.time(), Duration::from_secs(1));
        assert!(options.kafka().is_none());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [
            "--rounds",
            "--rounds x",
            "--rounds 0",
            "--messages 7",
            "--fast",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
