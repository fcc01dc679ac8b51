//! The positions of consumer groups, as in Kafka: where each group continues in the partitions of
//! any topics. They have no worker and no reader's lease: the group's coordinator decides who may
//! commit, and which positions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millrace_engine::room::CONSUMERS_GROUP;
use millrace_engine::state::{NEVER, StateChange, StateQuery, StateValue, StateWrite, StateWrites};
use millrace_engine::{Receipt, Transaction};
use millrace_model::bounds::{
    GROUP_COMMIT_POSITIONS_MAX, GROUP_NAME_BYTES_MAX, POSITION_NOTE_BYTES_MAX,
};
use millrace_model::{
    Durability, GroupKind, GroupName, Offset, PartitionId, Timestamp, Topic, TopicId, TopicName,
};

use crate::catalogue::deciding::decided;
use crate::catalogue::unknown::known_partition;
use crate::ground::verbs::Verb;
use crate::groups::error::ConsumerError;
use crate::groups::handle::{Groups, Inner};
use crate::groups::position_entry::{self, PositionEntry, read_key};
use crate::groups::stored::{explained, home, unread};
use crate::hosts::holding::Share;

/// Maximum number of entries per read.
const PAGE_ENTRIES: usize = 10_000;
/// Maximum bytes per read.
const PAGE_BYTES: usize = 4 << 20;

/// A position to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPosition {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The next offset to read. It may be before the committed one, and past the end: the group decides.
    pub offset: Offset,
    /// The leader epoch as the reader gave it; returned unchanged.
    pub leader_epoch: Option<u32>,
    /// The reader's own text, at most [`POSITION_NOTE_BYTES_MAX`] bytes; returned unchanged.
    pub note: String,
}

/// A committed position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPosition {
    /// What was committed.
    pub position: NewPosition,
    /// When, by the host's clock.
    pub committed_at: Timestamp,
}

/// Changes of one topic's entries.
type Changes = (Topic, Vec<StateChange>);

impl Groups {
    /// Commits positions of a group, all of them or none. Durable on return.
    ///
    /// # Errors
    /// [`ConsumerError`]; nothing was committed (unknown for [`CommitError::InDoubt`](millrace_engine::CommitError::InDoubt)).
    pub async fn commit_positions(
        &self,
        group: &GroupName,
        positions: Vec<NewPosition>,
    ) -> Result<(), ConsumerError> {
        check_name(group)?;
        if positions.len() > GROUP_COMMIT_POSITIONS_MAX {
            return Err(ConsumerError::TooManyPositions {
                count: positions.len(),
            });
        }
        let committed_at = self.inner.clock.wall();
        let mut changes: BTreeMap<TopicId, Changes> = BTreeMap::new();
        for new in positions {
            if new.note.len() > POSITION_NOTE_BYTES_MAX {
                return Err(ConsumerError::NoteTooLarge {
                    bytes: new.note.len(),
                });
            }
            self.caller.may(Verb::KeepPositions, new.topic.as_str())?;
            let topic = self.inner.catalogue.known_topic(&new.topic)?;
            known_partition(&topic, new.partition)?;
            let entry = PositionEntry {
                offset: new.offset,
                leader_epoch: new.leader_epoch,
                committed_at,
                note: new.note,
            };
            let change = StateChange {
                key: position_entry::key(group, new.partition).into(),
                value: Some(StateValue::new(&entry.encode())),
                ends_at: NEVER,
            };
            let of_topic = changes.entry(topic.id);
            of_topic.or_insert((topic, Vec::new())).1.push(change);
        }
        self.write_positions(&changes).await
    }

    /// The committed positions of a group, in any topic or in this one, by topic and partition. A group that never committed has none.
    ///
    /// # Errors
    /// [`ConsumerError`].
    pub async fn positions(
        &self,
        group: &GroupName,
        topic: Option<&TopicName>,
    ) -> Result<Vec<GroupPosition>, ConsumerError> {
        check_name(group)?;
        let topics = match topic {
            Some(topic) => {
                self.caller.may(Verb::SeeConsumers, topic.as_str())?;
                vec![self.inner.catalogue.known_topic(topic)?]
            }
            None => self.topics_seen().await?,
        };
        let prefix = position_entry::prefix(group);
        let mut positions = Vec::new();
        for topic in &topics {
            self.each_position(topic, &prefix, |_, partition, entry| {
                positions.push(GroupPosition {
                    committed_at: entry.committed_at,
                    position: NewPosition {
                        topic: topic.spec.name.clone(),
                        partition,
                        offset: entry.offset,
                        leader_epoch: entry.leader_epoch,
                        note: entry.note,
                    },
                });
            })
            .await?;
        }
        Ok(positions)
    }

    /// The topics with positions whose consumers the caller may see.
    async fn topics_seen(&self) -> Result<Vec<Topic>, ConsumerError> {
        let mut topics = self.topics_with_entries().await?;
        topics.retain(|topic| {
            self.caller
                .sees(Verb::SeeConsumers, topic.spec.name.as_str())
        });
        Ok(topics)
    }

    /// The groups that have committed positions, by name.
    ///
    /// # Errors
    /// [`ConsumerError`].
    pub async fn groups(&self) -> Result<BTreeSet<GroupName>, ConsumerError> {
        let mut groups = BTreeSet::new();
        for topic in self.topics_seen().await? {
            let note = |group, _, _| {
                groups.insert(group);
            };
            self.each_position(&topic, &[position_entry::MARK], note)
                .await?;
        }
        Ok(groups)
    }

    /// Deletes positions of a group, all or none: those of the given partitions, or all. Positions that do not exist are passed over.
    /// Returns how many were deleted.
    ///
    /// # Errors
    /// [`ConsumerError`]; nothing was deleted.
    pub async fn delete_positions(
        &self,
        group: &GroupName,
        places: Option<&BTreeSet<(TopicName, PartitionId)>>,
    ) -> Result<usize, ConsumerError> {
        let mut changes: BTreeMap<TopicId, Changes> = BTreeMap::new();
        let mut deleted = 0;
        for GroupPosition { position, .. } in self.positions(group, None).await? {
            let place = (position.topic, position.partition);
            if places.is_some_and(|places| !places.contains(&place)) {
                continue;
            }
            self.caller.may(Verb::DeleteConsumer, place.0.as_str())?;
            let topic = self.inner.catalogue.known_topic(&place.0)?;
            let change = StateChange {
                key: position_entry::key(group, place.1).into(),
                value: None,
                ends_at: NEVER,
            };
            let of_topic = changes.entry(topic.id);
            of_topic.or_insert((topic, Vec::new())).1.push(change);
            deleted += 1;
        }
        self.write_positions(&changes).await?;
        Ok(deleted)
    }

    /// Moves positions past the end of a partition back to it. Recovery may have cut off messages that a group had read, and new messages
    /// get their offsets.
    pub(super) async fn recover_positions_of(&self, topic: &Topic) -> Result<(), ConsumerError> {
        let mut moved = Vec::new();
        self.each_position(topic, &[position_entry::MARK], |group, partition, entry| {
            let end = self
                .inner
                .catalogue
                .ends(topic, partition)
                .map_or(entry.offset, |ends| ends.end);
            if entry.offset > end {
                tracing::warn!(topic = %topic.spec.name, %group, %partition, position = %entry.offset, %end, "the partition ends before the committed position; continuing at its end");
                let entry = PositionEntry { offset: end, ..entry };
                moved.push(StateChange {
                    key: position_entry::key(&group, partition).into(),
                    value: Some(StateValue::new(&entry.encode())),
                    ends_at: NEVER,
                });
            }
        })
        .await?;
        let changes = BTreeMap::from([(topic.id, (topic.clone(), moved))]);
        self.write_positions(&changes).await
    }

    async fn write_positions(
        &self,
        changes: &BTreeMap<TopicId, Changes>,
    ) -> Result<(), ConsumerError> {
        if changes.values().all(|(_, changes)| changes.is_empty()) {
            return Ok(());
        }
        let Inner {
            clock,
            consumers,
            engine,
            ..
        } = &*self.inner;
        decided(&**engine, || async {
            let mut shares: Vec<Arc<Share>> = Vec::new();
            let mut writes = Vec::new();
            for (topic, changes) in changes.values() {
                let anew = || consumers.leases.begin_anew(topic.id, clock.monotonic());
                let share = consumers.rights.take(home(topic), anew).await;
                let share = share.map_err(|error| explained(error, topic))?;
                writes.push(StateWrite {
                    group: CONSUMERS_GROUP.clone(),
                    partition: home(topic),
                    lease: share.lease().cloned(),
                    writes: Arc::new(StateWrites {
                        resets: false,
                        changes: changes.clone(),
                        adds: None,
                    }),
                });
                shares.push(share);
            }
            let transaction = Transaction {
                state: writes,
                durability: Some(Durability::Durable),
                ..Transaction::default()
            };
            let committed = Share::commit_together(&shares, &**engine, transaction).await;
            let committed: Result<Receipt, ConsumerError> = committed.map_err(Into::into);
            committed.map(drop)
        })
        .await
    }

    /// The topics that may have consumers or positions.
    async fn topics_with_entries(&self) -> Result<Vec<Topic>, ConsumerError> {
        let with = self.inner.engine.state_partitions(&CONSUMERS_GROUP).await?;
        let topics = self.inner.catalogue.topics().into_iter();
        Ok(topics.filter(|topic| with.contains(&home(topic))).collect())
    }

    async fn each_position(
        &self,
        topic: &Topic,
        prefix: &[u8],
        mut visit: impl FnMut(GroupName, PartitionId, PositionEntry),
    ) -> Result<(), ConsumerError> {
        let mut query = StateQuery {
            prefix: prefix.to_vec(),
            entries_max: PAGE_ENTRIES,
            bytes_max: PAGE_BYTES,
            ..StateQuery::default()
        };
        loop {
            let page = self
                .inner
                .engine
                .read_state(&CONSUMERS_GROUP, home(topic), &query);
            let page = page.await.map_err(|error| unread(error, topic))?;
            query.after = page.entries.last().map(|entry| entry.key.to_vec());
            for entry in &page.entries {
                let found = read_key(&entry.key);
                let position = PositionEntry::decode(entry.value.as_bytes());
                if let (Some((group, partition)), Some(position)) = (found, position) {
                    visit(group, partition, position);
                }
            }
            if !page.has_more {
                return Ok(());
            }
        }
    }
}

fn check_name(group: &GroupName) -> Result<(), ConsumerError> {
    let is_sound =
        group.kind() == GroupKind::Consumer && group.as_str().len() <= GROUP_NAME_BYTES_MAX;
    match is_sound {
        true => Ok(()),
        false => Err(ConsumerError::GroupName),
    }
}
