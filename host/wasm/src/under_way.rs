//! Modules that are being made callable. All who need the same module wait for one compile, and share what it made.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_broker::handler::Compiling;
use millrace_model::{Digest, Timestamp};
use parking_lot::Mutex;

use crate::module::Module;

/// What is under way, by digest.
#[derive(Default)]
pub(crate) struct UnderWay(Mutex<HashMap<Digest, Arc<Making>>>);

/// One module on its way from bytes to code.
struct Making {
    progress: Mutex<Compiling>,
    /// Locked by whoever makes it. If that fails, the next one tries.
    made: tokio::sync::Mutex<Option<Made>>,
}

/// A module, and how long its compile took.
#[derive(Clone)]
pub(crate) struct Made {
    pub(crate) module: Arc<Module>,
    pub(crate) compiled: Duration,
}

/// A place among those who need the module; the last to leave ends the entry.
pub(crate) struct Place<'a> {
    all: &'a UnderWay,
    digest: Digest,
    making: Arc<Making>,
}

impl UnderWay {
    /// Joins those who need the module.
    pub(crate) fn join(&self, digest: Digest, now: Timestamp) -> Place<'_> {
        let mut all = self.0.lock();
        let making = all.entry(digest).or_insert_with(|| {
            Arc::new(Making {
                progress: Mutex::new(Compiling {
                    since: now,
                    begun_at: None,
                }),
                made: tokio::sync::Mutex::default(),
            })
        });
        Place {
            all: self,
            digest,
            making: Arc::clone(making),
        }
    }

    /// How far a module is, if it is under way.
    pub(crate) fn progress(&self, digest: &Digest) -> Option<Compiling> {
        let making = self.0.lock().get(digest).cloned();
        making.map(|making| *making.progress.lock())
    }
}

impl Place<'_> {
    /// What was made, once nobody else is making it. The caller who finds nothing makes it, while it keeps the guard.
    pub(crate) async fn made(&self) -> tokio::sync::MutexGuard<'_, Option<Made>> {
        self.making.made.lock().await
    }

    /// The compiler begins, or begins again in the slow lane.
    pub(crate) fn begins(&self, now: Timestamp) {
        self.making.progress.lock().begun_at.get_or_insert(now);
    }

    /// The compile failed; whoever is next waits for a turn of its own.
    pub(crate) fn failed(&self) {
        self.making.progress.lock().begun_at = None;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        // The map's and this one.
        if Arc::strong_count(&self.making) == 2 {
            all.remove(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_entry_lasts_as_long_as_somebody_needs_the_module_and_says_when_its_compile_began() {
        let (all, digest) = (UnderWay::default(), Digest([7; 32]));
        let first = all.join(digest, Timestamp(10));
        let second = all.join(digest, Timestamp(20));
        let progress = |begun_at| {
            Some(Compiling {
                since: Timestamp(10),
                begun_at,
            })
        };
        assert_eq!(all.progress(&digest), progress(None));
        let guard = first.made().await;
        first.begins(Timestamp(30));
        first.begins(Timestamp(40));
        assert_eq!(all.progress(&digest), progress(Some(Timestamp(30))));
        first.failed();
        drop(guard);
        drop(first);
        assert!(second.made().await.is_none());
        assert_eq!(all.progress(&digest), progress(None));
        drop(second);
        assert_eq!(all.progress(&digest), None);
    }
}
