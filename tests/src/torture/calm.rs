//! The end of a world, or of a copy of one: clients send nothing more, everything accepted is
//! processed, and everything is read once more.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::clients::{self, Shared};
use super::counting;
use super::history::Event;
use super::times;
use super::world::WORKER;
use crate::Client;

/// How long processing the rest may take once it is calm: far longer than the slowest retry, also
/// on a shared machine.
const DRAIN_PATIENCE: Duration = Duration::from_secs(240);

/// A host that receives nothing more, and the history of what it does.
pub(super) struct Calm<'a> {
    pub(super) shared: &'a Shared,
    pub(super) client: Client,
    /// The module of the counting processor.
    pub(super) counter: &'a str,
    pub(super) places: &'a [(String, u32)],
}

impl Calm<'_> {
    /// Waits until the processors have nothing left, including the dead letters that are sent
    /// again.
    pub(super) fn drain(&self) -> Result<()> {
        let history = &self.shared.history;
        history.write(Event::Calm);
        let began = Instant::now();
        let mut drained = self.gets_through(began, &[WORKER, counting::PROCESSOR])?;
        if drained {
            if let Err(error) = counting::redrive_for_good(&self.client, self.counter) {
                let what = format!("no redrive when it is calm: {error:#}");
                history.write(Event::Unexpected { what });
            }
            drained = self.gets_through(began, &[counting::PROCESSOR])?
                && self.waits_for_nothing(began)?;
        }
        let after_ms = u64::try_from(began.elapsed().as_millis())?;
        if drained {
            history.write(Event::Drained { after_ms });
        }
        Ok(())
    }

    /// Reads everything for the last time.
    pub(super) fn read_last(&self) -> Result<()> {
        for place in self.places {
            clients::read_last(self.shared, &self.client, place)?;
        }
        times::read_ticks(self.shared, &self.client, true)?;
        counting::write_state(self.shared, &self.client, true)?;
        counting::write_standing(self.shared, &self.client)
    }

    /// Whether these processors have nothing left within the patience.
    fn gets_through(&self, began: Instant, processors: &[&str]) -> Result<bool> {
        for processor in processors {
            let path = format!("/v1/processors/{processor}");
            if !self.comes_to_none(began, &path, |client| client.backlog(processor))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether all delayed messages are delivered in time.
    fn waits_for_nothing(&self, began: Instant) -> Result<bool> {
        let path = format!("/v1/topics/{}/delayed?max=1", times::LATER);
        self.comes_to_none(began, &path, times::waiting)
    }

    /// Whether the number falls to zero within the patience; if not, what the host reports is noted
    /// in the history.
    fn comes_to_none(
        &self,
        began: Instant,
        path: &str,
        count: impl Fn(&Client) -> Result<u64>,
    ) -> Result<bool> {
        loop {
            let left = count(&self.client);
            if matches!(left, Ok(0)) {
                return Ok(true);
            }
            if began.elapsed() > DRAIN_PATIENCE {
                let after_ms = u64::try_from(began.elapsed().as_millis())?;
                let status = self.client.get(path);
                let status = status.map(|reply| String::from_utf8_lossy(&reply.body).into_owned());
                let why = format!("{path} not through after {after_ms} ms: {left:?}; {status:?}");
                self.shared.history.write(Event::NotDrained { why });
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}
