//! Mapped segments and their indexes, for all partitions: the most recently read ones are kept.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::index::Index;

/// Sealed segments that stay mapped, over all partitions, because the kernel also bounds mappings.
/// At the bound the one read longest ago is unmapped; batches read from it stay valid.
pub const MAPPED_SEGMENTS_MAX: usize = 1024;

/// A sealed segment, ready to be read.
#[derive(Clone)]
pub(crate) struct Sealed {
    pub(crate) bytes: Bytes,
    pub(crate) index: Arc<Index>,
}

/// The mapped segments.
#[derive(Default)]
pub struct SealedCache {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    segments: HashMap<PathBuf, (u64, Sealed)>,
    reads: u64,
    /// Counts removals from the cache.
    forgotten: u64,
}

impl SealedCache {
    pub(crate) fn get_or_load(
        &self,
        path: &Path,
        load: impl FnOnce() -> io::Result<Sealed>,
    ) -> io::Result<Sealed> {
        let forgotten = {
            let held = &mut *self.held.lock();
            if let Some(sealed) = held.touch(path) {
                return Ok(sealed);
            }
            held.forgotten
        };
        // Not under the lock, so that other reads continue. Mapping a segment twice is harmless.
        let sealed = load()?;
        let held = &mut *self.held.lock();
        // Otherwise the mapping may be of a file that was replaced or removed meanwhile. This
        // caller may use it, because it asked before that, but no later one may.
        if held.forgotten == forgotten {
            held.insert(path, sealed.clone());
        }
        Ok(sealed)
    }

    /// Forgets the segments under a directory that is being removed.
    pub fn forget_under(&self, dir: &Path) {
        let mut held = self.held.lock();
        held.forgotten += 1;
        held.segments.retain(|path, _| !path.starts_with(dir));
    }

    /// Forgets one segment, because another file is about to get its name. Batches read from it
    /// stay valid.
    pub(crate) fn forget(&self, path: &Path) {
        let mut held = self.held.lock();
        held.forgotten += 1;
        held.segments.remove(path);
    }

    /// The segment, if it is mapped.
    pub(crate) fn touch(&self, path: &Path) -> Option<Sealed> {
        self.held.lock().touch(path)
    }
}

impl Held {
    fn touch(&mut self, path: &Path) -> Option<Sealed> {
        self.reads += 1;
        let (read_at, sealed) = self.segments.get_mut(path)?;
        *read_at = self.reads;
        Some(sealed.clone())
    }

    fn insert(&mut self, path: &Path, sealed: Sealed) {
        if self.segments.len() >= MAPPED_SEGMENTS_MAX {
            let oldest = self.segments.iter().min_by_key(|(_, (read_at, _))| read_at);
            if let Some(oldest) = oldest.map(|(path, _)| path.clone()) {
                self.segments.remove(&oldest);
            }
        }
        self.segments.insert(path.to_owned(), (self.reads, sealed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(text: &'static str) -> Sealed {
        Sealed {
            bytes: Bytes::from_static(text.as_bytes()),
            index: Arc::new(Index::default()),
        }
    }

    #[test]
    fn what_was_replaced_while_it_was_loaded_is_not_kept() {
        let path = Path::new("0/0.log");
        let cache = SealedCache::default();
        let forget: [&dyn Fn(); 2] = [&|| cache.forget(path), &|| {
            cache.forget_under(Path::new("0"))
        }];
        for forget in forget {
            let old = cache.get_or_load(path, || {
                forget();
                Ok(sealed("old"))
            });
            assert_eq!(old.unwrap().bytes, "old");
            assert!(cache.touch(path).is_none());
        }
        let new = cache.get_or_load(path, || Ok(sealed("new")));
        assert_eq!(new.unwrap().bytes, "new");
        assert_eq!(cache.touch(path).unwrap().bytes, "new");
    }
}
