//! Verifies the files of a running host: reads them from the disk, batch by batch, while they are
//! in use.

use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_model::{Offset, Stamp};

use super::PartitionFiles;
use crate::disk::{Disk, DiskFile};
use crate::pace::{Pace, PacedFile};
use crate::segment::DamageKind;
use crate::segment::examine::{Found, walk, whole};

/// One segment as of a moment; this part of it does not change afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSegment {
    /// Its file.
    pub path: PathBuf,
    /// The offsets in it.
    pub offsets: Range<Offset>,
    /// Bytes of the active segment; for a sealed one, the whole file counts.
    pub(super) active_bytes: Option<u64>,
    pub(super) stamp: Option<Stamp>,
}

impl KeptSegment {
    /// Whether this segment is among those kept `now`: the active one may have grown, a sealed one
    /// must be the same.
    #[must_use]
    pub fn stands_in(&self, now: &[Self]) -> bool {
        let grown = |now: &Self| {
            self.active_bytes.is_some()
                && now.path == self.path
                && now.offsets.end >= self.offsets.end
        };
        now.iter().any(|now| now == self || grown(now))
    }
}

/// Messages that differ from what was written, or are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Their offsets.
    pub offsets: Range<Offset>,
    /// Their bytes in the file; empty if the file, or its end, is missing.
    pub bytes: Range<u64>,
    /// What is there instead.
    pub kind: DamageKind,
}

impl PartitionFiles {
    /// All segments, ascending. A missing segment before the first is included.
    #[must_use]
    pub fn kept(&self) -> Vec<KeptSegment> {
        let bases = self.sealed.iter().copied().chain([self.active.base]);
        let mut bases: Vec<Offset> = bases.collect();
        if self.start < bases[0] {
            bases.insert(0, self.start);
        }
        let ends = bases.iter().skip(1).copied().chain([self.end]);
        let kept = bases.iter().zip(ends).map(|(&base, end)| KeptSegment {
            path: self.place.location.segment(base),
            offsets: base..end,
            active_bytes: (base == self.active.base).then_some(self.active.bytes),
            stamp: self.place.stamp,
        });
        kept.filter(|segment| !segment.offsets.is_empty()).collect()
    }
}

/// Reads a whole segment from the disk, at a pace; returns the damage in it.
///
/// # Errors
/// The disk's, or the pace's. A missing file is damage, not an error.
pub fn verify(disk: &dyn Disk, segment: &KeptSegment, pace: &Pace) -> io::Result<Vec<Damage>> {
    let Some(file) = open(disk, &segment.path)? else {
        let (offsets, bytes) = (segment.offsets.clone(), 0..0);
        let kind = DamageKind::Changed;
        return Ok(vec![Damage {
            offsets,
            bytes,
            kind,
        }]);
    };
    let paced = Arc::new(PacedFile {
        file,
        pace: Arc::clone(pace),
    });
    damage_in(paced, segment)
}

/// Like [`verify`], with a given file.
///
/// # Errors
/// The file's.
pub fn damage_in(file: Arc<dyn DiskFile>, segment: &KeptSegment) -> io::Result<Vec<Damage>> {
    let bytes = match segment.active_bytes {
        Some(bytes) => bytes,
        None => file.length()?,
    };
    let mut damaged: Vec<Damage> = Vec::new();
    let offsets = segment.offsets.clone();
    walk::<io::Error>(&whole(file, segment.stamp, offsets, bytes), |found| {
        if let Found::Damage {
            bytes,
            offsets,
            kind,
        } = found
            && !offsets.is_empty()
        {
            damaged.push(Damage {
                offsets,
                bytes,
                kind,
            });
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(damaged)
}

fn open(disk: &dyn Disk, path: &Path) -> io::Result<Option<Arc<dyn DiskFile>>> {
    match disk.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(offsets: Range<u64>, active_bytes: Option<u64>) -> KeptSegment {
        KeptSegment {
            path: PathBuf::from(format!("{}.segment", offsets.start)),
            offsets: Offset(offsets.start)..Offset(offsets.end),
            active_bytes,
            stamp: None,
        }
    }

    #[test]
    fn the_active_segment_may_grow_and_be_sealed_and_a_sealed_one_is_no_other() {
        let (sealed, active) = (segment(0..50, None), segment(50..60, Some(9)));
        let now = [segment(0..50, None), segment(50..90, None)];
        assert!(sealed.stands_in(&now) && active.stands_in(&now));
        assert!(!sealed.stands_in(&[segment(0..100, None)]));
        assert!(!active.stands_in(&[segment(50..55, Some(5))]));
        assert!(!active.stands_in(&[]));
    }
}
