//! The short way of a group, for plain appends and for the commits of workers: it is decided on what this host knows of the chains, and a
//! single statement locks, compares, places, writes and commits, so that a commit costs one trip to the database. It does nothing if
//! anything is not as this host knows it; the group then goes the long way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use millrace_engine::contract::{Lease, Transaction};
use millrace_engine::{CommitError, Receipt};
use millrace_model::{Offset, Progress, TopicPartition};
use parking_lot::Mutex;
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor as _, Postgres, Row as _};

use super::judging::{Judge, Run, Writes};
use super::lanes::Waiting;
use super::locking::{Chain, Locked, Place, columns, partition_of};
use super::writing::{changes_of, latest_of, runs_of};
use crate::memory::Life;
use crate::store::Store;
use crate::tables::{Loaded, TableKey};
use crate::trouble::Trouble;

/// Chains that this host remembers from its commits; beyond them it forgets all, and learns them again. Each takes a few KiB at most.
const KNOWN_CHAINS_MAX: usize = 16_384;
/// Topics that one statement appends to: each has a table of its own, and each set of them a statement.
const TOPICS_MAX: usize = 4;
/// Progress with more bytes than this, because of parked messages, is not sent to be compared, and not remembered.
const PROGRESS_BYTES_MAX: usize = 2_048;

/// Chains as this host's last commits left them. Others may have changed them since.
#[derive(Default)]
pub(crate) struct KnownChains {
    chains: Mutex<HashMap<TableKey, Chain>>,
    /// Groups with chains that went this way.
    #[cfg(test)]
    pub(crate) taken: std::sync::atomic::AtomicUsize,
}

impl KnownChains {
    pub(crate) fn note(&self, committed: HashMap<TableKey, Chain>) {
        let mut chains = self.chains.lock();
        if chains.len() + committed.len() > KNOWN_CHAINS_MAX {
            chains.clear();
        }
        for (key, chain) in committed {
            let bytes = chain.progress.as_ref().map_or(0, Progress::encoded_bytes);
            match bytes <= PROGRESS_BYTES_MAX {
                true => chains.insert(key, chain),
                // What was known of it before is not so any more.
                false => chains.remove(&key),
            };
        }
    }

    pub(crate) fn clear(&self) {
        self.chains.lock().clear();
    }
}

/// A group that was decided on what this host knows.
pub(crate) struct Short {
    pub(crate) writes: Writes,
    /// Offsets count from the ends that the partitions have when it is written.
    answers: Vec<Receipt>,
    /// Each chain, and its progress as stored.
    before: BTreeMap<i64, (Chain, Option<Vec<u8>>)>,
    after: HashMap<TableKey, Chain>,
}

impl Short {
    /// The group decided, if it can go this way and nothing of it is refused.
    pub(crate) fn of(
        store: &Store,
        group: &[Waiting],
        tables: &HashMap<TableKey, Arc<Loaded>>,
    ) -> Option<Self> {
        let transactions = || group.iter().map(|waiting| &waiting.transaction);
        if !transactions().all(is_usual) {
            return None;
        }
        let mut locked = Locked::default();
        for append in transactions().flat_map(|transaction| &transaction.appends) {
            locked.existing.insert(append.partition);
            let place = Place {
                next: Offset(0),
                is_durable: store.memory.mirror.is_durable(append.partition.topic),
                bucket: 0,
            };
            locked.places.insert(append.partition, place);
        }
        let topics: BTreeSet<_> = locked.places.keys().map(|at| at.topic).collect();
        if topics.len() > TOPICS_MAX {
            return None;
        }
        let known = store.memory.known.chains.lock();
        for lease in transactions().flat_map(leases) {
            let key = (lease.partition, lease.group.clone());
            locked.existing.insert(lease.partition);
            let chain = known.get(&key)?.clone();
            locked.chains.insert(key, chain);
        }
        drop(known);
        let is_read = |(key, loaded): (&TableKey, &Arc<Loaded>)| {
            let chain = locked.chains.get(key);
            chain.is_some_and(|chain| loaded.is_surely_at(chain.state_seq))
        };
        if !tables.iter().all(is_read) {
            return None;
        }
        let mut before = BTreeMap::new();
        for chain in locked.chains.values() {
            let progress = chain.progress.as_ref().map(|progress| progress.encode());
            before.insert(chain.id, (chain.clone(), progress));
        }
        let mut judge = Judge::new(
            locked,
            &store.memory.tables.room,
            tables,
            store.clock.wall(),
        );
        // A refusal may be because of what this host does not know.
        let answers = transactions().map(|transaction| judge.decide(transaction).ok());
        let answers = answers.collect::<Option<Vec<Receipt>>>()?;
        let Judge { writes, locked, .. } = judge;
        Some(Self {
            writes,
            answers,
            before,
            after: locked.chains,
        })
    }

    /// Commits it; `None` if it must go the long way.
    pub(crate) async fn commit(
        &mut self,
        store: &Store,
        group: &[Waiting],
        (connection, life): (&mut PgConnection, Life),
    ) -> Result<Option<Vec<Result<Receipt, CommitError>>>, Trouble> {
        let rows = match self.single() {
            Some(run) => {
                let text = single_statement(run.partition.topic.0);
                let append = self.bind_single(sqlx::query(AssertSqlSafe(text)), run);
                connection.fetch_all(append).await?
            }
            None => {
                let topics = self.writes.ends.keys().map(|at| at.topic.0).collect();
                let text = statement(
                    &topics,
                    !self.before.is_empty(),
                    !self.writes.state.is_empty(),
                );
                let commit = self.bind(sqlx::query(AssertSqlSafe(text)), &topics);
                connection.fetch_all(commit).await?
            }
        };
        if rows.is_empty() {
            return Ok(None);
        }
        let ends: BTreeMap<TopicPartition, Offset> = match self.writes.ends.is_empty() {
            true => BTreeMap::new(),
            false => rows
                .iter()
                .map(|row| {
                    let next = row.get::<i64, _>("next") as u64;
                    (partition_of(row), Offset(next))
                })
                .collect(),
        };
        let place = |at: &TopicPartition, from: Offset| {
            ends.get(at).copied().unwrap_or_default().plus(from.0)
        };
        for (at, end) in &mut self.writes.ends {
            *end = place(at, *end);
        }
        let mut answers = std::mem::take(&mut self.answers);
        for (waiting, receipt) in group.iter().zip(&mut answers) {
            let appends = &waiting.transaction.appends;
            for (append, base) in appends.iter().zip(&mut receipt.base_offsets) {
                *base = place(&append.partition, *base);
            }
        }
        #[cfg(test)]
        let _ = store.memory.known.taken.fetch_add(
            usize::from(!self.before.is_empty()),
            std::sync::atomic::Ordering::SeqCst,
        );
        let after = std::mem::take(&mut self.after);
        let note = || store.memory.known.note(after);
        let _ = store.memory.remember(Some(life), note);
        Ok(Some(answers.into_iter().map(Ok).collect()))
    }

    /// The run, if the group does nothing but append one run to one partition.
    fn single(&self) -> Option<&Run> {
        let Writes {
            ends, runs, state, ..
        } = &self.writes;
        let is_plain = self.before.is_empty() && state.is_empty() && ends.len() == 1;
        match &runs[..] {
            [run] if is_plain => Some(run),
            _ => None,
        }
    }

    /// In the order in which [`single_statement`] numbers them.
    fn bind_single<'q>(
        &'q self,
        append: Query<'q, Postgres, PgArguments>,
        run: &'q Run,
    ) -> Query<'q, Postgres, PgArguments> {
        append
            .bind(run.partition.topic.0 as i64)
            .bind(run.partition.partition.0 as i32)
            .bind(run.next.0 as i64)
            .bind(self.writes.is_durable)
            .bind(self.writes.now.0 as i64)
            .bind(latest_of(run))
            .bind(run.messages as i32)
            .bind(&run.bytes[..])
    }

    /// In the order in which [`statement`] numbers them.
    fn bind<'q>(
        &'q self,
        commit: Query<'q, Postgres, PgArguments>,
        topics: &BTreeSet<u64>,
    ) -> Query<'q, Postgres, PgArguments> {
        let Writes {
            ends,
            runs,
            progress,
            state,
            is_durable,
            now,
            ..
        } = &self.writes;
        let (places, numbers) = columns(ends.keys());
        let added: Vec<i64> = ends.values().map(|end| end.0 as i64).collect();
        let mut commit = commit
            .bind(places)
            .bind(numbers)
            .bind(added)
            .bind(*is_durable)
            .bind(now.0 as i64);
        if !self.before.is_empty() {
            let before = &self.before;
            let column = |of: fn(&Chain) -> i64| {
                let chains = before.values().map(|(chain, _)| of(chain));
                chains.collect::<Vec<i64>>()
            };
            let compared = before.values().map(|(_, progress)| progress.as_deref());
            let seqs = before.iter().map(|(id, (chain, _))| {
                let state = state.get(id);
                state.map_or(chain.state_seq, |state| state.seq)
            });
            let moved = before.keys().map(|id| progress.get(id).map(|p| p.encode()));
            commit = commit
                .bind(column(|chain| chain.id))
                .bind(column(|chain| chain.epoch as i64))
                .bind(column(|chain| chain.state_seq))
                .bind(compared.collect::<Vec<Option<&[u8]>>>())
                .bind(seqs.collect::<Vec<i64>>())
                .bind(moved.collect::<Vec<Option<Vec<u8>>>>());
        }
        if !state.is_empty() {
            let changes = changes_of(state);
            commit = commit
                .bind(changes.chains)
                .bind(changes.keys)
                .bind(changes.values)
                .bind(changes.ends)
                .bind(changes.seqs);
        }
        for &topic in topics {
            let runs = runs_of(runs, topic);
            commit = commit
                .bind(runs.numbers)
                .bind(runs.bases)
                .bind(runs.nexts)
                .bind(runs.latest)
                .bind(runs.messages)
                .bind(runs.bytes);
        }
        commit
    }
}

/// Whether it has only what the short way writes.
fn is_usual(transaction: &Transaction) -> bool {
    let Transaction {
        appends,
        progress,
        fences: _,
        entries,
        state,
        turns: _,
        durability: _,
        request,
        producer,
        expects,
        outbox,
    } = transaction;
    let is_plain = |write: &millrace_engine::state::StateWrite| {
        let is_own =
            |lease: &Lease| lease.partition == write.partition && lease.group == write.group;
        !write.writes.resets && write.lease.as_ref().is_some_and(is_own)
    };
    entries.is_empty()
        && request.is_none()
        && producer.is_none()
        && expects.is_empty()
        && outbox.is_empty()
        && appends
            .iter()
            .all(|append| append.batch.numbering().is_none())
        && progress
            .iter()
            .all(|write| write.partition == write.lease.partition)
        && state.iter().all(is_plain)
}

fn leases(transaction: &Transaction) -> impl Iterator<Item = &Lease> {
    let of_progress = transaction.progress.iter().map(|write| &write.lease);
    let of_state = transaction.state.iter().filter_map(|w| w.lease.as_ref());
    of_progress.chain(of_state).chain(&transaction.fences)
}

/// The statement that appends one run to one partition, in a third of the time that [`statement`] needs for it: a message that is sent alone waits for
/// little else. The update locks the partition, so one that waited for another commit counts from the end that this left.
fn single_statement(topic: u64) -> String {
    format!(
        "with moved as (update partition p set next = p.next + $3 from topic t \
           where p.topic = $1 and p.number = $2 and t.id = p.topic and ($4 or not p.durable) returning p.next - $3 as base, t.bucket), \
         written as (insert into run_{topic} (bucket, number, base, next, latest, at, messages, size, bytes) \
           select moved.bucket, $2, moved.base, moved.base + $3, $6, $5, $7, octet_length($8), $8 from moved) \
         select $1 as topic, $2 as number, base as next from moved"
    )
}

/// The statement. Partitions are locked before chains, as everywhere; what is compared is that of the locked rows.
fn statement(topics: &BTreeSet<u64>, has_chains: bool, has_state: bool) -> String {
    let mut text = String::from(
        "with place as materialized ( \
           select p.topic, p.number, p.next, p.durable, t.bucket from partition p join topic t on t.id = p.topic \
           where (p.topic, p.number) in (select * from unnest($1::bigint[], $2::int[])) \
           order by p.topic, p.number for no key update of p), \
         placed as materialized (select count(*) = cardinality($1) and coalesce(bool_and($4 or not durable), true) as is_so from place), ",
    );
    let mut next = 6;
    if has_chains {
        text.push_str(
            "chained as materialized ( \
               select c.id from chain c join unnest($6::bigint[], $7::bigint[], $8::bigint[], $9::bytea[]) as k(id, epoch, seq, progress) \
               on c.id = k.id and c.epoch = k.epoch and c.state_seq = k.seq and c.progress is not distinct from k.progress \
               where (select is_so from placed) order by c.id for no key update of c), \
             whole as materialized (select placed.is_so and (select count(*) from chained) = cardinality($6) as is_so from placed), \
             stepped as (update chain c set state_seq = w.seq, progress = coalesce(w.progress, c.progress) \
               from unnest($6::bigint[], $10::bigint[], $11::bytea[]) as w(id, seq, progress), whole where c.id = w.id and whole.is_so), ",
        );
        next += 6;
    } else {
        text.push_str("whole as materialized (select is_so from placed), ");
    }
    if has_state {
        let [chains, keys, values, ends, seqs] = [0, 1, 2, 3, 4].map(|at| next + at);
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "stated as (insert into state (chain, key, value, ends_at, seq) \
               select s.* from unnest(${chains}::bigint[], ${keys}::bytea[], ${values}::bytea[], ${ends}::bigint[], ${seqs}::bigint[]) as s, \
               whole where whole.is_so on conflict (chain, key) \
               do update set value = excluded.value, ends_at = excluded.ends_at, seq = excluded.seq), "
        );
        next += 5;
    }
    for topic in topics {
        let [numbers, bases, nexts, latest, messages, bytes] =
            [0, 1, 2, 3, 4, 5].map(|at| next + at);
        let _ = write!(
            text,
            "written_{topic} as (insert into run_{topic} (bucket, number, base, next, latest, at, messages, size, bytes) \
               select place.bucket, w.number, place.next + w.base, place.next + w.next, w.latest, $5, w.messages, octet_length(w.bytes), w.bytes \
               from unnest(${numbers}::int[], ${bases}::bigint[], ${nexts}::bigint[], ${latest}::bigint[], ${messages}::int[], ${bytes}::bytea[]) \
               as w(number, base, next, latest, messages, bytes) \
               join place on place.topic = {topic} and place.number = w.number, whole where whole.is_so), "
        );
        next += 6;
    }
    text.push_str(
        "moved as (update partition p set next = place.next + w.added \
           from unnest($1::bigint[], $2::int[], $3::bigint[]) as w(topic, number, added), place, whole \
           where p.topic = w.topic and p.number = w.number and place.topic = w.topic and place.number = w.number and whole.is_so) \
         select place.topic, place.number, place.next from whole left join place on true where whole.is_so",
    );
    text
}
