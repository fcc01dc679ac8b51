//! What this host remembers of the database, all of one life of it.
//!
//! A database that crashed, was restored, or is a standby that was promoted may lack the last commits that it acknowledged. It then counts
//! itself as in another life, and has made every lease void (migration 4). Each session asks for the life before anything else; the first
//! one that finds another one reads everything anew, and what this host remembered is forgotten in the same step. An answer that was on
//! its way meanwhile is of the life before, so whatever is remembered is given with its life, and dropped if that is over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::Version;
use millrace_engine::room::Room;
use millrace_model::{Clock, Offset, TopicName, TopicPartition};
use parking_lot::RwLock;
use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};
use tokio::sync::Mutex as Turns;

use crate::chains::Holds;
use crate::commit::locking::partition_of;
use crate::commit::short::KnownChains;
use crate::following::{News, catalogue_news};
use crate::mirror::{CatalogueNews, Mirror};
use crate::tables::Tables;
use crate::tail::Tail;
use crate::trouble::Trouble;

/// A life of the database, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life(pub(crate) i64);

pub(crate) struct Memory {
    pub(crate) mirror: Mirror,
    pub(crate) tables: Tables,
    pub(crate) holds: Holds,
    pub(crate) known: KnownChains,
    pub(crate) tail: Tail,
    pub(crate) news: News,
    clock: Arc<dyn Clock>,
    life: RwLock<Current>,
    /// One session at a time reads everything.
    learning: Turns<()>,
}

#[derive(Default)]
struct Current {
    /// `None` before the first session.
    life: Option<Life>,
    /// When it was learnt that the one before is over, by the monotonic clock.
    since: Option<Duration>,
}

/// What a topic has lost, as far as this host knew of it.
pub(crate) struct Lost {
    pub(crate) topic: TopicName,
    /// Offsets that were given, and are not any more.
    pub(crate) messages: u64,
    /// The whole topic is not there.
    pub(crate) is_gone: bool,
}

impl Memory {
    pub(crate) fn new(room: Arc<Room>, clock: Arc<dyn Clock>) -> Self {
        Self {
            mirror: Mirror::default(),
            tables: Tables::new(room),
            holds: Holds::default(),
            known: KnownChains::default(),
            tail: Tail::default(),
            news: News::default(),
            clock,
            life: RwLock::default(),
            learning: Turns::default(),
        }
    }

    /// The life that this host knows of. Taken before the database is asked, it is that of the answer, or an earlier one.
    pub(crate) fn life(&self) -> Option<Life> {
        self.life.read().life
    }

    /// Remembers something that the database said in a life; `None` if that is over.
    pub(crate) fn remember<T>(
        &self,
        life: Option<Life>,
        remember: impl FnOnce() -> T,
    ) -> Option<T> {
        let current = self.life.read();
        (current.life == life).then(remember)
    }

    /// As [`Memory::remember`]; what was said in a life that is over is as good as unsaid.
    pub(crate) fn must_remember<T>(
        &self,
        life: Option<Life>,
        remember: impl FnOnce() -> T,
    ) -> Result<T, Trouble> {
        self.remember(life, remember).ok_or_else(|| {
            let reason = "the database was started anew, or another server took its place";
            Trouble::Unavailable(reason.into())
        })
    }

    /// Whether a connection of this age may lead to a server that is no longer the database.
    pub(crate) fn is_of_before(&self, age: Duration) -> bool {
        let since = self.life.read().since;
        since.is_some_and(|since| age > self.clock.monotonic().saturating_sub(since))
    }

    /// The life that a new session is in.
    pub(crate) async fn begin(&self, session: &mut PgConnection) -> Result<Life, Trouble> {
        let asked = sqlx::query("select current_life() as life");
        let life = Life(session.fetch_one(asked).await?.get("life"));
        if self.life() == Some(life) {
            return Ok(life);
        }
        let _learning = self.learning.lock().await;
        if self.life() != Some(life) {
            let everything = catalogue_news(session, None, |_| Version::default()).await?;
            let ends = sqlx::query("select topic, number, next from life_end");
            let ends = session.fetch_all(ends).await?;
            let ends = ends.iter().map(|row| {
                let next = row.get::<i64, _>("next") as u64;
                (partition_of(row), Offset(next))
            });
            self.begin_again(life, everything, &ends.collect());
        }
        Ok(life)
    }

    fn begin_again(
        &self,
        life: Life,
        everything: CatalogueNews,
        ends: &HashMap<TopicPartition, Offset>,
    ) {
        let mut current = self.life.write();
        let is_first = current.life.replace(life).is_none();
        let lost = self.mirror.begin_again(everything, ends);
        if is_first {
            return;
        }
        current.since = Some(self.clock.monotonic());
        self.tail.clear();
        self.tables.clear();
        self.known.clear();
        self.news.clear();
        self.holds.lose_all();
        drop(current);
        tracing::warn!(
            "the database was started anew, or another server took its place: this host forgets what it knew of it, and takes its work again"
        );
        for Lost {
            topic,
            messages,
            is_gone,
        } in lost
        {
            match is_gone {
                true => tracing::error!(
                    %topic,
                    "the database has no such topic any more: it was deleted just before, or the database lost its last commits"
                ),
                false => tracing::error!(
                    %topic,
                    messages,
                    "the database has lost messages that this host knew of, and will give their offsets to others: their topic is not durable, \
                     or they had not reached the standby that was promoted"
                ),
            }
        }
    }
}
