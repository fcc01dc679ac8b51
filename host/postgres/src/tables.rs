//! Tables of state in memory: read whole when they are first asked for, and kept up with by what was written since.
//!
//! Each write of a chain's state has a number. A row of `state` has that of its last write, so a host that knows a table as of a number
//! reads only what is newer. All of a table is in memory, so the host's bounds of memory count for it.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_engine::ReadError;
use millrace_engine::room::Room;
use millrace_engine::state::keeper::KeepTable as _;
use millrace_engine::state::{
    NEVER, StateChange, StatePage, StateQuery, StateTable, StateValue, StateWrites,
};
use millrace_model::{GroupName, Progress, Timestamp, TopicPartition};
use parking_lot::Mutex;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Executor as _, Row as _};
use tokio::sync::{Mutex as Turns, watch};

use crate::chains::chain_of;
use crate::store::Store;
use crate::trouble::{Trouble, unread};

pub(crate) type TableKey = (TopicPartition, GroupName);

pub(crate) struct Tables {
    pub(crate) room: Arc<Room>,
    loaded: Mutex<HashMap<TableKey, Arc<Loaded>>>,
    /// How often others wrote state of a group that somebody watches.
    watched: Mutex<HashMap<GroupName, Watched>>,
}

struct Watched {
    writes: watch::Sender<u64>,
    /// The newest write of each chain that this host knows of.
    known: HashMap<i64, i64>,
}

/// A table and how far it is known.
pub(crate) struct Loaded {
    pub(crate) chain: i64,
    pub(crate) table: Arc<StateTable>,
    /// The last write that it has; held while it changes.
    pub(crate) seq: Turns<i64>,
}

/// Never read.
const NOTHING: i64 = -1;

impl Tables {
    pub(crate) fn new(room: Arc<Room>) -> Self {
        Self {
            room,
            loaded: Mutex::default(),
            watched: Mutex::default(),
        }
    }

    fn find(&self, key: &TableKey) -> Option<Arc<Loaded>> {
        self.loaded.lock().get(key).cloned()
    }

    fn insert(&self, key: &TableKey, chain: i64) -> Arc<Loaded> {
        let mut loaded = self.loaded.lock();
        let made = || {
            let table = StateTable::in_room(&self.room, &key.1);
            Arc::new(Loaded {
                chain,
                table: Arc::new(table),
                seq: Turns::new(NOTHING),
            })
        };
        Arc::clone(loaded.entry(key.clone()).or_insert_with(made))
    }

    /// Forgets all tables. Those that somebody still has are not kept up with.
    pub(crate) fn clear(&self) {
        self.loaded.lock().clear();
        for watched in self.watched.lock().values_mut() {
            watched.known.clear();
            watched.writes.send_modify(|count| *count += 1);
        }
    }

    /// Forgets the tables of partitions that are gone.
    pub(crate) fn keep(&self, exists: impl Fn(TopicPartition) -> bool) {
        self.loaded.lock().retain(|(at, _), _| exists(*at));
    }

    pub(crate) fn all(&self) -> Vec<(TableKey, Arc<Loaded>)> {
        let loaded = self.loaded.lock();
        let owned = |(key, table): (&TableKey, &Arc<Loaded>)| (key.clone(), Arc::clone(table));
        loaded.iter().map(owned).collect()
    }

    pub(crate) fn watch(&self, group: &GroupName) -> watch::Receiver<u64> {
        let mut watched = self.watched.lock();
        let made = || Watched {
            writes: watch::Sender::new(0),
            known: HashMap::new(),
        };
        let watched = watched.entry(group.clone()).or_insert_with(made);
        watched.writes.subscribe()
    }

    /// The groups that somebody watches.
    pub(crate) fn watched(&self) -> Vec<String> {
        let mut watched = self.watched.lock();
        watched.retain(|_, watched| watched.writes.receiver_count() > 0);
        let names = watched.keys().map(|group| group.as_str().to_owned());
        names.collect()
    }

    /// The chain's newest write; one that this host did not do wakes those who watch.
    pub(crate) fn note(&self, group: &GroupName, chain: i64, seq: i64, is_own: bool) {
        let mut watched = self.watched.lock();
        let Some(watched) = watched.get_mut(group) else {
            return;
        };
        let before = watched.known.insert(chain, seq);
        // What was there when the watch began is no news, except for a chain that began later.
        if !is_own && before.unwrap_or(0) < seq {
            watched.writes.send_modify(|count| *count += 1);
        }
    }
}

impl Loaded {
    /// Applies committed writes under the number `seq`, if the table has all before it; otherwise it must be read.
    pub(crate) async fn apply(&self, seq: i64, writes: &StateWrites) -> bool {
        let mut known = self.seq.lock().await;
        if *known + 1 != seq {
            return *known >= seq;
        }
        apply(&self.table, writes);
        *known = seq;
        true
    }

    /// Whether it has all writes up to this one and no later one, as far as can be told without waiting.
    pub(crate) fn is_surely_at(&self, seq: i64) -> bool {
        self.seq.try_lock().is_ok_and(|known| *known == seq)
    }

    /// Brings the table up to date with a chain that is locked.
    pub(crate) async fn reach(
        &self,
        seq: i64,
        connection: &mut PgConnection,
    ) -> Result<(), Trouble> {
        let mut known = self.seq.lock().await;
        if *known != seq {
            self.catch_up_from(&mut known, connection).await?;
        }
        Ok(())
    }

    /// Brings the table up to date. Returns the progress of the same moment; an outer `None` if the chain is gone.
    pub(crate) async fn catch_up(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Option<Option<Progress>>, Trouble> {
        let mut known = self.seq.lock().await;
        self.catch_up_from(&mut known, connection).await
    }

    async fn catch_up_from(
        &self,
        known: &mut i64,
        connection: &mut PgConnection,
    ) -> Result<Option<Option<Progress>>, Trouble> {
        // One statement sees one moment. Below the floor nothing can be told apart, so everything counts.
        let asked = sqlx::query(
            "select c.state_seq, c.state_floor, c.progress, s.key, s.value, s.ends_at from chain c left join lateral ( \
               select key, value, ends_at from state where chain = $1 and seq > $2 and c.state_floor <= $2 and c.state_seq > $2 \
               union all select key, value, ends_at from state where chain = $1 and value is not null and c.state_floor > $2 \
             ) as s on true where c.id = $1",
        );
        let rows = connection
            .fetch_all(asked.bind(self.chain).bind(*known))
            .await?;
        let Some(first) = rows.first() else {
            return Ok(None);
        };
        let (seq, floor) = (
            first.get::<i64, _>("state_seq"),
            first.get::<i64, _>("state_floor"),
        );
        let progress = first.get::<Option<&[u8]>, _>("progress");
        let progress = progress.map(Progress::decode);
        if progress == Some(None) {
            return Err(Trouble::malformed("progress"));
        }
        if seq > *known {
            let changes: Vec<StateChange> = rows.iter().filter_map(change_of).collect();
            let writes = StateWrites {
                resets: floor > *known,
                changes,
                adds: None,
            };
            apply(&self.table, &writes);
            *known = seq;
        }
        Ok(Some(progress.flatten()))
    }
}

fn change_of(row: &PgRow) -> Option<StateChange> {
    let key = row.get::<Option<&[u8]>, _>("key")?;
    let value = row.get::<Option<&[u8]>, _>("value");
    let ends_at = row.get::<Option<i64>, _>("ends_at");
    Some(StateChange {
        key: key.into(),
        value: value.map(StateValue::new),
        ends_at: ends_at.map_or(NEVER, |at| Timestamp(at as u64)),
    })
}

fn apply(table: &StateTable, writes: &StateWrites) {
    if let Err(error) = table.apply(writes) {
        // All of it is in memory, so that it applies whatever it is given.
        tracing::error!(error, "a table of state did not take a write");
    }
    // Nothing is written from here to a file.
    table.take_changes();
}

impl Store {
    /// The table of a group in a partition, as of now.
    pub(crate) async fn table(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Arc<Loaded>, ReadError> {
        let life = self.memory.life();
        let loaded = self.known_table(group, partition).await?;
        let mut connection = self.pool.acquire().await.map_err(unread)?;
        let caught_up = loaded.catch_up(&mut connection).await?;
        // A table of a life that is over may have got rows of the next one.
        self.memory.must_remember(life, || ())?;
        match caught_up {
            Some(_) => Ok(loaded),
            None => Err(ReadError::UnknownPartition(partition)),
        }
    }

    /// The table, perhaps not up to date.
    pub(crate) async fn known_table(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Arc<Loaded>, ReadError> {
        let life = self.memory.life();
        let key = (partition, group.clone());
        if let Some(loaded) = self.memory.tables.find(&key) {
            return Ok(loaded);
        }
        let chain = chain_of(&self.pool, group, partition).await?;
        let chain = chain.ok_or(ReadError::UnknownPartition(partition))?;
        let insert = || self.memory.tables.insert(&key, chain);
        Ok(self.memory.must_remember(life, insert)?)
    }

    /// A page of a table, and the progress of the same moment.
    pub(crate) async fn page(
        &self,
        group: &GroupName,
        partition: TopicPartition,
        query: &StateQuery,
    ) -> Result<StatePage, ReadError> {
        let life = self.memory.life();
        let loaded = self.known_table(group, partition).await?;
        let mut connection = self.pool.acquire().await.map_err(unread)?;
        let mut known = loaded.seq.lock().await;
        let caught_up = loaded.catch_up_from(&mut known, &mut connection).await?;
        let progress = caught_up.ok_or(ReadError::UnknownPartition(partition))?;
        self.memory.must_remember(life, || ())?;
        let page = loaded.table.page(query)?;
        Ok(StatePage {
            as_of: progress.map(|progress| progress.next).unwrap_or_default(),
            ..page
        })
    }
}
