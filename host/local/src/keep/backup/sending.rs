//! The thread of a backup: orders a checkpoint, reads the preserved files, and sends them as an
//! archive.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millrace_engine::backup::{BackupError, BackupRequest, BackupStream, KnownFile, stream};
use millrace_engine::contract::CommitError;
use millrace_log::disk::is_full;
use millrace_log::pace::{Pace, lower_priority};
use millrace_log::partition::verify::{Damage, damage_in};
use millrace_log::run::{Met, Run};
use millrace_log::{Disk, DiskFile, RealDisk};
use millrace_model::Digest;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::desk::{Kind, Order, Staged, StagedFile};
use super::manifest::{BackupFile, Flaw, MANIFEST, Manifest, format_of};
use super::{BACKUP_BYTES_PER_SECOND_MAX, IDENTITY, PIECE_BYTES, PIECES_WAITING_MAX, STAGING, tar};
use crate::keep::checkpoint::StoredRun;
use crate::keep::checkpoints::Checkpoints;
use crate::keep::modules::{self, ModuleFiles};
use crate::keep::pause::Pause;
use crate::write::commits::Commits;

/// How long to sleep before checking again whether a piece was taken or a checkpoint was made.
const LOOK_DELAY: Duration = Duration::from_millis(5);
/// Bytes read at once where a larger piece failed, because the rest of it may be readable.
const BLOCK_BYTES: u64 = 4 << 10;
/// Bytes of the file that identifies the directory; a larger file is invalid.
const IDENTITY_BYTES_MAX: usize = 64;

type Begun = oneshot::Sender<Result<BackupStream, BackupError>>;

/// The backups of an engine, one at a time.
pub(crate) struct Backups {
    commits: Arc<Commits>,
    checkpoints: Arc<Checkpoints>,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    modules: Arc<ModuleFiles>,
    is_under_way: AtomicBool,
    pause: Pause,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Backups {
    pub(crate) fn new(
        commits: Arc<Commits>,
        checkpoints: Arc<Checkpoints>,
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        modules: Arc<ModuleFiles>,
    ) -> Arc<Self> {
        Arc::new(Self {
            commits,
            checkpoints,
            disk,
            dir,
            modules,
            is_under_way: AtomicBool::new(false),
            pause: Pause::default(),
            thread: Mutex::new(None),
        })
    }

    /// Begins a backup; returns its archive once its checkpoint is made.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        request: BackupRequest,
    ) -> Result<BackupStream, BackupError> {
        if self.commits.reserve.is_full() {
            return Err(BackupError::DiskFull);
        }
        if self.is_under_way.swap(true, Ordering::AcqRel) {
            return Err(BackupError::UnderWay);
        }
        let (begun, answered) = oneshot::channel();
        let backups = Arc::clone(self);
        let thread = crate::ground::threads::named("millrace-backup", move || {
            backups.make(request, begun);
        });
        match thread {
            // The previous one has ended.
            Ok(thread) => drop(self.thread.lock().replace(thread)),
            Err(error) => {
                self.is_under_way.store(false, Ordering::Release);
                return Err(failed(&error));
            }
        }
        let closed = |_| Err(CommitError::Closed.into());
        answered.await.unwrap_or_else(closed)
    }

    /// Ends the running backup and waits for it.
    pub(crate) fn end(&self) {
        self.pause.end();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // The next start removes what a panicked thread left.
            let _ = thread.join();
        }
    }

    fn make(self: &Arc<Self>, request: BackupRequest, mut begun: Begun) {
        let under_way = UnderWay(self);
        lower_priority();
        let began_at = self.commits.clock.monotonic();
        let made = self.stage(&request, &mut begun);
        let (staged, manifest) = match made {
            Ok(made) => made,
            Err(error) => {
                self.sweep();
                drop(under_way);
                // The caller may have gone.
                let _ = begun.send(Err(error));
                return;
            }
        };
        let (pieces, taken) = stream(PIECES_WAITING_MAX);
        if begun.send(Ok(taken)).is_err() {
            self.sweep();
            return;
        }
        let known = request.known.into_iter();
        let mut sending = Sending {
            backups: Arc::clone(self),
            known: known.map(|file| (file.path.clone(), file)).collect(),
            manifest,
            out: Arc::new(Mutex::new(Out {
                backups: Arc::clone(self),
                pieces: pieces.pieces.clone(),
                piece: BytesMut::with_capacity(2 * PIECE_BYTES),
                sent_bytes: 0,
                over: None,
            })),
        };
        let sent = sending.send(staged);
        let (files, bytes) = (sending.manifest.files.len(), sending.out.lock().sent_bytes);
        drop(sending);
        self.sweep();
        // Before the end of the backup becomes visible.
        drop(under_way);
        let took = self.commits.clock.monotonic().saturating_sub(began_at);
        match sent {
            Ok(()) => {
                pieces.end();
                metrics::counter!("millrace_backups_total").increment(1);
                tracing::info!(
                    files,
                    bytes,
                    seconds = took.as_secs(),
                    "a backup is complete"
                );
            }
            Err(error) => {
                tracing::warn!(%error, "a backup failed");
                // If no client reads, none will see this error either.
                let _ = pieces.pieces.try_send(Err(error.to_string().into()));
            }
        }
    }

    /// Orders a checkpoint and hard links for its files.
    fn stage(
        &self,
        request: &BackupRequest,
        begun: &mut Begun,
    ) -> Result<(Staged, Manifest), BackupError> {
        let own = self.identity().map_err(|error| failed(&error))?;
        if let Some(known) = request.directory.as_ref().filter(|known| **known != own) {
            let known = known.clone();
            return Err(BackupError::OtherDirectory { known, own });
        }
        self.sweep();
        let staging = self.dir.join(STAGING);
        let made = self.disk.create_dir_all(&staging);
        made.map_err(|error| failed(&error))?;
        let commits = &self.commits;
        let begun_at = commits.clock.wall();
        // No module that the checkpoint names is removed before it has its hard link.
        let modules = self.modules.hold();
        let (answer, answered) = std::sync::mpsc::channel();
        let order = Order {
            staging: staging.clone(),
            answer,
        };
        let desk = &self.checkpoints.backups;
        desk.leave(order);
        commits.orders.ask(|orders| orders.checkpoint = true);
        let mut staged = loop {
            match answered.recv_timeout(LOOK_DELAY) {
                Ok(staged) => break staged.map_err(|error| not_kept(&error))?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.why_no_checkpoint()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let is_over = self.pause.is_ended() || begun.is_closed();
            if is_over || commits.poisoned().is_some() {
                // If a checkpoint has accepted the order, wait for it: it creates links in the same
                // place as the next backup would.
                desk.withdraw();
                if answered.recv().is_ok() {
                    return Err(CommitError::Closed.into());
                }
                return Err(self.why_no_checkpoint());
            }
        };
        let kept = modules.let_stand(&staging);
        for (path, stands_at) in kept.map_err(|error| not_kept(&error))? {
            staged.files.push(StagedFile {
                path,
                stands_at,
                kind: Kind::Module,
            });
        }
        drop(modules);
        let cipher = commits.options.encryption.as_ref();
        let has_runs = { staged.files.iter() }.any(|file| matches!(file.kind, Kind::Run(_)));
        let manifest = Manifest {
            format: format_of(has_runs),
            millrace: env!("CARGO_PKG_VERSION").to_owned(),
            directory: own,
            begun_at,
            sequence: staged.sequence,
            encryption_key: cipher.map(|cipher| cipher.active()),
            damage: Vec::new(),
            files: Vec::with_capacity(staged.files.len()),
        };
        Ok((staged, manifest))
    }

    fn why_no_checkpoint(&self) -> BackupError {
        match self.commits.poisoned() {
            Some(poisoned) => poisoned.into(),
            None if self.commits.reserve.is_full() => BackupError::DiskFull,
            None => CommitError::Closed.into(),
        }
    }

    /// The identity of this directory; created the first time.
    fn identity(&self) -> io::Result<String> {
        let path = self.dir.join(IDENTITY);
        let file = match self.disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            file => Some(file?),
        };
        if let Some(file) = file {
            let mut text = [0; IDENTITY_BYTES_MAX];
            let count = file.read_at(&mut text, 0)?;
            let text = String::from_utf8_lossy(&text[..count]).trim().to_owned();
            // A crash may have left it empty; no identity was given out then.
            if !text.is_empty() {
                return Ok(text);
            }
        }
        let text = random_text();
        let file = self.disk.create(&path)?;
        file.write_all_at(format!("{text}\n").as_bytes(), 0)?;
        file.sync_data()?;
        self.disk.sync_dir(&self.dir)?;
        Ok(text)
    }

    fn sweep(&self) {
        sweep(&*self.disk, &self.dir);
    }
}

/// Exists while a backup is running, and ends it however it ends.
struct UnderWay<'a>(&'a Backups);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.is_under_way.store(false, Ordering::Release);
    }
}

/// Removes the hard links that a backup left.
pub(crate) fn sweep(disk: &dyn Disk, dir: &Path) {
    let staging = dir.join(STAGING);
    let swept = match disk.list(&staging) {
        Ok(names) if names.is_empty() => Ok(()),
        _ => disk.remove_dir_all(&staging),
    };
    // The database's copy is on the machine's own disk, wherever the other files are.
    let swept = swept.and_then(|()| RealDisk.remove_dir_all(&staging));
    if let Err(error) = swept {
        tracing::warn!(%error, "files that a backup kept could not be removed; the next start tries again");
    }
}

/// Thirty-two random digits, unique in practice.
fn random_text() -> String {
    use std::hash::{BuildHasher, RandomState};
    let half = || RandomState::new().hash_one("directory");
    format!("{:016x}{:016x}", half(), half())
}

fn failed(error: &io::Error) -> BackupError {
    match is_full(error) {
        true => BackupError::DiskFull,
        false => BackupError::Failed(error.to_string().into()),
    }
}

/// The hard links could not be created.
fn not_kept(error: &io::Error) -> BackupError {
    match error.kind() {
        io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied => {
            BackupError::NoLinks(error.to_string().into())
        }
        _ => failed(error),
    }
}

/// An archive on its way.
struct Sending {
    backups: Arc<Backups>,
    known: HashMap<String, KnownFile>,
    manifest: Manifest,
    out: Arc<Mutex<Out>>,
}

impl Sending {
    fn send(&mut self, staged: Staged) -> io::Result<()> {
        for path in staged.lost {
            let what = "the file is not there".to_owned();
            self.manifest.damage.push(Flaw { path, what });
        }
        for file in staged.files {
            self.send_file(&file)?;
        }
        let manifest = self.manifest.encode()?;
        let length = manifest.len() as u64;
        let mut out = self.out.lock();
        out.begin(MANIFEST, length, self.manifest.begun_at.0)?;
        out.push(&manifest)?;
        out.zeros(tar::padding(length) + 2 * tar::BLOCK_BYTES)?;
        out.flush()
    }

    fn send_file(&mut self, staged: &StagedFile) -> io::Result<()> {
        let path = &staged.path;
        let is_checkpoint = matches!(staged.kind, Kind::Checkpoint);
        let file = match is_checkpoint {
            true => RealDisk.open(&staged.stands_at),
            false => self.backups.disk.open(&staged.stands_at),
        }?;
        let counted = match &staged.kind {
            Kind::Segment(segment) => segment.counted_bytes(),
            _ => None,
        };
        let bytes = match counted {
            Some(bytes) => bytes,
            None => file.length()?,
        };
        let version = file.version().filter(|_| !is_checkpoint);
        let same =
            |known: &&KnownFile| known.bytes == bytes && version.as_ref() == Some(&known.version);
        let known = self.known.get(path).filter(same);
        let sha256 = match known {
            Some(known) => known.sha256,
            None => self.copy(staged, file, bytes)?,
        };
        self.manifest.files.push(BackupFile {
            path: path.clone(),
            bytes,
            sha256,
            version,
            run: String::new(),
        });
        Ok(())
    }

    /// Sends a file's bytes, and records problems with them.
    fn copy(
        &mut self,
        staged: &StagedFile,
        file: Arc<dyn DiskFile>,
        bytes: u64,
    ) -> io::Result<Digest> {
        let path = &staged.path;
        self.out
            .lock()
            .begin(path, bytes, self.manifest.begun_at.0)?;
        let copying = Arc::new(Copying {
            file,
            bytes,
            copied: Mutex::new((0, Sha256::new())),
            out: Arc::clone(&self.out),
        });
        let mut flaws = Vec::new();
        if let Kind::Segment(segment) = &staged.kind {
            let found = damage_in(Arc::clone(&copying) as Arc<dyn DiskFile>, segment);
            self.out.lock().check()?;
            match found {
                Ok(found) => flaws.extend(found.iter().map(words)),
                Err(error) => flaws.push(format!("the disk does not read all of it: {error}")),
            }
        }
        let unread = copying.copy_rest()?;
        if flaws.is_empty() {
            flaws.extend(unread);
        }
        if let Kind::Module = staged.kind {
            flaws.extend(self.flaw_of_module(path));
        }
        if let Kind::Run(stored) = &staged.kind {
            flaws.extend(self.flaw_of_run(&staged.stands_at, stored));
        }
        self.out.lock().zeros(tar::padding(bytes))?;
        let flaws = flaws.into_iter().map(|what| Flaw {
            path: path.clone(),
            what,
        });
        self.manifest.damage.extend(flaws);
        let (_, sha256) = &*copying.copied.lock();
        Ok(Digest(sha256.clone().finalize().into()))
    }

    fn flaw_of_run(&self, path: &Path, stored: &StoredRun) -> Option<String> {
        let backups = &self.backups;
        let cipher = backups.commits.options.encryption.clone();
        // A module from before encryption is plain.
        let cipher = cipher.filter(|_| stored.key.is_some());
        let run = match Run::open(&*backups.disk, path, stored.number, cipher) {
            Ok(run) => run,
            Err(error) => return Some(error.to_string()),
        };
        let out = Arc::clone(&self.out);
        let pace: Pace = Arc::new(move |_| out.lock().check());
        let mut flaw = None;
        let examined = run.examine(&pace, &mut |met| {
            if let Met::Fault(fault) = met {
                flaw.get_or_insert_with(|| format!("it is damaged: {fault}"));
            }
        });
        examined.err().map(|error| error.to_string()).or(flaw)
    }

    fn flaw_of_module(&self, path: &str) -> Option<String> {
        let name = path.rsplit('/').next()?.strip_suffix(modules::SUFFIX)?;
        // A module that was removed meanwhile is not needed by any processor.
        let read = self.backups.modules.read(name.parse().ok()?);
        let changed = "its bytes are not those that were uploaded";
        match read {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Some(changed.to_owned()),
            _ => None,
        }
    }
}

fn words(damage: &Damage) -> String {
    let Damage { offsets, kind, .. } = damage;
    format!(
        "messages {} to {} (exclusive) {kind}",
        offsets.start, offsets.end
    )
}

/// A file that is sent while it is examined: each byte once, in order.
struct Copying {
    file: Arc<dyn DiskFile>,
    /// How many bytes of it count.
    bytes: u64,
    /// Bytes sent, and their hash.
    copied: Mutex<(u64, Sha256)>,
    out: Arc<Mutex<Out>>,
}

impl Copying {
    fn push(&self, (at, sha256): &mut (u64, Sha256), bytes: &[u8]) -> io::Result<()> {
        sha256.update(bytes);
        *at += bytes.len() as u64;
        self.out.lock().push(bytes)
    }

    /// Sends the unsent bytes before `until`. Unreadable bytes are sent as zeros and reported.
    fn copy_until(&self, copied: &mut (u64, Sha256), until: u64) -> io::Result<Option<String>> {
        let mut unread = None;
        let mut piece = vec![0; PIECE_BYTES];
        while copied.0 < until {
            let count = (until - copied.0).min(PIECE_BYTES as u64) as usize;
            let read = self.file.read_at(&mut piece[..count], copied.0);
            if read.as_ref().is_ok_and(|read| *read == count) {
                self.push(copied, &piece[..count])?;
                continue;
            }
            unread.get_or_insert_with(|| match read {
                Ok(_) => "the file is shorter than it should be".to_owned(),
                Err(error) => format!("the disk does not read all of it: {error}"),
            });
            let end = copied.0 + count as u64;
            while copied.0 < end {
                let count = (end - copied.0).min(BLOCK_BYTES) as usize;
                let block = &mut piece[..count];
                let read = self.file.read_at(block, copied.0).unwrap_or(0);
                block[read..].fill(0);
                self.push(copied, &piece[..count])?;
            }
        }
        Ok(unread)
    }

    fn copy_rest(&self) -> io::Result<Option<String>> {
        self.copy_until(&mut self.copied.lock(), self.bytes)
    }
}

impl DiskFile for Copying {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let count = self.file.read_at(buffer, at)?;
        let copied = &mut *self.copied.lock();
        let end = (at + count as u64).min(self.bytes);
        if at <= copied.0 && copied.0 < end {
            let new = (copied.0 - at) as usize..(end - at) as usize;
            self.push(copied, &buffer[new])?;
        } else if copied.0 < end {
            // Some bytes in between were skipped.
            self.copy_until(copied, end)?;
        }
        Ok(count)
    }

    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn write_all_at(&self, _bytes: &[u8], _at: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn preallocate(&self, _length: u64, _grow: bool) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_len(&self, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn map_sealed(&self) -> io::Result<Bytes> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// The stream to the client, at a bounded rate.
struct Out {
    backups: Arc<Backups>,
    pieces: mpsc::Sender<Result<Bytes, Arc<str>>>,
    piece: BytesMut,
    sent_bytes: u64,
    /// Why sending has ended, if it has.
    over: Option<&'static str>,
}

impl Out {
    fn begin(&mut self, name: &str, bytes: u64, at_ms: u64) -> io::Result<()> {
        let header = tar::header(name, bytes, at_ms)?;
        self.push(&header)
    }

    fn zeros(&mut self, count: usize) -> io::Result<()> {
        self.push(&vec![0; count])
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.piece.extend_from_slice(bytes);
        match self.piece.len() >= PIECE_BYTES {
            true => self.flush(),
            false => self.check(),
        }
    }

    /// Sends the collected bytes when there is room, and then rests as long as reading them should
    /// have taken.
    fn flush(&mut self) -> io::Result<()> {
        let mut piece = self.piece.split().freeze();
        let bytes = piece.len() as u64;
        loop {
            self.check()?;
            match self.pieces.try_send(Ok(piece)) {
                Ok(()) => break,
                Err(mpsc::error::TrySendError::Full(Ok(unsent))) => piece = unsent,
                Err(_) => {
                    self.over = Some("whoever asked for it is gone");
                    return self.check();
                }
            }
            self.pause(LOOK_DELAY);
        }
        self.sent_bytes += bytes;
        self.pause(Duration::from_micros(
            bytes * 1_000_000 / BACKUP_BYTES_PER_SECOND_MAX,
        ));
        self.check()
    }

    fn pause(&mut self, duration: Duration) {
        if !self.backups.pause.wait(duration) {
            self.over = Some("the host stops");
        } else if self.backups.commits.reserve.is_full() {
            // The space that it preserves may be needed by others now.
            self.over = Some("the disk is full");
        }
    }

    fn check(&self) -> io::Result<()> {
        self.over.map_or(Ok(()), |why| Err(io::Error::other(why)))
    }
}
