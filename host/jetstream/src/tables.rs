//! Tables of state in memory. A table is the last snapshot in the stream and the changes after it, in the order of the stream. One that
//! this host has read is kept up with by what the feed hears of; its own changes need not be read again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millrace_engine::ReadError;
use millrace_engine::room::Room;
use millrace_engine::state::keeper::KeepTable as _;
use millrace_engine::state::{StateChange, StatePage, StateQuery, StateTable, StateWrites};
use millrace_model::{GroupName, Offset, Timestamp, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::{Mutex as Turns, watch};

use crate::encoding::{decode_writes, encode_writes};
use crate::fetch::Message;
use crate::store::Store;
use crate::trouble::Trouble;

pub(crate) type ChainKey = (TopicPartition, GroupName);

/// Changes after which a snapshot is written.
const CHANGES_MAX: u64 = 4096;
/// Bytes of changes after which a snapshot is written, unless the table itself is larger.
const CHANGES_BYTES_MIN: u64 = 4 << 20;
/// Parts of a snapshot: it is written in one step.
const SNAPSHOT_PARTS_MAX: usize = 512;
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// How often a table is read that others write a snapshot of meanwhile.
const TRIES_MAX: u32 = 10;

pub(crate) struct Tables {
    pub(crate) room: Arc<Room>,
    watched: Mutex<HashMap<GroupName, watch::Sender<u64>>>,
}

/// A table and how far it is known.
pub(crate) struct Loaded {
    pub(crate) table: Arc<StateTable>,
    /// Everything up to this sequence is in it; held while it changes.
    pub(crate) as_of: Turns<u64>,
    news: Mutex<News>,
}

/// What is new for a table, as of a sequence.
struct New {
    position: u64,
    /// Where the group goes on as of it.
    next: Option<Offset>,
    heard: VecDeque<(u64, u64)>,
    is_unread: bool,
}

/// News of a table that were taken, and are not in it yet. If whoever took them fails, or is broken off, the table is read anew: a client
/// that goes away in between must not cost the others a change.
struct Taken<'a>(Option<&'a Loaded>);

impl Taken<'_> {
    fn are_in_it(mut self) {
        self.0 = None;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(loaded) = self.0 {
            loaded.read_anew();
        }
    }
}

struct News {
    /// It must be read from its snapshot on.
    is_unread: bool,
    /// Changes that were heard of: the sequence of the first part, and the number of parts.
    heard: VecDeque<(u64, u64)>,
    /// This host's own.
    own: HashMap<u64, Arc<StateWrites>>,
    changes: u64,
    bytes: u64,
    is_writing: bool,
}

impl Tables {
    pub(crate) fn new(room: Arc<Room>) -> Self {
        Self {
            room,
            watched: Mutex::default(),
        }
    }

    pub(crate) fn watch(&self, group: &GroupName) -> watch::Receiver<u64> {
        let mut watched = self.watched.lock();
        watched.entry(group.clone()).or_default().subscribe()
    }

    fn woke(&self, group: &GroupName) {
        if let Some(writes) = self.watched.lock().get(group) {
            writes.send_modify(|count| *count += 1);
        }
    }
}

impl Loaded {
    fn new(room: &Arc<Room>, group: &GroupName) -> Self {
        Self {
            table: Arc::new(StateTable::in_room(room, group)),
            as_of: Turns::new(0),
            news: Mutex::new(News {
                is_unread: true,
                heard: VecDeque::new(),
                own: HashMap::new(),
                changes: 0,
                bytes: 0,
                is_writing: false,
            }),
        }
    }

    pub(crate) fn hear(&self, seq: u64, parts: u64) {
        let mut news = self.news.lock();
        news.changes += 1;
        // One that is to be read anyway need not remember.
        if !news.is_unread {
            news.heard.push_back((seq, parts));
        }
    }

    /// A snapshot was written by somebody.
    pub(crate) fn hear_snapshot(&self) {
        let mut news = self.news.lock();
        (news.changes, news.bytes) = (0, 0);
    }

    pub(crate) fn read_anew(&self) {
        let mut news = self.news.lock();
        news.is_unread = true;
        news.heard.clear();
        news.own.clear();
    }

    /// A change of this host that was written with this sequence.
    pub(crate) fn keep_own(&self, seq: u64, writes: &Arc<StateWrites>) {
        let mut news = self.news.lock();
        news.bytes += writes.byte_count() as u64;
        if !news.is_unread {
            news.own.insert(seq, Arc::clone(writes));
        }
    }

    fn apply(&self, writes: &StateWrites) {
        if let Err(error) = self.table.apply(writes) {
            // All of it is in memory, so that it applies whatever it is given.
            tracing::error!(error, "a table of state did not take a write");
        }
        // Nothing is written from here to a file.
        self.table.take_changes();
    }
}

impl Store {
    /// The table, perhaps not read yet.
    pub(crate) fn known_table(&self, key: &ChainKey) -> Result<Arc<Loaded>, ReadError> {
        let mut heard = self.mirror.heard.write();
        heard.partition(key.0)?;
        let made = || Arc::new(Loaded::new(&self.tables.room, &key.1));
        let loaded = heard.tables.entry(key.clone()).or_insert_with(made);
        Ok(Arc::clone(loaded))
    }

    /// The table, as of now.
    pub(crate) async fn table(&self, key: &ChainKey) -> Result<Arc<Loaded>, ReadError> {
        let loaded = self.known_table(key)?;
        self.catch_up(key, &loaded).await?;
        Ok(loaded)
    }

    /// A page, and the progress of the same moment.
    pub(crate) async fn page(
        &self,
        key: &ChainKey,
        query: &StateQuery,
    ) -> Result<StatePage, ReadError> {
        let loaded = self.known_table(key)?;
        let mut as_of = loaded.as_of.lock().await;
        let next = self.catch_up_from(key, &loaded, &mut as_of).await?;
        let page = loaded.table.page(query)?;
        Ok(StatePage {
            as_of: next.unwrap_or_default(),
            ..page
        })
    }

    /// Applies everything that was heard of the table.
    pub(crate) async fn catch_up(
        &self,
        key: &ChainKey,
        loaded: &Loaded,
    ) -> Result<Option<Offset>, Trouble> {
        let mut as_of = loaded.as_of.lock().await;
        self.catch_up_from(key, loaded, &mut as_of).await
    }

    pub(crate) async fn catch_up_from(
        &self,
        key: &ChainKey,
        loaded: &Loaded,
        as_of: &mut u64,
    ) -> Result<Option<Offset>, Trouble> {
        for _ in 0..=TRIES_MAX {
            // The feed may have begun anew, and not be where it was yet.
            let (new, taken) = loop {
                match self.news_of(key, loaded) {
                    Some(new) => break new,
                    None => tokio::time::sleep(LOOK_INTERVAL).await,
                }
            };
            let position = new.position;
            let done = match new.is_unread {
                true => self.read_table(key, loaded, position).await.map(Some),
                false => self.read_changes(key, loaded, new.heard, *as_of).await,
            };
            if done?.is_some() {
                *as_of = position;
                loaded.news.lock().own.retain(|seq, _| *seq > position);
                taken.are_in_it();
                return Ok(new.next);
            }
        }
        Err(Trouble::unavailable("the changes of a table are not found"))
    }

    /// What is new; `None` before the feed is where it was.
    fn news_of<'a>(&self, key: &ChainKey, loaded: &'a Loaded) -> Option<(New, Taken<'a>)> {
        let mirror = self.mirror.heard.read();
        if mirror.position < *self.mirror.position().borrow() {
            return None;
        }
        let mut news = loaded.news.lock();
        let new = New {
            position: mirror.position,
            next: mirror.chains.get(key).and_then(|chain| chain.next),
            heard: std::mem::take(&mut news.heard),
            is_unread: std::mem::take(&mut news.is_unread),
        };
        Some((new, Taken(Some(loaded))))
    }

    /// `None` if some are gone: a snapshot has them.
    async fn read_changes(
        &self,
        key: &ChainKey,
        loaded: &Loaded,
        heard: VecDeque<(u64, u64)>,
        as_of: u64,
    ) -> Result<Option<()>, Trouble> {
        for (seq, parts) in heard {
            if seq <= as_of {
                continue;
            }
            let own = loaded.news.lock().own.remove(&seq);
            if let Some(own) = own {
                loaded.apply(&own);
                continue;
            }
            let mut body = BytesMut::new();
            for part in 0..parts {
                match self.at(seq + part).await? {
                    Some(message) => body.extend_from_slice(&message.body),
                    None => return Ok(None),
                }
            }
            loaded.news.lock().bytes += body.len() as u64;
            let writes = decode_writes(&body);
            loaded.apply(&writes.ok_or_else(|| malformed(key))?);
        }
        Ok(Some(()))
    }

    /// Reads all of it: the snapshot, and the changes after it up to this sequence.
    async fn read_table(
        &self,
        key: &ChainKey,
        loaded: &Loaded,
        position: u64,
    ) -> Result<(), Trouble> {
        let (from, mut writes) = match self.snapshot(key).await? {
            Some((from, writes)) => (from, vec![writes]),
            None => (0, Vec::new()),
        };
        let subject = self.subjects.delta(key.0, &key.1);
        let mut body = BytesMut::new();
        let mut bytes = 0;
        let mut see = |message: Message| {
            let note = message.note.as_ref();
            let place = note.and_then(|note| Some((note.number(0)?, note.number(1)?)));
            let (part, parts) = place.ok_or_else(|| malformed(key))?;
            body.extend_from_slice(&message.body);
            bytes += message.body.len() as u64;
            if part + 1 == parts {
                let change = decode_writes(&body.split());
                writes.push(change.ok_or_else(|| malformed(key))?);
            }
            Ok(())
        };
        self.all(&subject, from + 1, position, &mut see).await?;
        // It may have been read before.
        loaded.apply(&StateWrites {
            resets: true,
            ..StateWrites::default()
        });
        writes.iter().for_each(|writes| loaded.apply(writes));
        let mut news = loaded.news.lock();
        news.changes += writes.len() as u64;
        news.bytes += bytes;
        Ok(())
    }

    /// The last snapshot, and the sequence that it is as of.
    async fn snapshot(&self, key: &ChainKey) -> Result<Option<(u64, StateWrites)>, Trouble> {
        let subject = self.subjects.snapshot(key.0, &key.1, 0);
        for _ in 0..TRIES_MAX {
            let Some(first) = self.last(&subject).await? else {
                return Ok(None);
            };
            let note = first.note.as_ref();
            let place = note.and_then(|note| Some((note.number(0)?, note.number(1)?)));
            let (as_of, parts) = place.ok_or_else(|| malformed(key))?;
            let mut body = BytesMut::from(&*first.body);
            let mut is_whole = true;
            for part in 1..parts {
                // Its parts were written in one step.
                match self.at(first.seq + part).await? {
                    Some(message) => body.extend_from_slice(&message.body),
                    // Another one has replaced it.
                    None => is_whole = false,
                }
            }
            if is_whole {
                let writes = decode_writes(&body);
                return Ok(Some((as_of, writes.ok_or_else(|| malformed(key))?)));
            }
        }
        Err(Trouble::unavailable("others keep writing a snapshot"))
    }

    /// Others wrote state.
    pub(crate) async fn hear_state(&self, key: &ChainKey) {
        let loaded = self.mirror.heard.read().tables.get(key).cloned();
        if let Some(loaded) = loaded
            && let Err(error) = self.catch_up(key, &loaded).await
        {
            tracing::warn!(%error, "a table of state cannot be read now; it is when it is next asked for");
        }
        self.tables.woke(&key.1);
    }

    /// Writes a snapshot if there are many changes since the last one.
    pub(crate) async fn may_write_snapshot(&self, key: &ChainKey, loaded: &Loaded) {
        {
            let mut news = loaded.news.lock();
            let bytes_max = CHANGES_BYTES_MIN.max(4 * loaded.table.size().bytes as u64);
            let is_due = news.changes > CHANGES_MAX || news.bytes > bytes_max;
            if !is_due || news.is_writing {
                return;
            }
            news.is_writing = true;
        }
        match self.write_snapshot(key, loaded).await {
            // Somebody else has written one.
            Ok(()) | Err(Trouble::Moved) => {}
            Err(error) => {
                tracing::warn!(%error, "a snapshot of state cannot be written now; it is tried again");
            }
        }
        let mut news = loaded.news.lock();
        news.is_writing = false;
        (news.changes, news.bytes) = (0, 0);
    }

    async fn write_snapshot(&self, key: &ChainKey, loaded: &Loaded) -> Result<(), Trouble> {
        let subject = |part| self.subjects.snapshot(key.0, &key.1, part);
        let before = self.last(&subject(0)).await?;
        let (as_of, body) = {
            let mut as_of = loaded.as_of.lock().await;
            self.catch_up_from(key, loaded, &mut as_of).await?;
            (
                *as_of,
                Bytes::from(encode_writes(&everything(&loaded.table))),
            )
        };
        let note = before.as_ref().and_then(|before| before.note.as_ref());
        let known = note.and_then(|note| note.number(0)).unwrap_or_default();
        if known >= as_of {
            return Ok(());
        }
        let note = |_, parts| format!("{as_of} {parts}");
        let mut parts = self.in_parts("", &body, note);
        if parts.len() > SNAPSHOT_PARTS_MAX {
            let why = "a table of state is too large for a snapshot, so that its changes are kept";
            return Err(Trouble::Refused(why.into()));
        }
        for (number, part) in parts.iter_mut().enumerate() {
            part.subject = subject(number);
            part.is_last = true;
            if number == 0 {
                part.expected = Some(before.as_ref().map_or(0, |before| before.seq));
            }
        }
        self.write(&parts).await?;
        // Whoever reads the table now may have begun with the snapshot before.
        if known > 0 {
            let deltas = self.subjects.delta(key.0, &key.1);
            let purge = self.stream.purge().sequence(known + 1).filter(deltas);
            purge.await.map_err(Trouble::unavailable)?;
        }
        Ok(())
    }
}

/// All of a table, as changes of an empty one.
fn everything(table: &StateTable) -> StateWrites {
    let all = StateQuery {
        entries_max: usize::MAX,
        bytes_max: usize::MAX,
        // None has ended then.
        now: Timestamp(0),
        ..StateQuery::default()
    };
    // It is in memory.
    let entries = table.page(&all).unwrap_or_default().entries;
    let change = |entry: millrace_engine::state::StateEntry| StateChange {
        key: entry.key,
        value: Some(entry.value),
        ends_at: entry.ends_at,
    };
    StateWrites {
        resets: true,
        changes: entries.into_iter().map(change).collect(),
        adds: None,
    }
}

fn malformed((at, group): &ChainKey) -> Trouble {
    Trouble::malformed(&format!("state of {group} in {at}"))
}
