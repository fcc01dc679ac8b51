//! What this host keeps of consumers in memory, besides what is stored: leases, rights, and the
//! locks under which they change.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;

use millrace_model::TopicId;

use crate::groups::leases::Leases;
use crate::groups::rights::Rights;
use crate::groups::shapes::Key;
use crate::hosts::living::Hosts;

/// Number of locks that consumers share; two consumers with the same lock wait for each other's commits.
const LOCKS: usize = 64;

/// Consumers as far as the broker keeps them in memory.
pub(crate) struct Consumers {
    pub(super) leases: Leases,
    /// This host's leases to write them.
    pub(super) rights: Rights,
    /// Locks by consumer name, held by a change from before the first read until after the commit.
    locks: Vec<tokio::sync::Mutex<()>>,
    /// Locked while a consumer is created, inside one of the locks, so that the maximum holds.
    pub(super) making: tokio::sync::Mutex<()>,
}

impl Consumers {
    pub(crate) fn new(now: Duration, hosts: &Arc<Hosts>) -> Self {
        Self {
            leases: Leases::new(now),
            rights: Rights::new(hosts),
            locks: (0..LOCKS).map(|_| tokio::sync::Mutex::default()).collect(),
            making: tokio::sync::Mutex::default(),
        }
    }

    pub(super) async fn lock(&self, key: &Key) -> tokio::sync::MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        self.locks[hash as usize % LOCKS].lock().await
    }

    /// The topic was deleted.
    pub(crate) fn forget_topic(&self, topic: TopicId) {
        self.leases.forget_topic(topic);
        self.rights.forget_topic(topic);
    }
}
