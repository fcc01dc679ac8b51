//! The layout of a topic's directory: which files belong to which partition.
//!
//! All segments of a topic are in one directory, with the partition in their names:
//! `PARTITION-OFFSET.segment`. So thousands of partitions cost neither thousands of directories nor
//! as many listings at the start. Version 0.1 gave each partition its own directory,
//! `PARTITION/OFFSET.segment`; if there is one, the partition continues in it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use millrace_model::Offset;

use crate::disk::Disk;

pub(super) const SEGMENT_SUFFIX: &str = ".segment";
pub(super) const INDEX_SUFFIX: &str = ".index";
/// Suffix of a segment that was kept although it belongs to another partition; a number follows.
const ASIDE_SUFFIX: &str = ".misplaced-";

/// The paths of one partition's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    dir: PathBuf,
    prefix: String,
}

impl Location {
    /// In the topic's directory, for new partitions.
    #[must_use]
    pub fn new(topic_dir: &Path, partition: u32) -> Self {
        Self {
            dir: topic_dir.to_owned(),
            prefix: format!("{partition}-"),
        }
    }

    /// In its own directory, for partitions of version 0.1.
    #[must_use]
    pub fn own_dir(topic_dir: &Path, partition: u32) -> Self {
        Self {
            dir: topic_dir.join(partition.to_string()),
            prefix: String::new(),
        }
    }

    /// The directory of the files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The segment that begins with `base`.
    #[must_use]
    pub fn segment(&self, base: Offset) -> PathBuf {
        self.path(base, SEGMENT_SUFFIX)
    }

    /// The index beside that segment.
    #[must_use]
    pub fn index(&self, base: Offset) -> PathBuf {
        self.path(base, INDEX_SUFFIX)
    }

    /// The path for a segment that has this partition's name but belongs to another one.
    pub(super) fn aside(&self, base: Offset, number: u32) -> PathBuf {
        let name = file_name(base, SEGMENT_SUFFIX);
        self.file(&format!("{name}{ASIDE_SUFFIX}{number}"))
    }

    fn path(&self, base: Offset, suffix: &str) -> PathBuf {
        self.file(&file_name(base, suffix))
    }

    /// The path of a file in [`Files::names`].
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{}{name}", self.prefix))
    }
}

/// The content of a topic's directory, listed once for all its partitions.
#[derive(Debug)]
pub struct Listing {
    topic_dir: PathBuf,
    names: BTreeMap<u32, Vec<String>>,
    own_dirs: BTreeSet<u32>,
    strangers: Vec<PathBuf>,
}

/// One partition's files.
#[derive(Clone, Debug)]
pub struct Files {
    /// Where they are.
    pub location: Location,
    /// Their names without the partition.
    pub(super) names: Vec<String>,
}

impl Listing {
    /// Lists the directory; not an error if there is none.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(disk: &dyn Disk, topic_dir: &Path) -> io::Result<Self> {
        let mut listing = Self {
            topic_dir: topic_dir.to_owned(),
            names: BTreeMap::new(),
            own_dirs: BTreeSet::new(),
            strangers: Vec::new(),
        };
        for name in disk.list(topic_dir)? {
            listing.sort_in(&name);
        }
        Ok(listing)
    }

    fn sort_in(&mut self, name: &str) {
        if let Some(partition) = number(name) {
            self.own_dirs.insert(partition);
            return;
        }
        let flat = name.split_once('-');
        match flat.and_then(|(partition, rest)| Some((number(partition)?, rest))) {
            Some((partition, rest)) => {
                self.names
                    .entry(partition)
                    .or_default()
                    .push(rest.to_owned());
            }
            None => self.strangers.push(self.topic_dir.join(name)),
        }
    }

    /// A partition's files; lists the partition's own directory if it has one.
    ///
    /// # Errors
    /// The disk's.
    pub fn files(&self, disk: &dyn Disk, partition: u32) -> io::Result<Files> {
        if self.own_dirs.contains(&partition) {
            let location = Location::own_dir(&self.topic_dir, partition);
            let names = disk.list(&location.dir)?;
            return Ok(Files { location, names });
        }
        Ok(Files {
            location: Location::new(&self.topic_dir, partition),
            names: self.names.get(&partition).cloned().unwrap_or_default(),
        })
    }

    /// The partitions that have files.
    #[must_use]
    pub fn partitions(&self) -> BTreeSet<u32> {
        let flat = self.names.keys().copied();
        flat.chain(self.own_dirs.iter().copied()).collect()
    }

    /// Files that belong to no partition below `partitions`.
    #[must_use]
    pub fn strangers(&self, partitions: u32) -> Vec<PathBuf> {
        let mut strangers = self.strangers.clone();
        for partition in self.own_dirs.range(partitions..) {
            strangers.push(self.topic_dir.join(partition.to_string()));
        }
        let flat = self.names.iter().filter(|&(&partition, _)| {
            // If the partition has its own directory, files beside it are not used.
            partition >= partitions || self.own_dirs.contains(&partition)
        });
        for (partition, names) in flat {
            let location = Location::new(&self.topic_dir, *partition);
            strangers.extend(names.iter().map(|name| location.file(name)));
        }
        strangers
    }
}

impl Files {
    /// For a partition without files.
    #[must_use]
    pub fn none(location: Location) -> Self {
        Self {
            location,
            names: Vec::new(),
        }
    }

    /// Base offsets of the segments, ascending.
    #[must_use]
    pub fn segments(&self) -> Vec<Offset> {
        let bases = self.names.iter();
        let mut bases: Vec<Offset> = bases
            .filter_map(|name| base_in(name, SEGMENT_SUFFIX))
            .collect();
        bases.sort_unstable();
        bases
    }
}

/// Parses a number in the form in which this program writes it.
fn number(text: &str) -> Option<u32> {
    let number = text.parse().ok()?;
    let plain = text == "0" || !text.starts_with(['0', '+']);
    plain.then_some(number)
}

/// The base offset in one of our file names; other names with a number are not ours.
pub(super) fn base_in(name: &str, suffix: &str) -> Option<Offset> {
    let base = Offset(name.strip_suffix(suffix)?.parse().ok()?);
    (file_name(base, suffix) == name).then_some(base)
}

/// Whether this is the name of a kept segment of another partition.
pub(super) fn is_aside(name: &str) -> bool {
    name.split_once(ASIDE_SUFFIX)
        .is_some_and(|(segment, _)| base_in(segment, SEGMENT_SUFFIX).is_some())
}

fn file_name(base: Offset, suffix: &str) -> String {
    format!("{:020}{suffix}", base.0)
}

/// The first offset of a segment from its file's name, in either layout.
pub(crate) fn base_in_file_name(name: &str) -> Option<Offset> {
    let base = name.split_once('-').map_or(name, |(_, base)| base);
    base_in(base, SEGMENT_SUFFIX)
}
