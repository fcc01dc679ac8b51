//! The right of this host to change a topic's consumers. A host that is asked takes it from the one that has it, and keeps it until another
//! one is asked: whoever commits late is fenced, and reads again.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_engine::CommitError;
use millrace_engine::room::CONSUMERS_GROUP;
use millrace_model::{TopicId, TopicPartition};
use parking_lot::Mutex;

use crate::dispatch::holding::{Holdings, Hosts, Share};

pub(super) struct Rights {
    hosts: Arc<Hosts>,
    holdings: Arc<Holdings>,
    kept: Mutex<HashMap<TopicPartition, Arc<Share>>>,
}

/// A right, once it is there.
pub(super) struct Right {
    pub(super) share: Arc<Share>,
    /// Whether it was taken just now, maybe from another host.
    pub(super) is_new_among_several: bool,
}

impl Rights {
    pub(super) fn new(hosts: &Arc<Hosts>) -> Self {
        Self {
            hosts: Arc::clone(hosts),
            holdings: hosts.holdings(CONSUMERS_GROUP),
            kept: Mutex::default(),
        }
    }

    pub(super) async fn take(&self, home: TopicPartition) -> Result<Right, CommitError> {
        let kept = self.kept.lock().get(&home).cloned();
        if let Some(share) = kept.filter(|share| !share.is_lost()) {
            return Ok(Right {
                share,
                is_new_among_several: false,
            });
        }
        let share = self.holdings.claim(home).await?;
        self.kept.lock().insert(home, Arc::clone(&share));
        Ok(Right {
            share,
            is_new_among_several: !self.hosts.are_one(),
        })
    }

    /// Its topic is gone.
    pub(super) fn forget_topic(&self, topic: TopicId) {
        self.kept.lock().retain(|home, _| home.topic != topic);
    }
}
