//! Takes over what another store has: topics under their ids, batches at their offsets, each in one step.

use millrace_engine::contract::{AdoptError, Adoption, Append, check_partitions, end_after};
use millrace_engine::{CommitError, TopicError, Transaction};
use millrace_model::{RecordBatch, Topic, TopicId, TopicPartition};

use crate::atomic::Put;
use crate::catalogue::TRIES_MAX;
use crate::cells::{encode_added_ids, last_id};
use crate::committing::{read, remember};
use crate::judging::{Judge, Needs, Writes};
use crate::store::Store;
use crate::trouble::Trouble;

impl Store {
    pub(crate) async fn adopt(&self, adoption: Adoption) -> Result<(), AdoptError> {
        match adoption {
            Adoption::Topic(topic) => self.adopt_topic(topic).await,
            Adoption::Messages { partition, batches } => {
                self.adopt_messages(partition, batches).await
            }
            Adoption::ProducerIds { next } => Ok(self.adopt_producer_ids(next).await?),
        }
    }

    async fn adopt_topic(&self, topic: Topic) -> Result<(), AdoptError> {
        self.check_spec(&topic.spec)?;
        self.change::<_, AdoptError>(&[], |heard| {
            let next = TopicId(heard.last_topic_id() + 1);
            if heard.topics.contains_key(&topic.spec.name) {
                return Err(TopicError::Exists(topic.spec.name.clone()).into());
            }
            if topic.id < next {
                return Err(AdoptError::Id { id: topic.id, next });
            }
            let have = heard.partitions.len();
            check_partitions(&self.tables.room, have, topic.spec.partitions)?;
            Ok(((), vec![self.topics_put(heard), self.topic_put(&topic)]))
        })
        .await
    }

    async fn adopt_messages(
        &self,
        partition: TopicPartition,
        batches: Vec<RecordBatch>,
    ) -> Result<(), AdoptError> {
        let append = |batch: &RecordBatch| Append {
            partition,
            batch: batch.clone(),
        };
        let transaction = Transaction::produce(batches.iter().map(append).collect());
        for _ in 0..TRIES_MAX {
            self.sync().await?;
            let start = self.start_again(partition, &batches)?;
            let mut needs = Needs::default();
            needs.add(self, &transaction);
            let (cells, last_id) = read(self, &needs, true).await?;
            let mut judge = Judge::new(self, &needs, &cells, last_id, self.clock.wall())?;
            judge.adopt(&transaction)?;
            let mut writes = judge.into_writes();
            writes.puts.push(start);
            match self.write_adopted(&mut writes).await {
                Ok(()) => return Ok(()),
                Err(AdoptedError::Moved) => {}
                Err(AdoptedError::Failed(error)) => return Err(error.into()),
            }
        }
        Err(CommitError::from(Trouble::Moved).into())
    }

    /// The cell of the partition's start, as it is. That it is expected keeps a step from coming twice whose answer was late: offsets are
    /// counted, so nothing else would refuse the second one.
    fn start_again(
        &self,
        partition: TopicPartition,
        batches: &[RecordBatch],
    ) -> Result<Put, AdoptError> {
        let heard = self.mirror.heard.read();
        let known = heard.partitions.get(&partition);
        let known = known.ok_or(CommitError::UnknownPartition(partition))?;
        end_after(partition, known.ends().end, batches)?;
        Ok(self.start_put(partition, known.beginning()))
    }

    async fn write_adopted(&self, writes: &mut Writes) -> Result<(), AdoptedError> {
        self.check_puts(&writes.puts)?;
        let batches = std::mem::take(&mut writes.batches);
        match self.write_batches(&writes.puts, batches).await {
            Ok(passed) => {
                remember(self, writes, &passed);
                Ok(())
            }
            Err(Trouble::Moved) => Err(AdoptedError::Moved),
            Err(trouble) => Err(CommitError::from(trouble).into()),
        }
    }

    async fn adopt_producer_ids(&self, next: i64) -> Result<(), CommitError> {
        let ids = self.subjects.ids();
        for _ in 0..TRIES_MAX {
            let known = self.read_cell(&ids).await?;
            let given = last_id(&known).ok_or_else(|| Trouble::malformed("ids of producers"))?;
            let last = u64::try_from(next).unwrap_or_default().saturating_sub(1);
            if given >= last {
                return Ok(());
            }
            let put = Put::cell(ids.clone(), Some(known.seq), encode_added_ids(last));
            match self.write(&[put]).await {
                Ok(_) => {
                    self.read_cell(&ids).await?;
                    return Ok(());
                }
                Err(Trouble::Moved) => {}
                Err(trouble) => return Err(trouble.into()),
            }
        }
        Err(Trouble::Moved.into())
    }
}

/// Why a step was not written.
enum AdoptedError {
    /// Somebody came between.
    Moved,
    Failed(CommitError),
}

impl From<CommitError> for AdoptedError {
    fn from(error: CommitError) -> Self {
        Self::Failed(error)
    }
}
