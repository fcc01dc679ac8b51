//! Examines the journal without opening it: what the next start would replay, cut or refuse.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::files::{FILE_HEADER_BYTES, FileHeader, MAGIC_ALL, file_path};
use super::{JournalError, JournalScan, SUFFIX, ScannedFile, next_frame, read_whole, scan_unread};
use crate::disk::Disk;
use crate::frame::{self, FRAME_ALIGN_BYTES, FRAME_HEADER_BYTES};
use crate::inspect::ReadOnlyDisk;

/// The result of examining a journal.
pub struct JournalExamination {
    scan: JournalScan,
    /// Files that contain, or may contain, transactions after the checkpoint.
    pub live_files: usize,
    /// Older files, kept for reuse.
    pub spare_files: usize,
    /// Whether the file that the checkpoint names exists.
    pub has_first_file: bool,
    /// The last write, if it is incomplete.
    pub torn: Option<Gap>,
    /// A place where something durable is missing; a start refuses this.
    pub damage: Option<Gap>,
    /// Valid transactions after the damage, in order; a start does not reach them.
    pub after_damage: Vec<(u64, Bytes)>,
    /// Files with a damaged header but usable frames.
    pub damaged_headers: Vec<PathBuf>,
    /// Names in the directory that are not the journal's.
    pub strays: Vec<String>,
}

/// A place in the journal without a readable frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The file's path.
    pub path: PathBuf,
    /// The bytes without a readable frame.
    pub bytes: Range<u64>,
    /// The first sequence that is missing.
    pub sequence: u64,
}

/// Examines the files from number `first_file` on, whose first frame follows `after_sequence`.
///
/// # Errors
/// The disk's.
pub fn examine(dir: &Path, first_file: u64, after_sequence: u64) -> io::Result<JournalExamination> {
    let disk: Arc<dyn Disk> = Arc::new(ReadOnlyDisk);
    let names = disk.list(dir)?;
    let scan = scan_unread(disk, dir, first_file, after_sequence)?;
    let live_files = scan.numbers.iter().filter(|&&n| n >= first_file).count();
    let mut found = JournalExamination {
        live_files,
        spare_files: scan.numbers.len() - live_files,
        has_first_file: scan.numbers.contains(&first_file),
        torn: None,
        damage: None,
        after_damage: Vec::new(),
        damaged_headers: Vec::new(),
        strays: names.into_iter().filter(|name| !is_ours(name)).collect(),
        scan,
    };
    match found.scan.walk() {
        Ok(()) => found.torn = found.torn_tail()?,
        Err(JournalError::Io(error)) => return Err(error),
        Err(JournalError::Damaged {
            path,
            position,
            sequence,
        }) => found.look_past(path, position, sequence)?,
    }
    found.damaged_headers = found.find_damaged_headers()?;
    Ok(found)
}

/// The used files, with the first sequence of each, by number.
///
/// # Errors
/// The disk's.
pub fn used_files(dir: &Path) -> io::Result<Vec<(u64, u64)>> {
    let scan = scan_unread(Arc::new(ReadOnlyDisk), dir, 0, 0)?;
    let mut used = Vec::new();
    for number in scan.numbers {
        let mut bytes = [0; FILE_HEADER_BYTES + FRAME_HEADER_BYTES];
        let file = scan.disk.open(&file_path(dir, number))?;
        file.read_at(&mut bytes, 0)?;
        let header = FileHeader::decode(&bytes).filter(|header| header.number == number);
        let first =
            header.filter(|header| word(&bytes, FILE_HEADER_BYTES + 8) == Some(header.salt));
        used.extend(first.and_then(|_| Some((number, word(&bytes, FILE_HEADER_BYTES + 16)?))));
    }
    Ok(used)
}

fn is_ours(name: &str) -> bool {
    super::is_file_name(name)
}

/// Whether a file with this beginning belongs to the journal.
pub(crate) fn begins_file(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC_ALL)
}

impl JournalExamination {
    /// The sequence of the last transaction before the end, the torn tail or the damage.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.scan.last_sequence()
    }

    /// Visits every frame's sequence and body, in order, up to the end, the torn tail or the
    /// damage.
    ///
    /// # Errors
    /// What `visit` returns, or the disk's error.
    pub fn replay<E: From<io::Error>>(
        &self,
        visit: impl FnMut(u64, Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        self.scan.replay(visit)
    }

    fn read(&self, number: u64) -> io::Result<Bytes> {
        read_whole(&*self.scan.disk, &file_path(&self.scan.dir, number))
    }

    /// An incomplete frame at the end of the last file. It has the file's salt, so it was written
    /// during the current use of the file.
    fn torn_tail(&self) -> io::Result<Option<Gap>> {
        let Some(last) = self.scan.parts.last() else {
            return Ok(None);
        };
        let bytes = self.read(last.number)?;
        let of_first = || frame::decode(bytes.get(FILE_HEADER_BYTES..)?).map(|frame| frame.salt);
        let of_header = FileHeader::decode(&bytes).map(|header| header.salt);
        let Some(salt) = of_header.or_else(of_first) else {
            return Ok(None);
        };
        let places = (last.end..bytes.len()).step_by(FRAME_ALIGN_BYTES);
        let begun = |&at: &usize| word(&bytes, at + 8) == Some(salt);
        let Some(begins) = places.filter(begun).last() else {
            return Ok(None);
        };
        let claimed = word(&bytes, begins).map_or(0, |word| word as u32 as usize);
        let ends = begins + FRAME_HEADER_BYTES + claimed;
        Ok(Some(Gap {
            path: file_path(&self.scan.dir, last.number),
            bytes: last.end as u64..ends.min(bytes.len()) as u64,
            sequence: self.scan.last_sequence + 1,
        }))
    }

    /// Records the damage with its end, and the valid frames after it.
    fn look_past(&mut self, path: PathBuf, position: u64, sequence: u64) -> io::Result<()> {
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_suffix(SUFFIX)?.parse().ok());
        let number = number.unwrap_or(self.scan.first_file);
        let at = position as usize;
        let read_already = self.scan.parts.iter().any(|part| part.number == number);
        if at > FILE_HEADER_BYTES && !read_already {
            self.scan.parts.push(ScannedFile { number, end: at });
        }
        let mut end = position;
        for live in self.scan.numbers.clone() {
            if live < number {
                continue;
            }
            let bytes = self.read(live)?;
            let from = if live == number {
                at
            } else {
                FILE_HEADER_BYTES
            };
            let frames = sound_frames(&bytes, from, sequence);
            if live == number && !read_already {
                end = frames.first().map_or(bytes.len(), |&(at, ..)| at) as u64;
            }
            let bodies = frames.into_iter().map(|(_, number, body)| (number, body));
            self.after_damage.extend(bodies);
        }
        self.damage = Some(Gap {
            path,
            bytes: position..end,
            sequence,
        });
        Ok(())
    }

    fn find_damaged_headers(&self) -> io::Result<Vec<PathBuf>> {
        let mut damaged = Vec::new();
        for part in &self.scan.parts {
            if FileHeader::decode(&self.read(part.number)?).is_none() {
                damaged.push(file_path(&self.scan.dir, part.number));
            }
        }
        Ok(damaged)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*word))
}

/// The positions, sequences and bodies of complete frames from `from` on that are newer than
/// `missing`. The file's salt, if its header is readable, excludes frames of an earlier use.
fn sound_frames(bytes: &Bytes, from: usize, missing: u64) -> Vec<(usize, u64, Bytes)> {
    let salt = FileHeader::decode(bytes).map(|header| header.salt);
    let mut found = Vec::new();
    let mut at = from;
    while at < bytes.len() {
        // Cheap checks first, as in the scan.
        let sequence = word(bytes, at + 16).filter(|&sequence| sequence > missing);
        let same_file = salt.is_none_or(|salt| word(bytes, at + 8) == Some(salt));
        let is_frame = same_file && sequence > word(bytes, at + 24);
        let frame = sequence.filter(|_| is_frame).and_then(|sequence| {
            let salt = word(bytes, at + 8)?;
            next_frame(bytes, at, salt, sequence)
        });
        at += frame.map_or(FRAME_ALIGN_BYTES, |frame: frame::Frame<'_>| {
            found.push((at, frame.sequence, bytes.slice_ref(frame.body)));
            frame.stride
        });
    }
    found
}
