//! Opening a data directory: the checkpoint, then the journal after it, then a new checkpoint of both.
//!
//! Nothing on disk is removed before its replacement is durable, so after a crash in here the same
//! recovery runs again. And nothing is served that was only read back from the page cache: after a
//! failed sync or a killed process, the cache may show data that the disk never had, so everything
//! replayed is first written again and synced.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_engine::room::Room;
use millrace_engine::state::StateTable;
use millrace_engine::state::keeper::KeepTable as _;
use millrace_log::inspect::disk_bytes;
use millrace_log::partition::Listing;
use millrace_log::{Disk, Journal, JournalScan, PartitionFiles, SealedCache, journal};
use millrace_model::{Clock, GroupName, Offset};

use crate::decide::codec;
use crate::decide::state::{Group, State, Store};
use crate::ground::keep_error::KeepError;
use crate::ground::open_error::OpenError;
use crate::ground::options::LocalOptions;
use crate::ground::tail::Partition;
use crate::keep::backup::{manifest, sending};
use crate::keep::checkpoint::{Checkpoint, CheckpointStore};
use crate::keep::evidence::{self, Evidence, EvidenceFile};
use crate::keep::keeper::Keeper;
use crate::keep::modules::ModuleFiles;
use crate::keep::runs::{self, RunFiles};
use crate::keep::saver::Saver;
use crate::start::lock::{DirLock, lock};
use crate::write::reserve::Reserve;

/// Everything that a running engine needs.
pub(crate) struct Recovered {
    pub(crate) lock: DirLock,
    pub(crate) state: State,
    pub(crate) journal: Journal,
    pub(crate) keeper: Keeper,
    pub(crate) saver: Saver,
    pub(crate) modules: ModuleFiles,
    pub(crate) evidence: EvidenceFile,
    pub(crate) reserve: Arc<Reserve>,
}

/// Opens the directory, blocking.
pub(crate) fn recover(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: &LocalOptions,
    clock: Arc<dyn Clock>,
) -> Result<Recovered, OpenError> {
    if dir.to_str().is_none() {
        let dir = dir.to_owned();
        return Err(OpenError::Name { dir });
    }
    if manifest::is_backup(dir) {
        let dir = dir.to_owned();
        return Err(OpenError::Backup { dir });
    }
    let lock = lock(dir)?;
    let failed = |error: KeepError| describe(dir, error);
    let failed_io = |error: std::io::Error| describe(dir, error.into());
    let journal_dir = dir.join("journal");
    let topics_dir = dir.join("topics");
    let modules_dir = dir.join("modules");
    let state_dir = dir.join(runs::DIRECTORY);
    for made in [&journal_dir, &topics_dir, &modules_dir, &state_dir] {
        disk.create_dir_all(made).map_err(failed_io)?;
    }
    disk.sync_dir(dir).map_err(failed_io)?;
    sending::sweep(&*disk, dir);
    let path = dir.join("checkpoint.sqlite");
    let holds_data = holds_data(&*disk, &journal_dir, &topics_dir).map_err(failed_io)?;
    if holds_data && !path.exists() {
        return Err(OpenError::CheckpointMissing { path });
    }
    let reserve = Arc::new(Reserve::new(Arc::clone(&disk), dir, options));
    let mut checkpoints = open_checkpoints(&reserve, &path, options)?;
    checkpoints.check_keys()?;
    let checkpoint = checkpoints.load()?;
    let known = evidence::read(&*disk, dir).map_err(failed_io)?;
    let known = known.unwrap_or_default();
    if holds_data && !checkpoint.is_made {
        return Err(OpenError::CheckpointMissing { path });
    }
    if checkpoint.sequence < known.checkpoint {
        let (found, expected) = (checkpoint.sequence, known.checkpoint);
        return Err(OpenError::CheckpointOld {
            path,
            found,
            expected,
        });
    }
    // The whole journal is checked before anything is changed.
    let scan = journal::scan(
        Arc::clone(&disk),
        &journal_dir,
        checkpoint.journal_file,
        checkpoint.sequence,
    )
    .map_err(|error| OpenError::Journal(Arc::new(error)))?;
    check_end(&scan, &journal_dir, known)?;
    let runs = RunFiles::open(
        Arc::clone(&disk),
        dir,
        options.encryption.clone(),
        &checkpoint,
    )?;
    checkpoints.compact()?;
    let mut adopted = checkpoints.adopt_keys();
    while matches!(adopted, Err(OpenError::DiskFull { .. })) && reserve.give_up() {
        adopted = checkpoints.adopt_keys();
    }
    adopted?;
    let store = Store {
        disk: Arc::clone(&disk),
        cache: Arc::new(SealedCache::default()),
        topics_dir,
        segment_bytes: options.segment_bytes,
        encryption: options.encryption.clone(),
        state_resident_bytes: options.state_resident_bytes,
    };
    let removed = checkpoint.removed_topics.clone();
    let saver = Saver::new(
        store.clone(),
        checkpoints,
        Arc::clone(&reserve),
        runs,
        removed,
    );
    let mut saver = saver.map_err(failed_io)?;
    saver.sweep();
    let mut keeper = Keeper::new(clock, store.segment_bytes);
    let replayed_from = checkpoint.sequence;
    // If the size of the disk is unknown, no amount counts as too much.
    let disk_bytes = disk_bytes(dir).map_or(u64::MAX, |bytes| bytes / 2);
    let disk_bytes = usize::try_from(disk_bytes).unwrap_or(usize::MAX);
    let room = Room::with_files(options.bounds, disk_bytes);
    let mut state = restore(store, room, checkpoint, saver.runs()).map_err(failed_io)?;
    replay(&scan, &mut state, &mut keeper, &reserve, options, dir)?;
    let sequence = scan.last_sequence();
    if sequence > replayed_from {
        tracing::info!(
            transactions = sequence - replayed_from,
            "the journal was replayed"
        );
    }
    flush(&mut state, &mut keeper, &reserve).map_err(failed)?;
    let mut changes = state.take_changes();
    changes.all_topics.get_or_insert_with(|| state.topics());
    let trimmed = reserve.spend(|| keeper.trim(&changes));
    trimmed.map_err(failed)?;
    let partitions = keeper.changed();
    let flushed = keeper.take_flushed(&changes);
    let marks = flushed.marks.clone();
    saver
        .save(sequence, scan.next_file(), &changes, flushed)
        .map_err(failed)?;
    Keeper::note_saved(&partitions, &marks);
    saver.sweep();
    saver.runs().sweep();
    let journal = Journal::start(scan, options.journal_file_bytes).map_err(failed_io)?;
    // Until the reserve is complete, messages are refused.
    reserve.set_full(!(reserve.fill() && journal.has_reserved()));
    let evidence = EvidenceFile::new(Arc::clone(&disk), dir);
    let modules =
        ModuleFiles::open(disk, modules_dir, options.encryption.clone()).map_err(failed_io)?;
    Ok(Recovered {
        lock,
        state,
        journal,
        keeper,
        saver,
        modules,
        evidence,
        reserve,
    })
}

fn open_checkpoints(
    reserve: &Reserve,
    path: &Path,
    options: &LocalOptions,
) -> Result<CheckpointStore, OpenError> {
    let mut opened = CheckpointStore::open(path, options.encryption.clone());
    // Rolls back what a killed process left unfinished, which may need space.
    while matches!(opened, Err(OpenError::DiskFull { .. })) && reserve.give_up() {
        opened = CheckpointStore::open(path, options.encryption.clone());
    }
    opened
}

/// Whether there are files that only a checkpoint can explain: before the first checkpoint there is
/// neither a journal nor a topic.
fn holds_data(disk: &dyn Disk, journal_dir: &Path, topics_dir: &Path) -> std::io::Result<bool> {
    let journal = disk.list(journal_dir)?;
    let topics = disk.list(topics_dir)?;
    Ok(journal.iter().any(|name| journal::is_file_name(name))
        || topics.iter().any(|name| name.parse::<u64>().is_ok()))
}

/// Checks that the journal contains everything that was durable.
fn check_end(scan: &JournalScan, journal_dir: &Path, known: Evidence) -> Result<(), OpenError> {
    let (from, to) = (scan.last_sequence() + 1, known.durable);
    if from > to {
        return Ok(());
    }
    Err(OpenError::Missing {
        dir: journal_dir.to_owned(),
        from,
        to,
    })
}

fn describe(dir: &Path, error: KeepError) -> OpenError {
    let dir: PathBuf = dir.to_owned();
    match error {
        KeepError::Full => OpenError::DiskFull { dir },
        KeepError::Failed(reason) => OpenError::Io { dir, reason },
    }
}

/// The state of the checkpoint.
fn restore(
    store: Store,
    room: Arc<Room>,
    checkpoint: Checkpoint,
    runs: &mut RunFiles,
) -> std::io::Result<State> {
    let mut state = State::new(store.clone(), room, checkpoint.next_topic);
    let marks: HashMap<_, _> = checkpoint.marks.into_iter().collect();
    for topic in checkpoint.topics {
        let listing = Listing::read(&*store.disk, &store.topic_dir(topic.id))?;
        for id in topic.partitions() {
            let files = PartitionFiles::open(
                Arc::clone(&store.disk),
                Arc::clone(&store.cache),
                listing.files(&*store.disk, id.partition.0)?,
                Some(id),
                store.segment_bytes,
                marks.get(&id).copied().unwrap_or_default(),
            )?
            .encrypted_with(store.batch_cipher(id));
            state.insert_partition(Partition::new(id, &topic.spec, files));
        }
        state.insert_topic(topic);
    }
    for (partition, name, epoch, progress) in checkpoint.groups {
        state.insert_group(
            partition,
            GroupName::stored(&name),
            Group::stored(epoch, progress.map(Arc::new)),
        );
    }
    for (kind, key, value) in checkpoint.entries {
        state.insert_entry(kind, key, value);
    }
    for ((partition, name), table) in checkpoint.state {
        // Remains of a topic that another version deleted.
        if state.partitions.contains_key(&partition) {
            state.insert_table(partition, &GroupName::stored(&name), table);
        }
    }
    for ((partition, name), table) in checkpoint.paged {
        let key = (partition, GroupName::stored(&name));
        match runs.set_of(&key) {
            Some(set) if state.partitions.contains_key(&partition) => {
                let table = StateTable::paged(set, table.size);
                let table = state.insert_table(partition, &key.1, table);
                runs.register(&key, &table);
            }
            _ => runs.note_strange(key),
        }
    }
    state.idempotence = checkpoint.idempotence.within(state.room.bounds());
    Ok(state)
}

/// Why a replay stopped.
enum ReplayError {
    Contradiction { sequence: u64, reason: String },
    Keep(KeepError),
}

impl From<std::io::Error> for ReplayError {
    fn from(error: std::io::Error) -> Self {
        Self::Keep(error.into())
    }
}

fn replay(
    scan: &JournalScan,
    state: &mut State,
    keeper: &mut Keeper,
    reserve: &Reserve,
    options: &LocalOptions,
    dir: &Path,
) -> Result<(), OpenError> {
    // Batches keep the bytes of their whole journal file in memory.
    let (mut held, mut kept_files) = (0, 0);
    let replayed = scan.replay(|sequence, body| {
        let contradiction = |reason| ReplayError::Contradiction { sequence, reason };
        let cipher = options.encryption.as_deref();
        let body_bytes = body.len();
        for operation in codec::open(body, cipher, sequence).map_err(contradiction)? {
            let applied = state.apply(operation);
            held += applied.map_err(|reason| contradiction(reason.to_owned()))?;
        }
        if held > 0 {
            kept_files += body_bytes;
        }
        if held.max(kept_files) > options.tail_bytes_max {
            flush(state, keeper, reserve).map_err(ReplayError::Keep)?;
            (held, kept_files) = (0, 0);
        }
        Ok(())
    });
    replayed.map_err(|error| match error {
        ReplayError::Contradiction { sequence, reason } => OpenError::Replay { sequence, reason },
        ReplayError::Keep(error) => describe(dir, error),
    })
}

/// Moves everything replayed from memory to the files, because the batches share the bytes of whole
/// journal files. Watches start at the partition's current end; otherwise waiting readers would
/// miss what was replayed.
fn flush(state: &mut State, keeper: &mut Keeper, reserve: &Reserve) -> Result<(), KeepError> {
    for partition in state.partitions.values() {
        partition.show(partition.end());
        reserve.spend(|| keeper.flush(partition, Offset::MAX))?;
        partition.clear();
        partition.announce();
    }
    Ok(())
}
