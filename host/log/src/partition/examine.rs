//! Examines one partition's files without opening the partition: reads every batch, and compares
//! everything with the mark.

use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use millrace_model::batch::HEADER_BYTES;
use millrace_model::{Offset, Stamp, TopicPartition};

use super::encryption::key_id;
use super::layout::{INDEX_SUFFIX, SEGMENT_SUFFIX, base_in, is_aside};
use super::leftovers::Leftovers;
use super::place::is_of;
use super::{Files, Listing, Mark};
use crate::disk::Disk;
use crate::index::Index;
use crate::inspect::{ReadOnlyDisk, read_whole};
use crate::segment::DamageKind;
use crate::segment::examine::{Found, walk, whole};

/// An event of the examination, in order.
#[derive(Debug)]
pub enum Met {
    /// Bytes of segments read since the last event of this kind.
    Read(u64),
    /// A valid batch, with the id of its encryption key, if any.
    Batch(Option<u32>),
    /// Something that differs from what was written, or is not needed.
    Fault(Fault),
}

/// A single problem.
#[derive(Debug)]
pub struct Fault {
    /// The file's path.
    pub path: PathBuf,
    /// The bytes in it, if the problem is about a part.
    pub bytes: Option<Range<u64>>,
    /// The affected offsets, if any. The end is [`Offset::MAX`] if it is unknown.
    pub offsets: Option<Range<Offset>>,
    /// The kind of problem.
    pub kind: FaultKind,
}

/// Kinds of faults.
#[derive(Debug)]
pub enum FaultKind {
    /// Bytes differ from what was written.
    Damaged,
    /// The data belongs to another topic or partition.
    Misplaced,
    /// A segment that the partition does not need, and that belongs to another topic or partition.
    Foreign,
    /// Such a segment, kept by a start under this name.
    SetAside,
    /// The file, or its end, is missing.
    Missing,
    /// The disk gave an error.
    Unreadable(io::Error),
    /// The index has wrong positions, although its checksum is right.
    IndexMisleads,
    /// The index is damaged; reading builds a new one in memory.
    IndexDamaged,
    /// An index without its segment.
    IndexAlone,
    /// Bytes after the last message of a sealed segment.
    PastEnd,
    /// Bytes that the checkpoint does not know yet: the journal has them.
    AfterMark,
    /// A segment that the checkpoint does not know yet: the journal has it.
    AfterCheckpoint,
    /// The number of messages in a compacted partition that a later message with the same key
    /// should have replaced.
    Superseded(u64),
    /// Not a partition's file.
    Stray,
}

/// Totals of what was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Segment files.
    pub segments: u64,
    /// Sound batches.
    pub batches: u64,
    /// Messages in them.
    pub messages: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// Reads all files of a partition. Without a mark, their extent is determined from the files
/// themselves.
///
/// # Errors
/// Only if the directory cannot be listed; all other errors of the disk are a [`Fault`].
pub fn examine(
    listing: &Listing,
    partition: TopicPartition,
    mark: Option<Mark>,
    visit: &mut dyn FnMut(Met),
) -> io::Result<Sums> {
    let files = listing.files(&ReadOnlyDisk, partition.partition.0)?;
    let bases = files.segments();
    let mark = match mark {
        Some(mark) => mark,
        None => guessed_mark(&files, &bases)?,
    };
    let mut examination = Examination {
        files,
        stamp: Stamp::of(partition),
        mark,
        visit,
        sums: Sums::default(),
        leftovers: Leftovers::before(mark.clean),
    };
    examination.look_at_names(&bases);
    examination.look_at_segments(&bases);
    examination.look_at_leftovers();
    Ok(examination.sums)
}

fn guessed_mark(files: &Files, bases: &[Offset]) -> io::Result<Mark> {
    let (Some(&first), Some(&last)) = (bases.first(), bases.last()) else {
        return Ok(Mark::default());
    };
    Ok(Mark {
        start: first,
        end: Offset::MAX,
        segment: last,
        bytes: ReadOnlyDisk.open(&files.location.segment(last))?.length()?,
        ..Mark::default()
    })
}

struct Examination<'a> {
    files: Files,
    stamp: Stamp,
    mark: Mark,
    visit: &'a mut dyn FnMut(Met),
    sums: Sums,
    leftovers: Leftovers,
}

impl Examination<'_> {
    fn fault(
        &mut self,
        path: PathBuf,
        bytes: Option<Range<u64>>,
        offsets: Option<Range<Offset>>,
        kind: FaultKind,
    ) {
        (self.visit)(Met::Fault(Fault {
            path,
            bytes,
            offsets,
            kind,
        }));
    }

    fn look_at_names(&mut self, bases: &[Offset]) {
        for name in std::mem::take(&mut self.files.names) {
            let kind = match base_in(&name, INDEX_SUFFIX) {
                Some(base) if bases.contains(&base) => continue,
                Some(_) => FaultKind::IndexAlone,
                None if is_aside(&name) => FaultKind::SetAside,
                None if base_in(&name, SEGMENT_SUFFIX).is_some() => continue,
                None => FaultKind::Stray,
            };
            self.fault(self.files.location.file(&name), None, None, kind);
        }
    }

    fn look_at_segments(&mut self, bases: &[Offset]) {
        let Mark {
            start,
            end,
            segment: active,
            bytes: active_bytes,
            ..
        } = self.mark;
        let written = |&base: &Offset| base < active || (base == active && active_bytes > 0);
        let (known, later): (Vec<Offset>, Vec<Offset>) = bases.iter().copied().partition(written);
        let first = known.first().copied().unwrap_or(end);
        if start < first {
            let dir = self.files.location.dir().to_owned();
            self.fault(dir, None, Some(start..first), FaultKind::Missing);
        }
        let has_active = known.last() == Some(&active);
        if active_bytes > 0 && !has_active && !known.is_empty() {
            let path = self.files.location.segment(active);
            self.fault(path, None, Some(active..end), FaultKind::Missing);
        }
        for (at, &base) in known.iter().enumerate() {
            let next = known.get(at + 1).copied().unwrap_or(active);
            if base == active {
                self.look_at(base, end, Some(active_bytes));
            } else if next > start {
                self.look_at(base, next, None);
            } else if self.is_foreign(base) {
                let path = self.files.location.segment(base);
                self.fault(path, None, None, FaultKind::Foreign);
            }
        }
        for base in later {
            let path = self.files.location.segment(base);
            let kind = match self.is_foreign(base) {
                true => FaultKind::Foreign,
                false => FaultKind::AfterCheckpoint,
            };
            self.fault(path, None, None, kind);
        }
    }

    fn look_at_leftovers(&mut self) {
        let leftovers = std::mem::replace(&mut self.leftovers, Leftovers::before(Offset(0)));
        for (path, count, offsets) in leftovers.found() {
            self.fault(path, None, Some(offsets), FaultKind::Superseded(count));
        }
    }

    fn is_foreign(&self, base: Offset) -> bool {
        let mut header = [0; HEADER_BYTES];
        let file = ReadOnlyDisk.open(&self.files.location.segment(base));
        let count = file.and_then(|file| file.read_at(&mut header, 0));
        count.is_ok_and(|count| !is_of(&header[..count], self.stamp))
    }

    /// Examines one segment with offsets `base..end`; of the active one, only the bytes that the
    /// mark counts.
    fn look_at(&mut self, base: Offset, end: Offset, marked_bytes: Option<u64>) {
        let path = self.files.location.segment(base);
        if let Err(error) = self.read(&path, base, end, marked_bytes) {
            self.fault(path, None, Some(base..end), FaultKind::Unreadable(error));
        }
    }

    fn read(
        &mut self,
        path: &Path,
        base: Offset,
        end: Offset,
        marked_bytes: Option<u64>,
    ) -> io::Result<()> {
        let file = ReadOnlyDisk.open(path)?;
        let length = file.length()?;
        let segment = whole(
            file,
            Some(self.stamp),
            base..end,
            marked_bytes.unwrap_or(length),
        );
        let mut guide = marked_bytes.is_none().then(|| self.index(base, length));
        let mut read = 0;
        self.sums.segments += 1;
        self.sums.bytes += length;
        self.leftovers.begin(path);
        walk::<io::Error>(&segment, |found| {
            let reached = match found {
                Found::Batch { batch, position } => {
                    (self.visit)(Met::Batch(key_id(&batch)));
                    self.sums.batches += 1;
                    self.sums.messages += batch.message_count() as u64;
                    self.leftovers.note(&batch);
                    if let Some(Guide::Index(index)) = &mut guide {
                        index.check(batch.base_offset(), position);
                    }
                    position + batch.byte_count() as u64
                }
                Found::Damage {
                    bytes,
                    offsets,
                    kind,
                } => {
                    let reached = bytes.end;
                    if let Some(Guide::Index(index)) = &mut guide {
                        index.after_damage = true;
                    }
                    self.damaged(path, length, bytes, offsets, kind);
                    reached
                }
            };
            (self.visit)(Met::Read(reached.min(length).saturating_sub(read)));
            read = reached.min(length);
            Ok(ControlFlow::Continue(()))
        })?;
        if segment.bytes < length {
            let after = Some(segment.bytes..length);
            self.fault(path.to_owned(), after, None, FaultKind::AfterMark);
        }
        (self.visit)(Met::Read(length.saturating_sub(read)));
        if let Some(kind) = guide.and_then(Guide::verdict) {
            self.fault(self.files.location.index(base), None, None, kind);
        }
        Ok(())
    }

    fn damaged(
        &mut self,
        path: &Path,
        length: u64,
        bytes: Range<u64>,
        offsets: Range<Offset>,
        kind: DamageKind,
    ) {
        let kind = match kind {
            _ if offsets.is_empty() => FaultKind::PastEnd,
            DamageKind::Misplaced => FaultKind::Misplaced,
            DamageKind::Changed if bytes.start >= length => FaultKind::Missing,
            DamageKind::Changed => FaultKind::Damaged,
        };
        let offsets = Some(offsets).filter(|offsets| !offsets.is_empty());
        self.fault(path.to_owned(), Some(bytes), offsets, kind);
    }

    fn index(&self, base: Offset, segment_bytes: u64) -> Guide {
        let path = self.files.location.index(base);
        let stored = ReadOnlyDisk.open(&path);
        match stored.and_then(|file| read_whole(&*file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Guide::None,
            Err(_) => Guide::Damaged,
            Ok(bytes) => Index::decode(&bytes, segment_bytes).map_or(Guide::Damaged, |index| {
                Guide::Index(Checked {
                    index,
                    last: None,
                    after_damage: false,
                    misleads: false,
                })
            }),
        }
    }
}

/// The index beside a sealed segment.
enum Guide {
    /// There is none, which is no problem: it is built when the segment is read.
    None,
    Damaged,
    Index(Checked),
}

impl Guide {
    fn verdict(self) -> Option<FaultKind> {
        match self {
            Self::None => None,
            Self::Damaged => Some(FaultKind::IndexDamaged),
            Self::Index(checked) => checked.misleads.then_some(FaultKind::IndexMisleads),
        }
    }
}

/// An index whose entries are compared with the batches as they are read.
struct Checked {
    index: Index,
    last: Option<(Offset, u64)>,
    /// Whether entries may belong to batches that can no longer be read.
    after_damage: bool,
    misleads: bool,
}

impl Checked {
    /// Checks that the entry for a batch is its own or that of an earlier batch.
    fn check(&mut self, base: Offset, position: u64) {
        let entry = self.index.before(base);
        if entry != self.last {
            let (own, of_damaged) = entry.map_or((false, false), |(offset, at)| {
                let own = (offset, at) == (base, position);
                (own, offset < base && at < position)
            });
            self.misleads |= !(own || self.after_damage && of_damaged);
            self.last = entry;
        }
        self.after_damage = false;
    }
}
