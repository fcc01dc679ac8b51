//! Determines the extent of a partition's files from the files alone, if the checkpoint is lost.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;

use millrace_model::{Offset, Stamp, TopicPartition};

use super::{Listing, Mark};
use crate::disk::Disk;
use crate::inspect::ReadOnlyDisk;
use crate::segment::examine::{Found, walk, whole};

/// The content of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Their extent.
    pub mark: Mark,
    /// The segment at the mark, if it continues after it.
    pub cut: Option<PathBuf>,
    /// Segments that begin after the mark.
    pub after: Vec<PathBuf>,
}

/// Reads the partition's files, except messages from `journal_from` on, which the journal has.
///
/// # Errors
/// The disk's.
pub fn told(
    listing: &Listing,
    partition: TopicPartition,
    journal_from: Option<Offset>,
) -> io::Result<Told> {
    let files = listing.files(&ReadOnlyDisk, partition.partition.0)?;
    let stamp = Some(Stamp::of(partition));
    let bases = files.segments();
    let limit = journal_from.unwrap_or(Offset::MAX);
    let before = bases.partition_point(|&base| base < limit);
    let (kept, after) = bases.split_at(before);
    let after = after.iter().map(|&base| files.location.segment(base));
    let mut told = Told {
        mark: Mark::default(),
        cut: None,
        after: after.collect(),
    };
    if let (Some(&first), Some(&last)) = (kept.first(), kept.last()) {
        let path = files.location.segment(last);
        let file = ReadOnlyDisk.open(&path)?;
        let length = file.length()?;
        (told.mark.start, told.mark.segment, told.mark.end) = (first, last, last);
        let mark = &mut told.mark;
        walk::<io::Error>(&whole(file, stamp, last..Offset::MAX, length), |found| {
            if let Found::Batch { batch, position } = found {
                if batch.end_offset() > limit {
                    return Ok(ControlFlow::Break(()));
                }
                mark.bytes = position + batch.byte_count() as u64;
                mark.end = batch.end_offset();
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if told.mark.bytes < length {
            told.cut = Some(path);
        }
    }
    // Messages between the files and the journal are lost: the files end before the hole, which
    // reads as damaged.
    if let Some(from) = journal_from
        && told.mark.end < from
    {
        let start = kept.first().copied().unwrap_or(from);
        told.mark = Mark {
            start,
            end: from,
            segment: from,
            bytes: 0,
            ..Mark::default()
        };
    }
    Ok(told)
}
