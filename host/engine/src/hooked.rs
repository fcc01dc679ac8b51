//! An engine in front of another one, for tests: all calls are passed on, and some go through
//! [`Hooks`], which a test can change.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_model::{
    Digest, GroupName, Offset, ProducerId, Progress, RecordBatch, Timestamp, Topic, TopicId,
    TopicName, TopicPartition, TopicSpec,
};
use tokio::sync::watch;

use crate::state::{StatePage, StateQuery, StateTable};
use crate::{
    AdoptError, Adoption, CommitError, Ends, Engine, Entry, EntryKind, Expectation, Hold, HostId,
    HostInfo, Limits, OutboxMessage, ReadError, Receipt, TopicChange, TopicError, Transaction,
    TrimError, Version, Watch,
};

/// The calls that a test may change; by default each is passed on.
#[async_trait]
#[expect(missing_docs, reason = "each is the engine's verb of the same name")]
pub trait Hooks: Send + Sync + 'static {
    /// The engine behind.
    fn engine(&self) -> &dyn Engine;

    async fn commit(&self, transaction: Transaction) -> Result<Receipt, CommitError> {
        self.engine().commit(transaction).await
    }

    async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError> {
        self.engine().read(partition, from, bytes_max).await
    }

    fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError> {
        self.engine().ends(partition)
    }

    fn limits(&self) -> Limits {
        self.engine().limits()
    }

    async fn hear(&self) -> Result<(), ReadError> {
        self.engine().hear().await
    }

    async fn claim(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Hold, CommitError> {
        self.engine().claim(group, partition).await
    }

    async fn hold(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Hold>, CommitError> {
        self.engine().hold(group, partition).await
    }

    async fn progress(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Progress>, ReadError> {
        self.engine().progress(group, partition).await
    }

    async fn trim(&self, partition: TopicPartition, before: Offset) -> Result<Offset, TrimError> {
        self.engine().trim(partition, before).await
    }
}

/// An engine whose calls go through hooks.
#[derive(Debug)]
pub struct Hooked<H>(pub Arc<H>);

#[async_trait]
impl<H: Hooks> Engine for Hooked<H> {
    async fn commit(&self, transaction: Transaction) -> Result<Receipt, CommitError> {
        self.0.commit(transaction).await
    }

    async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError> {
        self.0.read(partition, from, bytes_max).await
    }

    fn watch(&self, partition: TopicPartition) -> Result<Watch, ReadError> {
        self.0.engine().watch(partition)
    }

    fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError> {
        self.0.ends(partition)
    }

    async fn count(
        &self,
        partition: TopicPartition,
        from: Offset,
        to: Offset,
    ) -> Result<u64, ReadError> {
        self.0.engine().count(partition, from, to).await
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    async fn claim(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Hold, CommitError> {
        self.0.claim(group, partition).await
    }

    async fn hold(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Hold>, CommitError> {
        self.0.hold(group, partition).await
    }

    async fn health(&self) -> Result<(), CommitError> {
        self.0.engine().health().await
    }

    async fn adopt(&self, adoption: Adoption) -> Result<(), AdoptError> {
        self.0.engine().adopt(adoption).await
    }

    fn has_outbox(&self) -> bool {
        self.0.engine().has_outbox()
    }

    async fn outbox(&self, max: usize) -> Result<Vec<OutboxMessage>, ReadError> {
        self.0.engine().outbox(max).await
    }

    async fn refuse_outbox(&self, id: u64, why: &str) -> Result<(), CommitError> {
        self.0.engine().refuse_outbox(id, why).await
    }

    async fn release(&self, hold: Hold) -> Result<(), CommitError> {
        self.0.engine().release(hold).await
    }

    fn host(&self) -> HostId {
        self.0.engine().host()
    }

    fn hosts(&self) -> watch::Receiver<Arc<[HostInfo]>> {
        self.0.engine().hosts()
    }

    async fn state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Arc<StateTable>, ReadError> {
        self.0.engine().state(group, partition).await
    }

    fn watch_state(&self, group: &GroupName) -> watch::Receiver<u64> {
        self.0.engine().watch_state(group)
    }

    async fn read_state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
        query: &StateQuery,
    ) -> Result<StatePage, ReadError> {
        self.0.engine().read_state(group, partition, query).await
    }

    async fn init_producer(&self, name: Option<&str>) -> Result<ProducerId, CommitError> {
        self.0.engine().init_producer(name).await
    }

    async fn progress(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Progress>, ReadError> {
        self.0.progress(group, partition).await
    }

    async fn groups(&self, partition: TopicPartition) -> Result<Vec<GroupName>, ReadError> {
        self.0.engine().groups(partition).await
    }

    async fn progress_partitions(
        &self,
        group: &GroupName,
    ) -> Result<Vec<TopicPartition>, ReadError> {
        self.0.engine().progress_partitions(group).await
    }

    async fn state_partitions(&self, group: &GroupName) -> Result<Vec<TopicPartition>, ReadError> {
        self.0.engine().state_partitions(group).await
    }

    async fn create_topic(
        &self,
        spec: TopicSpec,
        expects: Vec<Expectation>,
    ) -> Result<Topic, TopicError> {
        self.0.engine().create_topic(spec, expects).await
    }

    async fn change_topics(
        &self,
        changes: Vec<(TopicName, TopicChange)>,
        expects: Vec<Expectation>,
    ) -> Result<Vec<Topic>, TopicError> {
        self.0.engine().change_topics(changes, expects).await
    }

    async fn trim(&self, partition: TopicPartition, before: Offset) -> Result<Offset, TrimError> {
        self.0.trim(partition, before).await
    }

    async fn offset_at(
        &self,
        partition: TopicPartition,
        at: Timestamp,
    ) -> Result<Option<Offset>, ReadError> {
        self.0.engine().offset_at(partition, at).await
    }

    async fn delete_topic(
        &self,
        name: &TopicName,
        expects: Vec<Expectation>,
    ) -> Result<TopicId, TopicError> {
        self.0.engine().delete_topic(name, expects).await
    }

    fn topics(&self) -> Vec<Topic> {
        self.0.engine().topics()
    }

    fn topic(&self, name: &TopicName) -> Option<Topic> {
        self.0.engine().topic(name)
    }

    fn entries(&self, kind: EntryKind) -> Vec<(String, Entry)> {
        self.0.engine().entries(kind)
    }

    fn entry(&self, kind: EntryKind, key: &str) -> Option<Entry> {
        self.0.engine().entry(kind, key)
    }

    fn version(&self, kind: EntryKind) -> Version {
        self.0.engine().version(kind)
    }

    fn watch_catalogue(&self) -> watch::Receiver<u64> {
        self.0.engine().watch_catalogue()
    }

    async fn hear(&self) -> Result<(), ReadError> {
        self.0.hear().await
    }

    async fn put_module(&self, digest: Digest, bytes: Bytes) -> Result<(), CommitError> {
        self.0.engine().put_module(digest, bytes).await
    }

    async fn module(&self, digest: Digest) -> Result<Option<Bytes>, ReadError> {
        self.0.engine().module(digest).await
    }

    async fn delete_module(
        &self,
        digest: Digest,
        expects: Vec<Expectation>,
    ) -> Result<(), CommitError> {
        self.0.engine().delete_module(digest, expects).await
    }

    async fn close(&self) {
        self.0.engine().close().await;
    }
}
