//! A copy of everything as of one instant, of an engine that goes on meanwhile.
//!
//! What comes out is a tar archive: the files of a data directory, and last of all a manifest that names them. One without its manifest is
//! not a backup. What is in it is everything that was acknowledged before it was asked for, and nothing by halves: messages, progress and
//! state are as of the same transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use millrace_model::Digest;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::contract::errors::CommitError;

/// A file that whoever asks for a backup has from an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownFile {
    /// Where it belongs in the data directory.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// What the host said of it then; another version may have other bytes.
    pub version: String,
    /// The SHA-256 of its bytes.
    pub sha256: Digest,
}

/// What to copy.
#[derive(Clone, Debug, Default)]
pub struct BackupRequest {
    /// The data directory that the known files are of.
    pub directory: Option<String>,
    /// What need not be sent again as long as it is the same.
    pub known: Vec<KnownFile>,
}

/// Why there is no backup.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BackupError {
    /// There is nothing on a disk.
    #[error("this engine keeps everything in memory and cannot be backed up")]
    Unsupported,
    /// One at a time: each keeps files from being removed.
    #[error("another backup of this host is under way")]
    UnderWay,
    /// What is known is not of this directory.
    #[error(
        "what is known is of data directory {known}, and this is {own}: another host, or one that was restored"
    )]
    OtherDirectory {
        /// What was named.
        known: String,
        /// What is here.
        own: String,
    },
    /// No room to keep what a backup is made of.
    #[error("the disk is full: a backup needs room there for a copy of the checkpoint")]
    DiskFull,
    /// The file system cannot keep files that are to be removed.
    #[error("the file system of the data directory has no hard links ({0})")]
    NoLinks(Arc<str>),
    /// The engine is not at work.
    #[error(transparent)]
    Engine(#[from] CommitError),
    /// The disk failed.
    #[error("no backup could be made: {0}")]
    Failed(Arc<str>),
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

/// Both ends; so many pieces may wait to be taken.
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
    /// Says that all was sent.
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
            // Whoever takes nothing for long may not even be told why.
            None if !self.is_whole.load(Ordering::Acquire) => {
                Some(Err("the backup broke off".into()))
            }
            piece => piece,
        }
    }
}
