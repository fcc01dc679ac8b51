//! Finds the route that answers a path, also one that another host has just set: a client behind a balancer comes to any host.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millrace_engine::EntryKind;
use millrace_model::RoutePath;
use tokio::sync::{Mutex, Notify};

use super::handle::Routes;
use crate::catalogue::deciding::hear;

/// How long a request waits for this host to load the component of a route that another host has set.
const LOADED_WAIT: Duration = Duration::from_secs(5);

/// What requests to unknown paths wait for.
#[derive(Debug, Default)]
pub(super) struct Finding {
    /// Held while the store is asked for other hosts' changes.
    asking: Mutex<()>,
    /// How many times it was asked, begun included.
    asked: AtomicU64,
    /// Tells all who wait that this host knows another route, or another form of one.
    pub(super) learned: Notify,
}

impl Routes {
    /// The route that answers this path here: the longest that covers it.
    #[must_use]
    pub fn covering(&self, path: &str) -> Option<RoutePath> {
        longest(self.inner.all.read().keys(), path).cloned()
    }

    /// As [`Routes::covering`]. If this host knows none, it asks whether another host has just set one and waits until that is loaded, for 5
    /// seconds at most; then [`Routes::serve`] says that it is being loaded. If the store does not answer, what this host knows counts.
    pub async fn found(&self, path: &str) -> Option<RoutePath> {
        if let Some(known) = self.covering(path) {
            return Some(known);
        }
        self.hear_with_others().await;
        let stored = self.inner.engine.entries(EntryKind::Route);
        let stored: Vec<RoutePath> = stored
            .iter()
            .filter_map(|(key, _)| RoutePath::parse(key).ok())
            .collect();
        let stored = longest(stored.iter(), path)?;
        self.inner.news.notify_one();
        let loaded = async {
            loop {
                let learned = self.inner.finding.learned.notified();
                if let Some(known) = self.covering(path) {
                    return known;
                }
                learned.await;
            }
        };
        let loaded = tokio::time::timeout(LOADED_WAIT, loaded).await;
        Some(loaded.unwrap_or_else(|_| stored.clone()))
    }

    /// Asks the store for other hosts' changes, once for all who wait: paths that do not exist are asked for by whoever scans the network.
    async fn hear_with_others(&self) {
        let Finding { asking, asked, .. } = &self.inner.finding;
        let before = asked.load(Ordering::SeqCst);
        let _turn = asking.lock().await;
        // One that began after this request came has ended.
        if asked.load(Ordering::SeqCst) == before {
            asked.fetch_add(1, Ordering::SeqCst);
            hear(&*self.inner.engine).await;
        }
    }
}

fn longest<'a>(routes: impl Iterator<Item = &'a RoutePath>, path: &str) -> Option<&'a RoutePath> {
    let covering = routes.filter(|route| route.covers(path));
    covering.max_by_key(|route| route.as_str().len())
}
