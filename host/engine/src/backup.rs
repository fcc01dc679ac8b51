//! A copy of everything as of one instant, while the engine keeps running.
//!
//! The result is a tar archive: the files of a data directory, and last a manifest that lists them. An archive without its manifest is
//! not a backup. A backup contains everything acknowledged before it was requested, and is consistent: messages, progress and state are
//! as of the same transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use millrace_model::{Advice, Advised, Code, Digest};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::contract::errors::CommitError;

/// A file of an earlier backup that the caller still has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownFile {
    /// Its path in the data directory.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// The host's tag for it; a different tag may mean different bytes.
    pub version: String,
    /// The SHA-256 of its bytes.
    pub sha256: Digest,
}

/// What to copy.
#[derive(Clone, Debug, Default)]
pub struct BackupRequest {
    /// The data directory that the known files belong to.
    pub directory: Option<String>,
    /// What need not be sent again if it is unchanged.
    pub known: Vec<KnownFile>,
}

/// Why there is no backup.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BackupError {
    /// The engine keeps nothing on a disk of its own.
    #[error("this engine has no backup of its own")]
    Unsupported,
    /// One at a time: each keeps removed files on the disk.
    #[error("another backup of this host is running")]
    UnderWay,
    /// The earlier backup is of another directory.
    #[error(
        "the earlier backup is of data directory {known}, but this is {own}: another host, or a restored one"
    )]
    OtherDirectory {
        /// The earlier backup's directory.
        known: String,
        /// This directory.
        own: String,
    },
    /// No space for the files that a backup needs.
    #[error("the disk is full: a backup needs space on it for a copy of the checkpoint")]
    DiskFull,
    /// The file system does not support hard links.
    #[error("the file system of the data directory has no hard links ({0})")]
    NoLinks(Arc<str>),
    /// The engine is not running.
    #[error(transparent)]
    Engine(#[from] CommitError),
    /// The disk failed.
    #[error("the backup failed: {0}")]
    Failed(Arc<str>),
}

impl Advised for BackupError {
    fn advice(&self) -> Advice {
        match self {
            Self::Unsupported => Code::CannotBackUp
                .hint("back up its store with the store's tools, or use `millrace copy`"),
            Self::UnderWay => Code::BackupUnderWay.advice(),
            Self::OtherDirectory { .. } => Code::OtherDirectory.advice(),
            Self::DiskFull => Code::DiskFull.hint(
                "free some space, or delete or trim topics; or stop the host and copy its directory",
            ),
            Self::NoLinks(_) => Code::CannotBackUp.advice(),
            Self::Engine(error) => error.advice(),
            Self::Failed(_) => Code::BackupFailed.advice(),
        }
    }
}

/// The archive, piece by piece. If it is dropped the backup ends.
#[derive(Debug)]
pub struct BackupStream {
    pieces: mpsc::Receiver<Result<Bytes, Arc<str>>>,
    is_whole: Arc<AtomicBool>,
    is_over: bool,
}

/// The other end of a [`BackupStream`], for the engine that makes the backup.
#[derive(Debug)]
pub struct BackupPieces {
    /// Where pieces go; an error ends the backup.
    pub pieces: mpsc::Sender<Result<Bytes, Arc<str>>>,
    is_whole: Arc<AtomicBool>,
}

/// Both ends; this many pieces may be queued.
#[must_use]
pub fn stream(waiting_max: usize) -> (BackupPieces, BackupStream) {
    let (sender, receiver) = mpsc::channel(waiting_max);
    let is_whole = Arc::new(AtomicBool::new(false));
    let pieces = BackupPieces {
        pieces: sender,
        is_whole: Arc::clone(&is_whole),
    };
    let stream = BackupStream {
        pieces: receiver,
        is_whole,
        is_over: false,
    };
    (pieces, stream)
}

impl BackupPieces {
    /// Reports that everything was sent.
    pub fn end(self) {
        self.is_whole.store(true, Ordering::Release);
    }
}

impl BackupStream {
    /// The next piece; `None` after the last one. After an error there is no backup.
    pub async fn next(&mut self) -> Option<Result<Bytes, Arc<str>>> {
        if self.is_over {
            return None;
        }
        let piece = self.pieces.recv().await;
        self.is_over = !matches!(piece, Some(Ok(_)));
        match piece {
            // A reader that takes nothing for long may not even be told why.
            None if !self.is_whole.load(Ordering::Acquire) => {
                Some(Err("the backup was interrupted".into()))
            }
            piece => piece,
        }
    }
}
