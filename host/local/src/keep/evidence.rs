//! Records beside the journal what is known to be durable, so that a missing or damaged end of the
//! journal is not mistaken for its real end.
//!
//! A claim covers only what is already durable, so an outdated file is harmless. Nothing waits for
//! its write, and it is synced only when the engine closes. Two slots are written alternately; if
//! one is torn, the previous one remains.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_log::{Disk, DiskFile};

/// The file's name in the data directory.
pub(crate) const FILE: &str = "durable";
const SLOT_BYTES: usize = 512;
const MAGIC: [u8; 8] = *b"MRDURBL1";

/// A claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// Every transaction of the journal up to this one is durable.
    pub(crate) durable: u64,
    /// The newest checkpoint contains everything up to this transaction.
    pub(crate) checkpoint: u64,
    /// The journal file that was written last.
    pub(crate) journal_file: u64,
    /// Whether the engine was closed cleanly.
    pub(crate) is_closed: bool,
}

impl Evidence {
    fn encode(self, turn: u64) -> [u8; SLOT_BYTES] {
        let mut slot = [0; SLOT_BYTES];
        slot[..8].copy_from_slice(&MAGIC);
        let words = [
            turn,
            self.durable,
            self.checkpoint,
            self.journal_file,
            u64::from(self.is_closed),
        ];
        for (place, word) in slot[8..48].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c::crc32c(&slot[..48]);
        slot[48..52].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    fn decode(slot: &[u8]) -> Option<(u64, Self)> {
        let crc = u32::from_le_bytes(*slot.get(48..)?.first_chunk()?);
        if slot[..8] != MAGIC || crc32c::crc32c(&slot[..48]) != crc {
            return None;
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| slot[at + i]));
        let evidence = Self {
            durable: word(16),
            checkpoint: word(24),
            journal_file: word(32),
            is_closed: word(40) != 0,
        };
        Some((word(8), evidence))
    }
}

/// The last claim; `None` if there is none that can be read.
pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Evidence>> {
    Ok(newest(disk, dir)?.map(|(_, evidence)| evidence))
}

fn newest(disk: &dyn Disk, dir: &Path) -> io::Result<Option<(u64, Evidence)>> {
    let file = match disk.open(&dir.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut slots = [0; 2 * SLOT_BYTES];
    file.read_at(&mut slots, 0)?;
    let sound = slots.chunks_exact(SLOT_BYTES).filter_map(Evidence::decode);
    Ok(sound.max_by_key(|(turn, _)| *turn))
}

/// The open file for writing.
pub(crate) struct EvidenceFile {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    file: Option<Arc<dyn DiskFile>>,
    turn: u64,
    last: Option<Evidence>,
}

impl EvidenceFile {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path) -> Self {
        Self {
            disk,
            dir: dir.to_owned(),
            file: None,
            turn: 0,
            last: None,
        }
    }

    /// Writes a claim if it is new. A failure to write it matters only to the next start after a
    /// crash, so it is not a failure of the engine.
    pub(crate) fn write(&mut self, evidence: Evidence) {
        if self.last == Some(evidence) {
            return;
        }
        let written = self.try_write(evidence);
        match written {
            Ok(()) => self.last = Some(evidence),
            Err(error) => {
                self.file = None;
                tracing::debug!(%error, "what is durable could not be noted");
            }
        }
    }

    pub(crate) fn try_write(&mut self, evidence: Evidence) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => self.open()?,
        };
        self.turn += 1;
        let slot = self.turn % 2 * SLOT_BYTES as u64;
        file.write_all_at(&evidence.encode(self.turn), slot)?;
        if evidence.is_closed {
            file.sync_data()?;
            self.disk.sync_dir(&self.dir)?;
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.dir.join(FILE);
        self.turn = newest(&*self.disk, &self.dir)?.map_or(0, |(turn, _)| turn);
        let file = match self.disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.disk.create(&path)?,
            file => file?,
        };
        self.file = Some(Arc::clone(&file));
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use millrace_log::RealDisk;

    use super::*;

    #[test]
    fn a_torn_claim_leaves_the_one_before_and_the_next_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(&RealDisk, dir.path()).unwrap(), None);
        let of = |durable| Evidence {
            durable,
            ..Evidence::default()
        };
        for durable in 1..=5 {
            EvidenceFile::new(Arc::new(RealDisk), dir.path()).write(of(durable));
            assert_eq!(read(&RealDisk, dir.path()).unwrap(), Some(of(durable)));
        }
        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[SLOT_BYTES + 20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&RealDisk, dir.path()).unwrap(), Some(of(4)));
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let found = read(&RealDisk, dir.path()).unwrap();
            assert!(found.is_none() || found == Some(of(4)), "{found:?}");
        }
    }
}
