//! Takes over what another store has: topics under their ids, batches at their offsets, each in one transaction.

use millrace_engine::contract::{AdoptError, Adoption, Append, end_after};
use millrace_engine::{CommitError, Transaction};
use millrace_model::{RecordBatch, TopicPartition};
use sqlx::{Executor as _, Row as _};

use crate::catalogue::{Failed, Tries, end};
use crate::commit::judging::{Writes, append_to};
use crate::commit::locking::{Locked, Needs};
use crate::store::Store;
use crate::trouble::undone;

impl Store {
    pub(crate) async fn adopt(&self, adoption: Adoption) -> Result<(), AdoptError> {
        match adoption {
            Adoption::Topic(topic) => self.adopt_topic(&topic).await,
            Adoption::Messages { partition, batches } => {
                self.adopt_messages(partition, batches).await
            }
            Adoption::ProducerIds { next } => Ok(self.adopt_producer_ids(next).await?),
        }
    }

    async fn adopt_messages(
        &self,
        partition: TopicPartition,
        batches: Vec<RecordBatch>,
    ) -> Result<(), AdoptError> {
        let append = |batch| Append { partition, batch };
        let transaction = Transaction::produce(batches.into_iter().map(append).collect());
        let life = self.memory.life();
        let mut tries = Tries::default();
        let written = loop {
            match self.adopt_once(partition, &transaction).await {
                Ok(written) => break written,
                Err(failed) => tries.again(failed)?,
            }
        };
        let ends = written.ends.iter().map(|(at, next)| (*at, *next));
        let _ = self.memory.remember(life, || {
            self.memory.mirror.hear_ends(ends.clone());
            self.memory.news.ends(ends);
        });
        Ok(())
    }

    async fn adopt_once(
        &self,
        partition: TopicPartition,
        transaction: &Transaction,
    ) -> Result<Writes, Failed<AdoptError>> {
        let mut needs = Needs::default();
        needs.add(transaction);
        let mut adopting = self.pool.begin().await?;
        let mut locked = needs.lock(&mut adopting).await?;
        let written = self.adopted(partition, transaction, &mut locked);
        let written = written.map_err(Failed::Refused)?;
        if !written.is_durable {
            let relax = sqlx::query("set local synchronous_commit = off");
            adopting.execute(relax).await?;
        }
        written
            .write(&mut adopting, &mut locked.idempotence)
            .await?;
        end(adopting).await?;
        Ok(written)
    }

    fn adopted(
        &self,
        partition: TopicPartition,
        transaction: &Transaction,
        locked: &mut Locked,
    ) -> Result<Writes, AdoptError> {
        let place = locked.places.get(&partition).copied();
        let place = place.ok_or(CommitError::UnknownPartition(partition))?;
        let batches = transaction
            .appends
            .iter()
            .map(|append| append.batch.clone());
        let batches: Vec<RecordBatch> = batches.collect();
        let next = end_after(partition, place.next, &batches)?;
        let now = self.clock.wall();
        locked.idempotence.apply_moment(now);
        let mut writes = Writes {
            now,
            is_durable: place.is_durable,
            ..Writes::default()
        };
        writes.ends.insert(partition, next);
        for batch in &batches {
            let base = batch.base_offset();
            if let Some(numbering) = batch.numbering() {
                let idempotence = &mut locked.idempotence;
                idempotence.apply_append(partition, numbering, base);
            }
            append_to(&mut writes.runs, partition, place.bucket, base, batch);
        }
        Ok(writes)
    }

    async fn adopt_producer_ids(&self, next: i64) -> Result<(), CommitError> {
        let given = sqlx::query(
            "update meta set value = greatest(value, $1) where name = 'producer' returning value",
        );
        let row = self
            .pool
            .fetch_one(given.bind(next))
            .await
            .map_err(undone)?;
        debug_assert!(row.get::<i64, _>("value") >= next);
        Ok(())
    }
}
