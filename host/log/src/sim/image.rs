//! The content of the simulated disk: files and names, and the unsynced changes of both. Cheap to
//! clone: bytes are shared until they change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

/// The whole disk at one moment, page cache included.
#[derive(Clone, Default)]
pub struct Image {
    pub(super) files: BTreeMap<u64, SimFile>,
    pub(super) names: BTreeMap<PathBuf, Node>,
    pub(super) durable_names: BTreeMap<PathBuf, Node>,
    pub(super) pending_names: Vec<(u64, NameChange)>,
    pub(super) next_file: u64,
    /// The parent of the first created directory.
    pub(super) root: Option<PathBuf>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Dir,
    File(u64),
}

#[derive(Clone, Default)]
pub(super) struct SimFile {
    pub(super) now: Arc<Vec<u8>>,
    pub(super) durable: Arc<Vec<u8>>,
    /// Unsynced changes, each with the number of its operation.
    pub(super) unsynced: Vec<(u64, Change)>,
    pub(super) reserved: u64,
    /// Failed syncs; each handle that was open then reports one once.
    pub(super) failed_syncs: u32,
    /// Open handles; a file without a name exists as long as it is open.
    pub(super) open: usize,
}

#[derive(Clone)]
pub(super) enum Change {
    Write { at: usize, bytes: Bytes },
    Length(usize),
}

#[derive(Clone)]
pub(super) enum NameChange {
    Set(PathBuf, Node),
    Rename(PathBuf, PathBuf, Node),
    Remove(PathBuf),
}

impl NameChange {
    pub(super) fn dir(&self) -> Option<&Path> {
        match self {
            Self::Set(path, _) | Self::Remove(path) | Self::Rename(_, path, _) => path.parent(),
        }
    }

    pub(super) fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Self::Set(path, node) => {
                names.insert(path.clone(), *node);
            }
            Self::Rename(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }
}

impl SimFile {
    pub(super) fn apply(bytes: &mut Arc<Vec<u8>>, change: &Change) {
        let bytes = Arc::make_mut(bytes);
        match change {
            Change::Length(length) => bytes.resize(*length, 0),
            Change::Write { at, bytes: written } => {
                let end = at + written.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(written);
            }
        }
    }

    pub(super) fn change(&mut self, number: u64, change: Change) {
        Self::apply(&mut self.now, &change);
        self.unsynced.push((number, change));
    }

    pub(super) fn sync(&mut self) {
        for (_, change) in self.unsynced.drain(..) {
            Self::apply(&mut self.durable, &change);
        }
    }

    /// A sync fails: its data is lost, but can still be read.
    pub(super) fn drop_pages(&mut self) {
        self.unsynced.clear();
        self.failed_syncs += 1;
    }

    pub(super) fn room(&self) -> u64 {
        self.reserved.max(self.now.len() as u64)
    }
}

impl Image {
    pub(super) fn file_id(&self, path: &Path) -> Option<u64> {
        match self.names.get(path)? {
            Node::File(file) => Some(*file),
            Node::Dir => None,
        }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.files.values().map(SimFile::room).sum()
    }

    /// Whether a power cut would lose nothing.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let settled = |file: &SimFile| file.unsynced.is_empty() && file.now == file.durable;
        self.pending_names.is_empty() && self.files.values().all(settled)
    }

    pub(super) fn change_name(&mut self, number: u64, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push((number, change));
        self.drop_unnamed();
    }

    /// Creates the directory and those above it. The very first one, with those above it, is where
    /// the disk is mounted, and counts as durable.
    pub(super) fn create_dirs(&mut self, number: u64, path: &Path) {
        if self.root.is_none() {
            self.root = path.parent().map(Path::to_owned);
            for dir in path.ancestors() {
                self.names.insert(dir.to_owned(), Node::Dir);
                self.durable_names.insert(dir.to_owned(), Node::Dir);
            }
        }
        let missing = path
            .ancestors()
            .take_while(|p| !self.names.contains_key(*p));
        let missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        for dir in missing.into_iter().rev() {
            self.change_name(number, NameChange::Set(dir, Node::Dir));
        }
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) {
        let (ours, others) = std::mem::take(&mut self.pending_names)
            .into_iter()
            .partition(|(_, change)| change.dir() == Some(dir));
        self.pending_names = others;
        let ours: Vec<(u64, NameChange)> = ours;
        for (_, change) in &ours {
            change.apply(&mut self.durable_names);
        }
        self.drop_unnamed();
    }

    pub(super) fn sync_all(&mut self) {
        self.files.values_mut().for_each(SimFile::sync);
        self.pending_names.clear();
        self.durable_names.clone_from(&self.names);
        self.drop_unnamed();
    }

    /// Removes files that have no name, now or after a power cut, and are not open.
    pub(super) fn drop_unnamed(&mut self) {
        let nodes = self.names.values().chain(self.durable_names.values());
        let pending = self.pending_names.iter().filter_map(|(_, c)| match c {
            NameChange::Set(_, node) | NameChange::Rename(_, _, node) => Some(node),
            NameChange::Remove(_) => None,
        });
        let named = nodes.chain(pending).filter_map(|node| match node {
            Node::File(file) => Some(*file),
            Node::Dir => None,
        });
        let named: std::collections::HashSet<u64> = named.collect();
        self.files
            .retain(|file, f| f.open > 0 || named.contains(file));
    }

    /// Closes all files.
    pub fn close_all(&mut self) {
        self.files.values_mut().for_each(|file| file.open = 0);
        self.drop_unnamed();
    }

    /// Moves everything under `from` to `to`, for a copy to be opened elsewhere.
    pub fn relocate(&mut self, from: &Path, to: &Path) {
        let moved = |path: &Path| match path.strip_prefix(from) {
            Ok(below) if below.as_os_str().is_empty() => to.to_owned(),
            Ok(below) => to.join(below),
            Err(_) => path.to_owned(),
        };
        for names in [&mut self.names, &mut self.durable_names] {
            let old = std::mem::take(names);
            names.extend(old.iter().map(|(path, node)| (moved(path), *node)));
        }
        for (_, change) in &mut self.pending_names {
            match change {
                NameChange::Set(path, _) | NameChange::Remove(path) => *path = moved(path),
                NameChange::Rename(old, new, _) => (*old, *new) = (moved(old), moved(new)),
            }
        }
        self.root = self.root.as_deref().map(moved);
    }

    /// A fingerprint of what a start would find after a power cut that loses all pending changes:
    /// equal images need not be recovered twice.
    #[must_use]
    pub fn durable_fingerprint(&self) -> u64 {
        let mut sums = [0, 0x5bd1_e995];
        for (path, node) in &self.durable_names {
            for sum in &mut sums {
                *sum = crc32c::crc32c_append(*sum, path.as_os_str().as_encoded_bytes());
                if let Node::File(file) = node
                    && let Some(file) = self.files.get(file)
                {
                    *sum = crc32c::crc32c_append(*sum, &file.durable);
                }
            }
        }
        u64::from(sums[0]) << 32 | u64::from(sums[1])
    }
}
