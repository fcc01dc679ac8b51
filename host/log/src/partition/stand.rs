//! Preserves a partition's files as of a mark, with hard links, whatever happens to the partition
//! afterwards. For copying a partition while it is written, compacted and trimmed.

use std::io;
use std::path::{Path, PathBuf};

use millrace_model::Offset;

use super::verify::KeptSegment;
use super::{Mark, PartitionFiles};
use crate::disk::Disk;

/// A segment with a hard link.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The segment; its path is the hard link.
    pub segment: KeptSegment,
    /// Its original path.
    pub own: PathBuf,
    /// Its index, if it has one: the hard link and the original path.
    pub index: Option<(PathBuf, PathBuf)>,
}

impl KeptSegment {
    /// How many bytes of the file count; `None` for all of them.
    #[must_use]
    pub fn counted_bytes(&self) -> Option<u64> {
        self.active_bytes
    }
}

impl PartitionFiles {
    /// Creates hard links in `dir`, numbered from `number` on, for the files that `mark` counts.
    /// The mark must be of the last decided checkpoint, because files that a later one drops may
    /// already be removed. No file may be replaced meanwhile; a lock on this ensures it. The second
    /// list has lost segments.
    ///
    /// # Errors
    /// The disk's.
    pub fn let_stand(
        &self,
        mark: Mark,
        dir: &Path,
        number: &mut u64,
    ) -> io::Result<(Vec<Standing>, Vec<PathBuf>)> {
        let disk = &*self.place.disk;
        let sealed = self.sealed.iter().copied();
        let mut bases: Vec<Offset> = sealed.filter(|&base| base < mark.segment).collect();
        if mark.bytes > 0 {
            bases.push(mark.segment);
        }
        let last_end = if mark.bytes > 0 {
            mark.end
        } else {
            mark.segment
        };
        let ends = bases.iter().skip(1).copied().chain([last_end]);
        let (mut standing, mut lost) = (Vec::with_capacity(bases.len()), Vec::new());
        for (&base, end) in bases.iter().zip(ends) {
            if end <= mark.start {
                continue;
            }
            let own = self.place.location.segment(base);
            let Some(path) = second_name(disk, &own, dir, number)? else {
                lost.push(own);
                continue;
            };
            // The active segment has an index only if it was sealed since then, with more content.
            let is_active = mark.bytes > 0 && base == mark.segment;
            let index = self.place.location.index(base);
            let second = match is_active {
                true => None,
                false => second_name(disk, &index, dir, number)?,
            };
            standing.push(Standing {
                segment: KeptSegment {
                    path,
                    offsets: base..end,
                    active_bytes: is_active.then_some(mark.bytes),
                    stamp: self.place.stamp,
                },
                own,
                index: second.map(|second| (second, index)),
            });
        }
        Ok((standing, lost))
    }
}

/// Creates a hard link to a file; `None` if the file does not exist.
fn second_name(
    disk: &dyn Disk,
    own: &Path,
    dir: &Path,
    number: &mut u64,
) -> io::Result<Option<PathBuf>> {
    let second = dir.join(format!("{number}"));
    match disk.link(own, &second) {
        Ok(()) => {
            *number += 1;
            Ok(Some(second))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
