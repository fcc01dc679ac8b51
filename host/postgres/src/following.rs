//! Tells other hosts what this one has committed, and learns what they have: by notifications, and by looking now and then in case one
//! was lost.
//!
//! Notifications are sent from a connection of their own after the commit, several commits in one: inside of a transaction a notification
//! takes a lock of the whole database over the flush.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::{EntryKind, Version};
use millrace_model::{Offset, PartitionId, TopicId, TopicPartition};
use parking_lot::Mutex;
use sqlx::postgres::{PgConnection, PgListener, PgNotification};
use sqlx::{Executor as _, Row as _};
use tokio::sync::{Notify, watch};

use crate::commit::locking::{TOPICS, partition_of, topic_of};
use crate::memory::{Life, Memory};
use crate::mirror::{CatalogueNews, EntryNews, Stored};
use crate::store::Store;
use crate::trouble::Trouble;

/// Notifications are at least this far apart.
const NEWS_INTERVAL: Duration = Duration::from_millis(5);
/// The database takes less than 8,000 bytes.
const PAYLOAD_BYTES_MAX: usize = 7_900;
/// After a failure, the next try.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// What this host has not told the others.
#[derive(Default)]
pub(crate) struct News {
    waiting: Mutex<Untold>,
    wake: Notify,
}

#[derive(Default)]
struct Untold {
    ends: BTreeMap<TopicPartition, Offset>,
    catalogue: bool,
    state: bool,
    chains: bool,
}

impl News {
    pub(crate) fn ends(&self, ends: impl IntoIterator<Item = (TopicPartition, Offset)>) {
        let mut waiting = self.waiting.lock();
        for (partition, next) in ends {
            let end = waiting.ends.entry(partition).or_insert(next);
            *end = next.max(*end);
        }
        self.wake.notify_one();
    }

    pub(crate) fn catalogue(&self) {
        self.waiting.lock().catalogue = true;
        self.wake.notify_one();
    }

    pub(crate) fn state(&self) {
        self.waiting.lock().state = true;
        self.wake.notify_one();
    }

    pub(crate) fn chain(&self) {
        self.waiting.lock().chains = true;
        self.wake.notify_one();
    }

    /// What was committed in a life that is over may be lost.
    pub(crate) fn clear(&self) {
        *self.waiting.lock() = Untold::default();
    }

    fn take(&self) -> Vec<String> {
        let untold = std::mem::take(&mut *self.waiting.lock());
        let mut payloads = Vec::new();
        let mut payload = String::new();
        for (is_told, mark) in [
            (untold.catalogue, CATALOGUE),
            (untold.state, STATE),
            (untold.chains, CHAINS),
        ] {
            if is_told {
                payload.push(mark);
            }
        }
        for (at, next) in untold.ends {
            let end = format!(" {}/{}/{next}", at.topic, at.partition);
            if payload.len() + end.len() > PAYLOAD_BYTES_MAX {
                if payloads.is_empty() {
                    payload.insert(0, ENDS);
                }
                payloads.push(std::mem::take(&mut payload));
            }
            payload.push_str(&end);
        }
        payloads.push(payload);
        payloads.retain(|payload| !payload.is_empty());
        payloads
    }
}

const CATALOGUE: char = 'k';
const STATE: char = 's';
const CHAINS: char = 'c';
/// The ends are in several notifications, and parts of one commit perhaps in two of them: whoever hears this looks at all at once.
const ENDS: char = 'e';
/// A host joins or leaves: it says so from its own session.
pub(crate) const HOSTS: char = 'h';

/// Before the life in which ends are so.
const LIFE: char = '@';

/// The life in which a notification says something; hosts before version 4 of the schema do not say it.
fn life_of(payload: &str) -> Option<Life> {
    let words = payload.split(' ').skip(1);
    let life = words.filter_map(|word| word.strip_prefix(LIFE)).next()?;
    life.parse().ok().map(Life)
}

/// What a notification says: marks, then ends as `topic/partition/end` and the life, each after a space.
fn ends_of(payload: &str) -> impl Iterator<Item = (TopicPartition, Offset)> {
    payload.split(' ').skip(1).filter_map(|end| {
        let mut parts = end.split('/');
        let topic = TopicId(parts.next()?.parse().ok()?);
        let partition = PartitionId(parts.next()?.parse().ok()?);
        let next = Offset(parts.next()?.parse().ok()?);
        Some((TopicPartition { topic, partition }, next))
    })
}

/// Sends notifications until the engine is closed.
pub(crate) async fn tell(store: Arc<Store>, mut stop: watch::Receiver<bool>) {
    let channel = &store.options.schema;
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = store.memory.news.wake.notified() => {}
        }
        // Taken first: news of a later life are not told as those of this one.
        let Some(Life(life)) = store.memory.life() else {
            continue;
        };
        for payload in store.memory.news.take() {
            let payload = format!("{payload} {LIFE}{life}");
            let tell = sqlx::query("select pg_notify($1, $2)");
            let told = store.pool.execute(tell.bind(channel).bind(payload)).await;
            if let Err(error) = told {
                // The others look by themselves.
                tracing::debug!(%error, "other hosts could not be notified");
            }
        }
        tokio::time::sleep(NEWS_INTERVAL).await;
    }
}

/// Follows the others until the engine is closed.
pub(crate) async fn follow(store: Arc<Store>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            failed = follow_on(&store) => {
                tracing::debug!(error = ?failed.err(), "following other hosts begins again");
            }
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(RETRY_INTERVAL) => {}
        }
    }
}

async fn follow_on(store: &Store) -> Result<(), Trouble> {
    let mut listener = PgListener::connect_with(&store.pool).await?;
    listener.ignore_pool_close_event(true);
    listener.listen(&store.options.schema).await?;
    let life = store.memory.life();
    loop {
        // Whatever was told before this began, or was lost.
        store.look().await?;
        // The others tell their news to the database as it is now.
        store.memory.must_remember(life, || ())?;
        let next_look = tokio::time::sleep(store.options.poll_interval);
        tokio::pin!(next_look);
        loop {
            let told = tokio::select! {
                () = &mut next_look => break,
                told = listener.try_recv() => told,
            };
            match told {
                Ok(Some(told)) => store.hear(&told).await?,
                // The connection was lost, and notifications with it.
                Ok(None) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Store {
    async fn hear(&self, told: &PgNotification) -> Result<(), Trouble> {
        let payload = told.payload();
        let marks = payload.split(' ').next().unwrap_or_default();
        if marks.contains(HOSTS) {
            self.hosts.changed.notify_one();
        }
        if marks.contains(CATALOGUE) {
            self.follow_catalogue().await?;
        }
        if marks.contains(STATE) {
            self.follow_state().await?;
        }
        if marks.contains(CHAINS) {
            self.follow_chains().await?;
        }
        if marks.contains(ENDS) {
            self.look_at_ends().await?;
        }
        let life = life_of(payload).or_else(|| self.memory.life());
        let ends = || self.memory.mirror.hear_ends(ends_of(payload));
        // Of another life, they may be lost.
        let _ = self.memory.remember(life, ends);
        Ok(())
    }

    /// Looks at everything.
    pub(crate) async fn look(&self) -> Result<(), Trouble> {
        self.follow_catalogue().await?;
        self.look_at_ends().await?;
        self.follow_state().await?;
        self.follow_chains().await
    }

    /// Looks where all partitions start and end, as of one moment. Returns the ends that are news.
    pub(crate) async fn look_at_ends(&self) -> Result<Vec<(TopicPartition, Offset)>, Trouble> {
        let life = self.memory.life();
        let asked = sqlx::query("select topic, number, start, next from partition");
        let rows = self.pool.fetch_all(asked).await?;
        let stored: Vec<Stored> = rows.iter().map(stored_of).collect();
        let hear = || self.memory.mirror.hear_partitions(&stored);
        self.memory.must_remember(life, hear)
    }

    pub(crate) async fn follow_catalogue(&self) -> Result<(), Trouble> {
        let life = self.memory.life();
        let mut connection = self.pool.acquire().await?;
        let news = self.catalogue_news(&mut connection).await?;
        self.hear_catalogue(life, news)
    }

    /// After a commit of this host.
    pub(crate) async fn hear_own_catalogue(
        &self,
        life: Option<Life>,
        connection: &mut PgConnection,
    ) {
        let news = self.catalogue_news(connection).await;
        let heard = news.and_then(|news| self.hear_catalogue(life, news));
        if let Err(error) = heard {
            tracing::warn!(%error, "the catalogue cannot be read again now; this host sees its change later");
        }
        self.memory.news.catalogue();
    }

    fn hear_catalogue(&self, life: Option<Life>, news: CatalogueNews) -> Result<(), Trouble> {
        let has_topics = news.topics.is_some();
        let Memory { mirror, tables, .. } = &*self.memory;
        self.memory.must_remember(life, || {
            mirror.hear_catalogue(news);
            if has_topics {
                tables.keep(|at| mirror.ends(at).is_ok());
            }
        })
    }

    /// What is newer than what this host has heard, as of one moment.
    async fn catalogue_news(
        &self,
        connection: &mut PgConnection,
    ) -> Result<CatalogueNews, Trouble> {
        let mirror = &self.memory.mirror;
        let topics = mirror.topics_version();
        catalogue_news(connection, Some(topics), |kind| mirror.version(kind)).await
    }
}

/// What is newer in the catalogue than these versions, as of one moment; without that of topics, all of them.
pub(crate) async fn catalogue_news(
    connection: &mut PgConnection,
    topics_known: Option<u64>,
    known: impl Fn(EntryKind) -> Version,
) -> Result<CatalogueNews, Trouble> {
    let mut news = CatalogueNews::default();
    let asked = sqlx::query("select kind, version from kind");
    let mut kinds = HashMap::new();
    for row in connection.fetch_all(asked).await? {
        kinds.insert(
            row.get::<String, _>("kind"),
            row.get::<i64, _>("version") as u64,
        );
    }
    // Entries are read with all that is newer by now; topics and partitions as of a version that is at least this one.
    let topics_version = kinds.get(TOPICS).copied().unwrap_or_default();
    if topics_known.is_none_or(|known| topics_version > known) {
        let asked = sqlx::query(
            "select t.id, t.spec::text as spec, k.version, p.topic, p.number, p.start, p.next from kind k \
                 left join topic t on true left join partition p on p.topic = t.id where k.kind = 'topic' order by t.id, p.number",
        );
        let rows = connection.fetch_all(asked).await?;
        let mut topics = Vec::new();
        let mut last = None;
        let mut version = topics_version;
        for row in &rows {
            version = row.get::<i64, _>("version") as u64;
            let Some(id) = row.get::<Option<i64>, _>("id") else {
                continue;
            };
            if last != Some(id) {
                last = Some(id);
                topics.push(topic_of(row)?);
            }
            if row.get::<Option<i64>, _>("topic").is_some() {
                news.partitions.push(stored_of(row));
            }
        }
        news.topics = Some((topics, version));
    }
    for kind in EntryKind::ALL {
        let newest = kinds.get(kind.as_str()).copied().unwrap_or_default();
        let known = known(kind);
        if newest <= known.0 {
            continue;
        }
        let asked = sqlx::query(
            "select key, value, version from entry where kind = $1 and version > $2 order by version",
        );
        let asked = asked.bind(kind.as_str()).bind(known.0 as i64);
        for row in connection.fetch_all(asked).await? {
            let value = row.get::<Option<Vec<u8>>, _>("value");
            news.entries.push(EntryNews {
                kind,
                key: row.get("key"),
                value: value.map(Into::into),
                version: Version(row.get::<i64, _>("version") as u64),
            });
        }
    }
    Ok(news)
}

impl Store {
    async fn follow_state(&self) -> Result<(), Trouble> {
        let life = self.memory.life();
        let tables = self.memory.tables.all();
        let watched = self.memory.tables.watched();
        if tables.is_empty() && watched.is_empty() {
            return Ok(());
        }
        let ids: Vec<i64> = tables.iter().map(|(_, loaded)| loaded.chain).collect();
        let asked =
            sqlx::query("select id, grp, state_seq from chain where id = any($1) or grp = any($2)");
        let rows = self.pool.fetch_all(asked.bind(ids).bind(watched)).await?;
        let by_chain: HashMap<i64, _> = tables.iter().map(|(_, l)| (l.chain, l)).collect();
        for row in rows {
            let (chain, seq) = (row.get::<i64, _>("id"), row.get::<i64, _>("state_seq"));
            if let Some(loaded) = by_chain.get(&chain) {
                let is_behind = *loaded.seq.lock().await < seq;
                if is_behind {
                    let mut connection = self.pool.acquire().await?;
                    loaded.catch_up(&mut connection).await?;
                }
            }
            let group = millrace_model::GroupName::stored(row.get("grp"));
            let note = || self.memory.tables.note(&group, chain, seq, false);
            self.memory.must_remember(life, note)?;
        }
        Ok(())
    }

    async fn follow_chains(&self) -> Result<(), Trouble> {
        let life = self.memory.life();
        let held = self.memory.holds.chains();
        if held.is_empty() {
            return Ok(());
        }
        let asked = sqlx::query("select id, epoch from chain where id = any($1)");
        let rows = self.pool.fetch_all(asked.bind(&held)).await?;
        let stored = rows.iter().map(|row| {
            let epoch = row.get::<i64, _>("epoch") as u64;
            (row.get::<i64, _>("id"), epoch)
        });
        let stored = stored.collect();
        let hear = || self.memory.holds.hear(&held, &stored);
        self.memory.must_remember(life, hear)
    }
}

fn stored_of(row: &sqlx::postgres::PgRow) -> Stored {
    Stored {
        partition: partition_of(row),
        start: Offset(row.get::<i64, _>("start") as u64),
        next: Offset(row.get::<i64, _>("next") as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(partitions: u32) -> Vec<String> {
        let news = News::default();
        let at = |number| TopicPartition {
            topic: TopicId(7),
            partition: PartitionId(number),
        };
        news.ends((0..partitions).map(|number| (at(number), Offset(1_000_000))));
        news.take()
    }

    #[test]
    fn ends_in_several_notifications_are_looked_at_in_one_moment_first() {
        let (few, many) = (told(2), told(2_000));
        assert_eq!(few, [" 7/0/1000000 7/1/1000000"]);
        assert!(many.len() > 1 && many[0].starts_with("e 7/0/"));
        let rest = &many[1..];
        assert!(rest.iter().all(|payload| payload.starts_with(" 7/")));
        assert!(
            many.iter()
                .all(|payload| payload.len() < PAYLOAD_BYTES_MAX + 2)
        );
        let ends: usize = many.iter().map(|payload| ends_of(payload).count()).sum();
        assert_eq!(ends, 2_000);
    }
}
