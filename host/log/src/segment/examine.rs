//! Reads a whole segment for people: every batch with its position, and all damage with its range,
//! to the end of the file.

use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_model::{Offset, PartitionId, RecordBatch, Stamp, TopicId, TopicPartition};

pub use super::DamageKind;
use super::{Patience, Segment, Source, Step};
use crate::disk::{Disk, DiskFile};
use crate::inspect::ReadOnlyDisk;
use crate::journal;
use crate::partition::base_in_file_name;

/// A part of a segment, in order.
#[derive(Debug)]
pub enum Found {
    /// A valid batch.
    Batch {
        /// The batch.
        batch: RecordBatch,
        /// Its position in the file.
        position: u64,
    },
    /// Bytes that are not a batch, or not the one that belongs here.
    Damage {
        /// The bytes in the file.
        bytes: Range<u64>,
        /// The unreadable offsets. The end is [`Offset::MAX`] if it is unknown.
        offsets: Range<Offset>,
        /// What is there instead.
        kind: DamageKind,
    },
}

/// Why a file is not shown as a segment.
#[derive(Debug, thiserror::Error)]
pub enum NotShown {
    /// It is not a segment.
    #[error("{} is not a segment: {reason}", path.display())]
    NotASegment {
        /// The file's path.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// It cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Io {
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// A segment file on its own, without the partition that it belongs to.
pub struct SegmentFile {
    segment: Segment,
}

impl SegmentFile {
    /// Opens a file, read-only. Its first offset comes from its name, or for a copy under another
    /// name, from its first batch.
    ///
    /// # Errors
    /// [`NotShown`]. A damaged segment is not an error as long as any part of it is valid.
    pub fn open(path: &Path) -> Result<Self, NotShown> {
        let io = |source| NotShown::Io {
            path: path.to_owned(),
            source,
        };
        let none = |reason| NotShown::NotASegment {
            path: path.to_owned(),
            reason,
        };
        if path.is_dir() {
            return Err(none("it is a directory; name one of the files in it"));
        }
        let file = ReadOnlyDisk.open(path).map_err(io)?;
        let mut beginning = [0; 8];
        file.read_at(&mut beginning, 0).map_err(io)?;
        if journal::examine::begins_file(&beginning) {
            return Err(none(
                "it is a file of the journal; `millrace doctor` examines it",
            ));
        }
        let base = base_in_name(path).unwrap_or_else(|| Offset(u64::from_be_bytes(beginning)));
        let bytes = file.length().map_err(io)?;
        let stamp = partition_of(path).map(Stamp::of);
        let segment = whole(file, stamp, base..Offset::MAX, bytes);
        let mut first = None;
        walk::<io::Error>(&segment, |found| {
            first = Some(found);
            Ok(ControlFlow::Break(()))
        })
        .map_err(io)?;
        match first {
            Some(Found::Damage {
                bytes: range,
                kind: DamageKind::Changed,
                ..
            }) if range.end == bytes => Err(none(
                "no sound record batch is in it that could belong there",
            )),
            _ => Ok(Self { segment }),
        }
    }

    /// Bytes of the file.
    #[must_use]
    pub fn byte_count(&self) -> u64 {
        self.segment.bytes
    }

    /// Shows everything in it, until `visit` ends it.
    ///
    /// # Errors
    /// What `visit` returns, or the disk's error.
    pub fn walk<E: From<io::Error>>(
        &self,
        visit: impl FnMut(Found) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        walk(&self.segment, visit)
    }
}

/// The partition of a file, from its path in a data directory:
/// `topics/TOPIC/PARTITION-OFFSET.segment`, or in version 0.1
/// `topics/TOPIC/PARTITION/OFFSET.segment`.
fn partition_of(path: &Path) -> Option<TopicPartition> {
    let path = std::path::absolute(path).ok()?;
    let name = path.file_name()?.to_str()?;
    base_in_file_name(name)?;
    let (partition, topic_dir) = match name.split_once('-') {
        Some((partition, _)) => (partition, path.parent()?),
        None => {
            let own_dir = path.parent()?;
            (own_dir.file_name()?.to_str()?, own_dir.parent()?)
        }
    };
    let in_topics = topic_dir.parent()?.file_name()? == "topics";
    let topic = topic_dir.file_name()?.to_str()?.parse().ok()?;
    in_topics.then_some(TopicPartition {
        topic: TopicId(topic),
        partition: PartitionId(partition.parse().ok()?),
    })
}

fn base_in_name(path: &Path) -> Option<Offset> {
    base_in_file_name(path.file_name()?.to_str()?)
}

/// A segment's file with offsets `base..end` in `bytes` bytes, of the partition with this stamp.
pub(crate) fn whole(
    file: Arc<dyn DiskFile>,
    stamp: Option<Stamp>,
    Range { start: base, end }: Range<Offset>,
    bytes: u64,
) -> Segment {
    Segment {
        source: Source::File(file),
        base,
        end,
        bytes,
        patience: Patience::Waits,
        stamp,
    }
}

pub(crate) fn walk<E: From<io::Error>>(
    segment: &Segment,
    mut visit: impl FnMut(Found) -> Result<ControlFlow<()>, E>,
) -> Result<(), E> {
    let mut cursor = segment.cursor_at(None);
    // Without a known end, the segment ends at the file's end.
    while segment.end < Offset::MAX || cursor.position < segment.bytes {
        let start = cursor.position;
        let found = match cursor.step()? {
            Step::Batch { batch, position } => Found::Batch { batch, position },
            Step::Damage { from, to, kind } => Found::Damage {
                bytes: start..cursor.position,
                offsets: from..to,
                kind,
            },
            Step::End => break,
        };
        if visit(found)?.is_break() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_model::{BatchBuilder, Message};

    fn batches(bases: Range<u64>) -> Vec<RecordBatch> {
        let batch = |base| {
            let mut builder = BatchBuilder::with_capacity(0);
            (0..10).for_each(|_| builder.push(&Message::default()));
            builder.finish().unwrap().at_offset(Offset(base * 10))
        };
        bases.map(batch).collect()
    }

    fn shown(bytes: &[u8], name: &str) -> Result<Vec<(u64, u64, bool)>, NotShown> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut all = Vec::new();
        SegmentFile::open(&path)?
            .walk::<io::Error>(|found| {
                all.push(match found {
                    Found::Batch { batch, .. } => {
                        (batch.base_offset().0, batch.end_offset().0, true)
                    }
                    Found::Damage { offsets, .. } => (offsets.start.0, offsets.end.0, false),
                });
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        Ok(all)
    }

    #[test]
    fn damage_is_shown_with_its_range_and_what_follows_is_shown_too() {
        let batches = batches(2..6);
        let size = batches[0].byte_count();
        let mut bytes: Vec<u8> = batches.iter().flat_map(|b| b.bytes().to_vec()).collect();
        for name in [
            "00000000000000000020.segment",
            "7-00000000000000000020.segment",
            "a copy",
        ] {
            let all = [20, 30, 40, 50].map(|base| (base, base + 10, true));
            assert_eq!(shown(&bytes, name).unwrap(), all);
        }
        bytes[size + 70] ^= 1;
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let found = shown(&bytes, "00000000000000000020.segment").unwrap();
        let end = Offset::MAX.0;
        assert_eq!(
            found,
            [
                (20, 30, true),
                (30, 40, false),
                (40, 50, true),
                (50, end, false)
            ]
        );
    }

    #[test]
    fn files_that_are_no_segments_are_told_apart_from_damaged_ones() {
        for bytes in [&[7; 5000][..], b"MRJRNL01 and so on", b"text"] {
            let refused = shown(bytes, "00000000000000000000.segment").unwrap_err();
            assert!(matches!(refused, NotShown::NotASegment { .. }), "{refused}");
        }
        assert_eq!(shown(b"", "empty").unwrap(), []);
    }
}
