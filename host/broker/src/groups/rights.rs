//! This host's lease to change a topic's consumers. The host that serves a request takes it from the one that has it, and keeps it
//! until another host is asked: a late commit is fenced, and reads again.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_engine::CommitError;
use millrace_engine::room::CONSUMERS_GROUP;
use millrace_model::{TopicId, TopicPartition};
use parking_lot::Mutex;

use crate::hosts::holding::{Holdings, Share};
use crate::hosts::living::Hosts;

pub(super) struct Rights {
    hosts: Arc<Hosts>,
    holdings: Arc<Holdings>,
    kept: Mutex<HashMap<TopicPartition, Arc<Share>>>,
}

impl Rights {
    pub(super) fn new(hosts: &Arc<Hosts>) -> Self {
        Self {
            hosts: Arc::clone(hosts),
            holdings: hosts.holdings(&CONSUMERS_GROUP),
            kept: Mutex::default(),
        }
    }

    /// The lease; if it was just taken, perhaps from another host, `is_new` runs before it is used.
    pub(super) async fn take(
        &self,
        home: TopicPartition,
        is_new: impl FnOnce(),
    ) -> Result<Arc<Share>, CommitError> {
        let kept = self.kept.lock().get(&home).cloned();
        if let Some(share) = kept.filter(|share| !share.is_lost()) {
            return Ok(share);
        }
        let share = self.holdings.claim(home).await?;
        let mut kept = self.kept.lock();
        let before = kept.insert(home, Arc::clone(&share));
        // Of several waiting for the same claim, one was first.
        let is_known = before.is_some_and(|before| Arc::ptr_eq(&before, &share));
        if !is_known && self.hosts.had_others() {
            is_new();
        }
        Ok(share)
    }

    /// The topic was deleted.
    pub(super) fn forget_topic(&self, topic: TopicId) {
        self.kept.lock().retain(|home, _| home.topic != topic);
    }
}
