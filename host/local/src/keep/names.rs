//! A copy of the topics beside the checkpoint: segments know only their topics' numbers, and
//! messages without a topic name are of little use. It is read only if the checkpoint is lost.

use std::io;
use std::path::Path;

use millrace_log::Disk;
use millrace_model::{Topic, TopicId};
use serde::{Deserialize, Serialize};

/// The file's name in the data directory.
pub(crate) const FILE: &str = "topics.json";
const UNFINISHED: &str = "topics.json.unfinished";
/// Bytes of the file of topics' names in a data directory; a larger one is ignored.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// The content of the copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Names {
    /// The transaction that it is as of.
    pub(crate) sequence: u64,
    pub(crate) next_topic: TopicId,
    pub(crate) topics: Vec<Topic>,
}

impl Names {
    /// Replaces the copy, completely or not at all.
    pub(crate) fn write(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(self)?;
        let crc = crc32c::crc32c(&bytes);
        bytes.extend(format!("\n{crc:08x}\n").into_bytes());
        let unfinished = dir.join(UNFINISHED);
        let file = disk.create(&unfinished)?;
        file.write_all_at(&bytes, 0)?;
        file.sync_data()?;
        disk.rename(&unfinished, &dir.join(FILE))?;
        disk.sync_dir(dir)
    }
}

/// The copy; `None` if there is no complete one.
pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Names>> {
    let file = match disk.open(&dir.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let length = file.length()?.min(FILE_BYTES_MAX);
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let count = file.read_at(&mut bytes, 0)?;
    Ok(decode(&bytes[..count]))
}

fn decode(bytes: &[u8]) -> Option<Names> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let (names, crc) = bytes.split_at(end);
    let crc = std::str::from_utf8(crc).ok()?.trim();
    let crc = u32::from_str_radix(crc, 16).ok()?;
    (crc32c::crc32c(names) == crc).then(|| serde_json::from_slice(names).ok())?
}
