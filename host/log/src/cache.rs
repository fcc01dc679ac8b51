//! Mapped segments and their indexes, for all partitions together: the most recently read ones stay.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::index::Index;

/// Sealed segments that stay mapped, of all partitions together; the kernel has a bound on mappings, too. The one read longest
/// ago goes first; batches read from it stay valid.
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
}

impl SealedCache {
    pub(crate) fn get_or_load(
        &self,
        path: &Path,
        load: impl FnOnce() -> io::Result<Sealed>,
    ) -> io::Result<Sealed> {
        if let Some(sealed) = self.touch(path) {
            return Ok(sealed);
        }
        // Not under the lock: others read on meanwhile, and mapping a segment twice at once is harmless.
        let sealed = load()?;
        self.insert(path, sealed.clone());
        Ok(sealed)
    }

    /// Forgets the segments under a directory that is being removed.
    pub fn forget_under(&self, dir: &Path) {
        let mut held = self.held.lock();
        held.segments.retain(|path, _| !path.starts_with(dir));
    }

    /// Forgets one segment: what has its name next is another file. Batches read from it stay valid.
    pub(crate) fn forget(&self, path: &Path) {
        self.held.lock().segments.remove(path);
    }

    /// The segment, if it is mapped.
    pub(crate) fn touch(&self, path: &Path) -> Option<Sealed> {
        let held = &mut *self.held.lock();
        held.reads += 1;
        let (read_at, sealed) = held.segments.get_mut(path)?;
        *read_at = held.reads;
        Some(sealed.clone())
    }

    fn insert(&self, path: &Path, sealed: Sealed) {
        let held = &mut *self.held.lock();
        if held.segments.len() >= MAPPED_SEGMENTS_MAX {
            let oldest = held.segments.iter().min_by_key(|(_, (read_at, _))| read_at);
            if let Some(oldest) = oldest.map(|(path, _)| path.clone()) {
                held.segments.remove(&oldest);
            }
        }
        held.segments.insert(path.to_owned(), (held.reads, sealed));
    }
}
