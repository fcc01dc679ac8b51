//! Chains: the newest lease of a group in a partition, who has it, and the progress, in one cell. Each take and each commit under the lease
//! writes the cell, and expects it to be as the last writer left it; so a lease that was taken over commits nothing more, whatever its
//! host believes.

use std::collections::HashMap;
use std::time::Duration;

use millrace_engine::contract::Lease;
use millrace_engine::{CommitError, Hold};
use millrace_model::{GroupName, TopicId, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::atomic::Put;
use crate::cells::{Chain, Known};
use crate::store::Store;
use crate::tables::ChainKey;
use crate::trouble::Trouble;

/// How long it is tried to take a lease that others keep changing.
const TAKING_DURATION_MAX: Duration = Duration::from_secs(20);
const PATIENCE_INTERVAL: Duration = Duration::from_millis(2);

/// What this host holds.
#[derive(Default)]
pub(crate) struct Holds {
    taken: Mutex<HashMap<ChainKey, Taken>>,
}

struct Taken {
    epoch: u64,
    /// Tells the holder that it is lost.
    lost: watch::Sender<bool>,
}

impl Holds {
    /// If two are taken at once, the older one is lost, in whichever order they arrive.
    fn take(&self, lease: Lease, left: bool) -> Hold {
        let (held, lost) = watch::channel(false);
        let key = (lease.partition, lease.group.clone());
        let mut taken = self.taken.lock();
        let epoch = lease.epoch;
        let is_newest = taken.get(&key).is_none_or(|taken| taken.epoch < epoch);
        if is_newest {
            taken.insert(key, Taken { epoch, lost: held });
        }
        Hold::new(lease, left, lost)
    }

    fn release(&self, key: &ChainKey, epoch: u64) {
        let mut taken = self.taken.lock();
        if taken.get(key).is_some_and(|taken| taken.epoch == epoch) {
            taken.remove(key);
        }
    }

    /// The newest epoch, as it is in the stream.
    pub(crate) fn hear(&self, key: &ChainKey, newest: u64) {
        let mut taken = self.taken.lock();
        if taken.get(key).is_some_and(|taken| taken.epoch < newest)
            && let Some(taken) = taken.remove(key)
        {
            taken.lost.send_replace(true);
        }
    }

    /// All are lost, and whoever has them is told.
    pub(crate) fn lose(&self) {
        for (_, taken) in self.taken.lock().drain() {
            taken.lost.send_replace(true);
        }
    }

    /// A topic is gone, and all that was held in it.
    pub(crate) fn forget(&self, topic: TopicId) {
        self.taken.lock().retain(|(at, _), _| at.topic != topic);
    }

    /// All are lost.
    pub(crate) fn clear(&self) {
        self.taken.lock().clear();
    }
}

impl Store {
    /// Takes the lease: from whoever has it, or to work, if nobody who lives has it.
    pub(crate) async fn take(
        &self,
        group: &GroupName,
        partition: TopicPartition,
        works: bool,
    ) -> Result<Option<Hold>, CommitError> {
        let unknown = CommitError::UnknownPartition(partition);
        if !self.mirror.exists(partition) {
            // Another host may just have made it.
            self.sync().await?;
        }
        let key = (partition, group.clone());
        let subject = self.subjects.chain(partition, group);
        let started = self.clock.monotonic();
        loop {
            if !self.mirror.exists(partition) {
                return Err(unknown);
            }
            let known = self.read_cell(&subject).await?;
            let chain = match known.seq {
                0 => Chain::default(),
                _ => Chain::decode(&known.body).ok_or_else(|| Trouble::malformed("a chain"))?,
            };
            let is_dead = chain.holder.is_some_and(|holder| !self.lives(holder));
            let is_others = chain.holder.is_some_and(|holder| holder != self.me);
            if works && is_others && !is_dead {
                return Ok(None);
            }
            let is_left = chain.is_left || (chain.works && is_dead);
            let next = Chain {
                epoch: chain.epoch + 1,
                holder: Some(self.me),
                works,
                is_left: is_left && !works,
                progress: chain.progress,
            };
            match self.write_chain(&subject, known.seq, &next).await {
                Ok(()) => {}
                // Another try decides a doubt, too: it finds what the first has done.
                Err(Trouble::Moved | Trouble::InDoubt(_))
                    if self.clock.monotonic().saturating_sub(started) < TAKING_DURATION_MAX =>
                {
                    tokio::time::sleep(PATIENCE_INTERVAL).await;
                    continue;
                }
                Err(trouble) => return Err(trouble.into()),
            }
            let lease = Lease {
                group: group.clone(),
                partition,
                epoch: next.epoch,
            };
            let hold = self.holds.take(lease, works && is_left);
            let heard = self.mirror.heard.read().chains.get(&key).copied();
            match heard {
                // Somebody was faster than it could be noted.
                Some(chain) => self.holds.hear(&key, chain.epoch),
                None => return Err(unknown),
            }
            return Ok(Some(hold));
        }
    }

    fn lives(&self, host: millrace_engine::HostId) -> bool {
        host == self.me || self.mirror.lives(host)
    }

    async fn write_chain(&self, subject: &str, seq: u64, chain: &Chain) -> Result<(), Trouble> {
        let body = chain.encode();
        let put = Put::cell(subject.to_owned(), Some(seq), body.clone()).noted(chain.note());
        let passed = self.write(&[put]).await?;
        let known = Known {
            seq: passed.first_seq,
            body: body.into(),
        };
        self.cells.put(subject, known);
        Ok(())
    }

    /// Gives a lease back; nothing happens if it is lost.
    pub(crate) async fn release(&self, hold: Hold) -> Result<(), CommitError> {
        let Lease {
            group,
            partition,
            epoch,
        } = hold.lease;
        let subject = self.subjects.chain(partition, &group);
        loop {
            let known = self.read_cell(&subject).await?;
            let chain = Chain::decode(&known.body).filter(|chain| chain.epoch == epoch);
            let Some(chain) = chain else {
                return Ok(());
            };
            let next = Chain {
                holder: None,
                works: false,
                is_left: chain.is_left || hold.left,
                ..chain
            };
            match self.write_chain(&subject, known.seq, &next).await {
                Ok(()) => {
                    self.holds.release(&(partition, group), epoch);
                    return Ok(());
                }
                // A commit under it came between, or another claim.
                Err(Trouble::Moved) => {}
                Err(trouble) => return Err(trouble.into()),
            }
        }
    }
}
