//! Chains: the newest lease of a group in a partition, and who holds it. Each take moves the epoch on, in one statement on one row, which
//! waits for whatever is being committed under the lease before.

use std::collections::HashMap;

use millrace_engine::contract::Lease;
use millrace_engine::{CommitError, Hold};
use millrace_model::{GroupName, TopicPartition};
use parking_lot::Mutex;
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use tokio::sync::watch;

use crate::hosts::{LIVES, LOCK_CLASS};
use crate::memory::Life;
use crate::store::Store;
use crate::trouble::{Trouble, undone};

/// What this host holds, by the chain's id.
#[derive(Default)]
pub(crate) struct Holds {
    taken: Mutex<HashMap<i64, Taken>>,
}

struct Taken {
    epoch: u64,
    /// Tells the holder that it is lost.
    lost: watch::Sender<bool>,
}

impl Holds {
    /// If two are taken at once, the older one is lost, in whichever order they arrive.
    fn take(&self, chain: i64, lease: Lease, left: bool) -> Hold {
        let (held, lost) = watch::channel(false);
        let mut taken = self.taken.lock();
        let epoch = lease.epoch;
        let is_newest = taken.get(&chain).is_none_or(|taken| taken.epoch < epoch);
        if is_newest {
            taken.insert(chain, Taken { epoch, lost: held });
        }
        Hold::new(lease, left, lost)
    }

    fn release(&self, chain: i64, epoch: u64) {
        let mut taken = self.taken.lock();
        if taken.get(&chain).is_some_and(|taken| taken.epoch == epoch) {
            taken.remove(&chain);
        }
    }

    pub(crate) fn chains(&self) -> Vec<i64> {
        self.taken.lock().keys().copied().collect()
    }

    /// Newest epochs as stored; a chain that is missing went with its topic.
    pub(crate) fn hear(&self, asked: &[i64], stored: &HashMap<i64, u64>) {
        let mut taken = self.taken.lock();
        for chain in asked {
            let newest = stored.get(chain);
            let is_lost = |taken: &Taken| newest.is_none_or(|&newest| newest > taken.epoch);
            if taken.get(chain).is_some_and(is_lost)
                && let Some(taken) = taken.remove(chain)
            {
                taken.lost.send_replace(true);
            }
        }
    }

    /// All are lost.
    pub(crate) fn lose_all(&self) {
        // A sender that is gone says so, too.
        self.taken.lock().clear();
    }
}

/// Creates the chain if the partition exists.
pub(crate) async fn chain_of(
    pool: &PgPool,
    group: &GroupName,
    partition: TopicPartition,
) -> Result<Option<i64>, Trouble> {
    let find = "select id from chain where topic = $1 and number = $2 and grp = $3";
    let make = "insert into chain (topic, number, grp) select topic, number, $3 from partition where topic = $1 and number = $2 \
        on conflict do nothing returning id";
    // Found, made, or made by someone else in between.
    for statement in [find, make, find] {
        let asked = sqlx::query(statement).bind(partition.topic.0 as i64);
        let asked = asked
            .bind(partition.partition.0 as i32)
            .bind(group.as_str());
        if let Some(row) = pool.fetch_optional(asked).await? {
            return Ok(Some(row.get("id")));
        }
    }
    Ok(None)
}

impl Store {
    async fn existing_chain(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<i64, CommitError> {
        let chain = chain_of(&self.pool, group, partition).await?;
        chain.ok_or(CommitError::UnknownPartition(partition))
    }

    /// Takes the lease from whoever has it.
    pub(crate) async fn claim(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Hold, CommitError> {
        let life = self.memory.life();
        let chain = self.existing_chain(group, partition).await?;
        let claim = format!(
            "update chain set epoch = epoch + 1, holder = $4, works = false, \
             abandoned = abandoned or (works and holder is not null \
               and not exists (select from host where id = chain.holder and {LIVES})) \
             where id = $3 returning epoch"
        );
        let claim = sqlx::query(AssertSqlSafe(claim));
        let claim = claim.bind(self.dead_ms()).bind(LOCK_CLASS).bind(chain);
        let claim = claim.bind(self.hosts.id.0 as i64);
        let row = self.pool.fetch_optional(claim).await.map_err(undone)?;
        let row = row.ok_or(CommitError::UnknownPartition(partition))?;
        self.memory.news.chain();
        let lease = lease(group, partition, &row);
        self.taken(life, chain, lease, false)
    }

    /// Takes the lease if nobody who lives has it.
    pub(crate) async fn hold(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Hold>, CommitError> {
        let life = self.memory.life();
        let chain = self.existing_chain(group, partition).await?;
        let hold = format!(
            "with before as (select id, holder, works, abandoned, \
               holder is not null and not exists (select from host where id = chain.holder and {LIVES}) as is_dead \
               from chain where id = $3 for no key update) \
             update chain set epoch = epoch + 1, holder = $4, works = true, abandoned = false from before \
             where chain.id = before.id and (before.holder is null or before.holder = $4 or before.is_dead) \
             returning chain.epoch, before.abandoned or (before.works and before.is_dead) as left_behind"
        );
        let hold = sqlx::query(AssertSqlSafe(hold));
        let hold = hold.bind(self.dead_ms()).bind(LOCK_CLASS).bind(chain);
        let hold = hold.bind(self.hosts.id.0 as i64);
        let Some(row) = self.pool.fetch_optional(hold).await.map_err(undone)? else {
            return Ok(None);
        };
        self.memory.news.chain();
        let left = row.get("left_behind");
        let lease = lease(group, partition, &row);
        Ok(Some(self.taken(life, chain, lease, left)?))
    }

    /// A lease of a life that is over is void.
    fn taken(
        &self,
        life: Option<Life>,
        chain: i64,
        lease: Lease,
        left: bool,
    ) -> Result<Hold, CommitError> {
        let take = || self.memory.holds.take(chain, lease, left);
        Ok(self.memory.must_remember(life, take)?)
    }

    /// Gives a lease back; nothing happens if it is lost.
    pub(crate) async fn release(&self, hold: Hold) -> Result<(), CommitError> {
        let Lease {
            group,
            partition,
            epoch,
        } = hold.lease;
        let release = sqlx::query(
            "update chain set holder = null, works = false, abandoned = abandoned or $5 \
             where topic = $1 and number = $2 and grp = $3 and epoch = $4 returning id",
        );
        let release = release.bind(partition.topic.0 as i64);
        let release = release
            .bind(partition.partition.0 as i32)
            .bind(group.as_str());
        let release = release.bind(epoch as i64).bind(hold.left);
        let released = self.pool.fetch_optional(release).await.map_err(undone)?;
        if let Some(row) = released {
            self.memory.holds.release(row.get("id"), epoch);
        }
        Ok(())
    }
}

fn lease(group: &GroupName, partition: TopicPartition, row: &sqlx::postgres::PgRow) -> Lease {
    Lease {
        group: group.clone(),
        partition,
        epoch: row.get::<i64, _>("epoch") as u64,
    }
}
