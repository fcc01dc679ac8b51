//! Reads the host's journal from its files, as any process with access can: while the host writes
//! it, and after the host has ended.
//!
//! A commit of the counting processor is in one frame: outputs, progress and state, and whatever
//! else is in its group. It is recognized by the processor's name, which its operations hold as the
//! length of the name and its bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_log::frame::{FRAME_ALIGN_BYTES, FRAME_HEADER_BYTES};
use millrace_log::journal::examine;

/// Bytes before a file's first frame, and the place of the salt in them.
const FILE_HEADER_BYTES: u64 = 64;
const SALT_AT: usize = 16;
/// Bytes that claim to be a longer frame are not a frame.
const BODY_BYTES_MAX: usize = 8 << 20;

/// A position from which the journal is read later: its newest file.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    file: u64,
    before_sequence: u64,
}

/// A frame, reduced to what is looked for in it.
pub(super) struct Found {
    pub(super) sequence: u64,
    /// Whether it contains a commit of the processor.
    pub(super) is_commit: bool,
    /// Whether it also contains the text.
    pub(super) has_text: bool,
}

/// Follows the end of the journal while the host writes.
pub(super) struct Tail {
    directory: PathBuf,
    file: File,
    number: u64,
    salt: u64,
    at: u64,
    sequence: u64,
    name: Vec<u8>,
}

impl Mark {
    /// The present end of the journal; `None` if nothing was ever written.
    pub(super) fn now(directory: &Path) -> io::Result<Option<Self>> {
        let used = examine::used_files(directory)?;
        // A file that is reused gets a number above all others.
        let newest = used.into_iter().max();
        Ok(newest.map(|(file, first)| Self {
            file,
            before_sequence: first.saturating_sub(1),
        }))
    }

    /// The intact frames from the mark on, while no host writes.
    pub(super) fn frames(
        &self,
        directory: &Path,
        processor: &str,
        text: &str,
    ) -> Result<Vec<Found>> {
        let name = in_operations(processor);
        let journal = examine::examine(directory, self.file, self.before_sequence)?;
        let mut found = Vec::new();
        journal.replay(|sequence, body| {
            found.push(Found {
                sequence,
                is_commit: holds(&body, &name),
                has_text: holds(&body, text.as_bytes()),
            });
            anyhow::Ok(())
        })?;
        Ok(found)
    }
}

impl Tail {
    /// Starts at the end of the journal.
    pub(super) fn follow(directory: &Path, mark: Mark, processor: &str) -> Result<Self> {
        let mut tail = Self {
            directory: directory.to_owned(),
            file: File::open(file_path(directory, mark.file))?,
            number: mark.file,
            salt: 0,
            at: FILE_HEADER_BYTES,
            sequence: mark.before_sequence,
            name: in_operations(processor),
        };
        tail.salt = tail
            .salt_of(&tail.file)
            .context("a journal file without a header")?;
        while tail.next().is_some() {}
        Ok(tail)
    }

    /// Waits for a frame with the processor's commit, which is being written or has just been, and
    /// returns its sequence.
    pub(super) fn wait_for_commit(&mut self, patience: Duration) -> Option<u64> {
        let began = Instant::now();
        while began.elapsed() < patience {
            match self.next() {
                Some(body) if holds(&body, &self.name) => return Some(self.sequence),
                Some(_) => {}
                // Without sleeping: the moment is over within one sync.
                None => std::thread::yield_now(),
            }
        }
        None
    }

    /// Whether nothing was written since.
    pub(super) fn is_at_end(&mut self) -> bool {
        self.next().is_none()
    }

    /// The body of the next frame, if there is one.
    fn next(&mut self) -> Option<Vec<u8>> {
        if let Some(body) = self.frame(&self.file, self.salt, self.at) {
            self.at += (FRAME_HEADER_BYTES + body.len()).next_multiple_of(FRAME_ALIGN_BYTES) as u64;
            self.sequence += 1;
            return Some(body);
        }
        let file = File::open(file_path(&self.directory, self.number + 1)).ok()?;
        let salt = self.salt_of(&file)?;
        self.frame(&file, salt, FILE_HEADER_BYTES)?;
        (self.file, self.salt, self.at) = (file, salt, FILE_HEADER_BYTES);
        self.number += 1;
        self.next()
    }

    fn salt_of(&self, file: &File) -> Option<u64> {
        let mut header = [0; FILE_HEADER_BYTES as usize];
        file.read_exact_at(&mut header, 0).ok()?;
        word(&header, SALT_AT)
    }

    /// The body of the next frame, unchecked: the caller reads it again once the host has stopped
    /// writing.
    fn frame(&self, file: &File, salt: u64, at: u64) -> Option<Vec<u8>> {
        let mut header = [0; FRAME_HEADER_BYTES];
        file.read_exact_at(&mut header, at).ok()?;
        let is_next =
            word(&header, 8) == Some(salt) && word(&header, 16) == Some(self.sequence + 1);
        let length = u32::from_le_bytes(*header.first_chunk()?) as usize;
        if !is_next || length > BODY_BYTES_MAX {
            return None;
        }
        let mut body = vec![0; length];
        file.read_exact_at(&mut body, at + FRAME_HEADER_BYTES as u64)
            .ok()?;
        Some(body)
    }
}

/// A name as it is encoded in operations.
fn in_operations(name: &str) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes()[..], name.as_bytes()].concat()
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && bytes.windows(part.len()).any(|window| window == part)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

fn file_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:012}.journal"))
}
