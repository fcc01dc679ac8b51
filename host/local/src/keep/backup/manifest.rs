//! The manifest of a backup: its origin, and each file with its length and SHA-256. It is written
//! last; without it there is no backup.

use std::io;
use std::path::{Path, PathBuf};

use millrace_engine::backup::KnownFile;
use millrace_log::Disk;
use millrace_model::{Digest, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The file's name.
pub const MANIFEST: &str = "backup.json";
/// The format of backups with state in files; earlier formats can be read.
pub(crate) const FORMAT_RUNS: u32 = 2;
/// Bytes of a manifest; a larger file is refused.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 512 << 20;

/// The format of a backup: older versions do not know files of state, but can read all other
/// backups.
pub(crate) fn format_of(has_runs: bool) -> u32 {
    match has_runs {
        true => FORMAT_RUNS,
        false => 1,
    }
}

/// The field of the manifest's own digest.
const DIGEST: &str = "sha256";

/// Describes a backup and lists its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format of the backup.
    pub format: u32,
    /// The version of the host.
    pub millrace: String,
    /// The identity of the backed-up data directory; a restored directory has another one.
    pub directory: String,
    /// When it began, by the host's clock.
    pub begun_at: Timestamp,
    /// It contains everything up to this transaction, and nothing later.
    pub sequence: u64,
    /// The id of its encryption key, which is not part of the backup; absent if it is not
    /// encrypted.
    pub encryption_key: Option<u32>,
    /// Parts that could not be copied as they were written.
    pub damage: Vec<Flaw>,
    /// All files.
    pub files: Vec<BackupFile>,
}

/// A problem with a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flaw {
    /// The file, relative to the data directory.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupFile {
    /// Its path in a data directory.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// The SHA-256 of its bytes.
    pub sha256: Digest,
    /// How the host recognises whether the file has changed since: its inode number and time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The directory beside the manifest that contains it under its path; if empty, it is beside
    /// the manifest itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run: String,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// There is no manifest.
    #[error("there is no finished backup in {}: it has no {MANIFEST}", dir.display())]
    Missing {
        /// The directory that was searched.
        dir: PathBuf,
    },
    /// Another version wrote it.
    #[error(
        "the backup has format {found}; this version of millrace reads up to {FORMAT_RUNS}. Use the version that made it, or a newer one"
    )]
    Newer {
        /// Its format.
        found: u64,
    },
    /// It differs from what was written.
    #[error("the manifest is damaged: {0}")]
    Damaged(String),
    /// It cannot be read.
    #[error("the manifest cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl Manifest {
    /// The manifest as a file.
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let mut value = serde_json::to_value(self)?;
        let digest = digest_of(&serde_json::to_vec(&value)?);
        if let Value::Object(fields) = &mut value {
            fields.insert(DIGEST.to_owned(), Value::String(digest.to_string()));
        }
        let mut bytes = serde_json::to_vec(&value)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a manifest from the bytes of its file.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let damaged = |what: &str| ManifestError::Damaged(what.to_owned());
        let value: Result<Value, _> = serde_json::from_slice(bytes);
        let mut value = value.map_err(|error| ManifestError::Damaged(error.to_string()))?;
        let format = value["format"].as_u64();
        let format = format.ok_or_else(|| damaged("it names no format"))?;
        if format > u64::from(FORMAT_RUNS) {
            return Err(ManifestError::Newer { found: format });
        }
        let fields = value.as_object_mut();
        let stored = fields.and_then(|fields| fields.remove(DIGEST));
        let found = serde_json::to_vec(&value).map_err(io::Error::from)?;
        let found = digest_of(&found).to_string();
        if stored.as_ref().and_then(Value::as_str) != Some(&found) {
            return Err(damaged("it is not what its digest says"));
        }
        let manifest: Result<Self, _> = serde_json::from_value(value);
        let manifest = manifest.map_err(|error| ManifestError::Damaged(error.to_string()))?;
        let strange = manifest.files.iter().find(|file| !is_sound(file));
        match strange {
            Some(file) => Err(ManifestError::Damaged(format!(
                "{:?} in {:?} is no file of a backup",
                file.path, file.run
            ))),
            None => Ok(manifest),
        }
    }

    /// The manifest of the backup in a directory.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Self, ManifestError> {
        let file = match disk.open(&dir.join(MANIFEST)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let dir = dir.to_owned();
                return Err(ManifestError::Missing { dir });
            }
            file => file?,
        };
        let length = file.length()?;
        if length > MANIFEST_BYTES_MAX {
            return Err(ManifestError::Damaged(format!("it has {length} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        let count = file.read_at(&mut bytes, 0)?;
        Self::decode(&bytes[..count])
    }

    /// The files that need not be copied again.
    pub(crate) fn known(&self) -> Vec<KnownFile> {
        let known = self.files.iter().filter_map(|file| {
            Some(KnownFile {
                path: file.path.clone(),
                bytes: file.bytes,
                version: file.version.clone()?,
                sha256: file.sha256,
            })
        });
        known.collect()
    }

    /// Bytes of all files.
    #[must_use]
    pub fn byte_count(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

impl BackupFile {
    /// Its path in the backup's directory.
    pub(crate) fn stands_at(&self, dir: &Path) -> PathBuf {
        match self.run.is_empty() {
            true => dir.join(&self.path),
            false => dir.join(&self.run).join(&self.path),
        }
    }
}

fn is_sound(file: &BackupFile) -> bool {
    is_of_backup(&file.path) && (file.run.is_empty() || run_number(&file.run).is_some())
}

/// The number of a backup run, from the name of its directory.
pub(crate) fn run_number(name: &str) -> Option<u32> {
    let number = name.strip_prefix("run-")?.parse().ok()?;
    (run_name(number) == name).then_some(number)
}

pub(crate) fn run_name(number: u32) -> String {
    format!("run-{number:06}")
}

/// Whether a path of a data directory may be in a backup. Files with other paths are never written,
/// so a malicious archive cannot write elsewhere.
pub(crate) fn is_of_backup(path: &str) -> bool {
    let plain = |part: &str| {
        let letters = part.bytes();
        !part.starts_with('.')
            && !part.is_empty()
            && letters
                .clone()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
    };
    let parts: Vec<&str> = path.split('/').collect();
    let of_place = matches!(
        parts[..],
        [super::CHECKPOINT] | ["modules" | "state", _] | ["topics", _, _] | ["topics", _, _, _]
    );
    of_place && parts.iter().all(|part| plain(part))
}

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// Whether a directory contains a backup, and so is not a data directory.
pub(crate) fn is_backup(dir: &Path) -> bool {
    dir.join(MANIFEST).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT_RUNS,
            millrace: "0.1.0".to_owned(),
            directory: "0f".to_owned(),
            begun_at: Timestamp(5),
            sequence: u64::MAX,
            encryption_key: None,
            damage: Vec::new(),
            files: vec![BackupFile {
                path: "topics/1/0-00000000000000000000.segment".to_owned(),
                bytes: 7,
                sha256: digest_of(b"7"),
                version: Some("1-2.3".to_owned()),
                run: run_name(3),
            }],
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written_and_no_flipped_bit_is_believed() {
        let bytes = manifest().encode().unwrap();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest());
        let told = (0..bytes.len() * 8).filter(|bit| {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // White space at the end does not change the meaning.
            Manifest::decode(&changed).is_ok_and(|found| found != manifest())
        });
        assert_eq!(told.count(), 0);
        assert!(Manifest::decode(&bytes[..bytes.len() / 2]).is_err());
    }

    #[test]
    fn one_of_a_newer_version_says_so() {
        let newer = br#"{"format": 9, "whatever": []}"#;
        let error = Manifest::decode(newer).unwrap_err();
        assert!(
            matches!(error, ManifestError::Newer { found: 9 }),
            "{error}"
        );
    }

    #[test]
    fn only_files_of_a_data_directory_are_taken() {
        for path in [
            "checkpoint.sqlite",
            "modules/ab.wasm",
            "state/17.run",
            "topics/1/0-7.segment",
            "topics/1/3/7.index",
        ] {
            assert!(is_of_backup(path), "{path}");
        }
        for path in [
            "",
            "lock",
            "backup.json",
            "/etc/passwd",
            "modules/../../x",
            "topics/../x",
            "topics/1/..",
            "topics//1",
            "topics/1/a/b/c",
            "modules/a b",
            "modules/.hidden",
        ] {
            assert!(!is_of_backup(path), "{path}");
        }
        assert_eq!(run_number("run-000003"), Some(3));
        assert_eq!(run_number("run-3"), None);
        assert_eq!(run_number("run-.."), None);
    }
}
