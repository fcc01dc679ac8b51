//! How long partitions are silent: the time between two growths of a partition of outputs, while producers send to all of them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::lock;
use crate::torture::clients::Connection;
use crate::torture::counting;
use crate::torture::world::OUT;

const LOOK_AGAIN: Duration = Duration::from_millis(40);

/// Follows the outputs.
pub(super) struct Silence {
    /// The hosts that are asked: those that no fault affects now.
    hosts: Mutex<Vec<String>>,
    seen: Mutex<BTreeMap<(&'static str, u64), Seen>>,
    stopping: AtomicBool,
}

struct Seen {
    end: u64,
    /// When it grew last.
    grew: Instant,
    /// The longest time between two growths since the last mark.
    longest: Duration,
}

impl Silence {
    pub(super) fn new() -> Self {
        Self {
            hosts: Mutex::default(),
            seen: Mutex::default(),
            stopping: AtomicBool::new(false),
        }
    }

    pub(super) fn ask(&self, hosts: Vec<String>) {
        *lock(&self.hosts) = hosts;
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub(super) fn follow(&self) {
        let mut connection = Connection::default();
        while !self.stopping.load(Ordering::SeqCst) {
            let host = fastrand::choice(&*lock(&self.hosts)).cloned();
            if let Some(host) = host {
                // A host without its store, or one that has just ended, does not answer.
                let _ = [OUT, counting::OUTPUT]
                    .iter()
                    .try_for_each(|topic| self.look(&mut connection, &host, topic));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn look(&self, connection: &mut Connection, host: &str, topic: &'static str) -> Result<()> {
        let path = format!("/v1/topics/{topic}");
        let described = connection.to(host).get(&path)?.ok()?;
        let now = Instant::now();
        let mut seen = lock(&self.seen);
        for at in described["ends"].as_array().context("no ends")? {
            let partition = at["partition"].as_u64().context("no partition")?;
            let end = at["end"].as_u64().context("no end")?;
            let seen = seen.entry((topic, partition)).or_insert(Seen {
                end,
                grew: now,
                longest: Duration::ZERO,
            });
            if end > seen.end {
                seen.longest = seen.longest.max(now - seen.grew);
                (seen.end, seen.grew) = (end, now);
            }
        }
        Ok(())
    }

    /// From now on silences count.
    pub(super) fn mark(&self) {
        lock(&self.seen)
            .values_mut()
            .for_each(|seen| seen.longest = Duration::ZERO);
    }

    /// The longest silence since the mark, once every partition has grown since `since`.
    pub(super) fn longest(&self, since: Instant) -> Option<Duration> {
        let seen = lock(&self.seen);
        let is_whole = !seen.is_empty() && seen.values().all(|seen| seen.grew > since);
        let longest = seen.values().map(|seen| seen.longest).max();
        longest.filter(|_| is_whole)
    }

    /// The partitions that have not grown since then.
    pub(super) fn silent(&self, since: Instant) -> Vec<String> {
        let seen = lock(&self.seen);
        let silent = seen.iter().filter(|(_, seen)| seen.grew <= since);
        silent
            .map(|((topic, partition), _)| format!("{topic}/{partition}"))
            .collect()
    }
}
