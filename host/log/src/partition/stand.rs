//! A partition's files as a mark has them, kept under second names: whatever becomes of the partition from then on, they stay as they
//! were. For a copy of a partition that goes on being written, compacted and trimmed.

use std::io;
use std::path::{Path, PathBuf};

use millrace_model::Offset;

use super::verify::KeptSegment;
use super::{Mark, PartitionFiles};
use crate::disk::Disk;

/// A segment under its second name.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The segment; its path is the second name.
    pub segment: KeptSegment,
    /// Its own name.
    pub own: PathBuf,
    /// Its index, if it has one: the second name and its own.
    pub index: Option<(PathBuf, PathBuf)>,
}

impl KeptSegment {
    /// How much of the file counts; `None` for all of it.
    #[must_use]
    pub fn counted_bytes(&self) -> Option<u64> {
        self.active_bytes
    }
}

impl PartitionFiles {
    /// Gives the files that `mark` counts second names in `dir`, numbered from `number` on. The mark must be of the last checkpoint that
    /// was decided: what one after it lets go may be gone already. Nobody may put another file in the place of one meanwhile, which a
    /// lock on this sees to. Segments that are lost are in the second list.
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
            // Of the active segment there is an index only if it was sealed since, with more in it.
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

/// Gives a file a second name; `None` if there is no such file.
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
