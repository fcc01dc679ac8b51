//! Tests of backups of a running engine: as of one instant, complete or absent, and equivalent to
//! the original directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fastrand::Rng;
use millrace_engine::backup::{BackupError, BackupRequest, BackupStream};
use millrace_engine::conformance::named;
use millrace_engine::{MemoryEngine, ProgressWrite, ReadError};
use millrace_log::{Cipher, Disk, RealDisk};
use millrace_model::Progress;

use super::*;
use crate::backup::{
    MANIFEST, Manifest, ManifestError, ReceiveError, Received, Receiver, RestoreError, Restored,
    Restorer, Verified, restore, verify,
};
use crate::start::examine::Severity;

/// Directories of one test.
pub(super) struct Place(tempfile::TempDir);

impl Place {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn restored(&self, from: &str, to: &str) -> Restored {
        self.try_restore(from, to).expect("restored")
    }

    fn try_restore(&self, from: &str, to: &str) -> Result<Restored, RestoreError> {
        apart(|| restore(&self.at(from), &self.at(to), &mut |_, _| {}))
    }

    pub(super) fn verified(&self, dir: &str) -> Verified {
        apart(|| verify(&self.at(dir), None, &mut |_, _| {})).expect("verified")
    }
}

/// Runs code that needs its own runtime outside of this one.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().expect("no panic"))
}

async fn drain(mut stream: BackupStream) -> Vec<u8> {
    let mut archive = Vec::new();
    while let Some(piece) = stream.next().await {
        archive.extend_from_slice(&piece.expect("a piece"));
    }
    archive
}

/// Begins a backup when the previous one has ended.
async fn begin(engine: &LocalEngine) -> BackupStream {
    loop {
        match engine.backup(BackupRequest::default()).await {
            Ok(stream) => return stream,
            Err(BackupError::UnderWay) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn archive(engine: &LocalEngine) -> Vec<u8> {
    drain(begin(engine).await).await
}

pub(super) async fn back_up(engine: &LocalEngine, dir: &Path) -> Received {
    try_back_up(engine, dir, false).await.expect("received")
}

async fn try_back_up(
    engine: &LocalEngine,
    dir: &Path,
    anew: bool,
) -> Result<Received, ReceiveError> {
    let mut receiver = Receiver::begin(dir, anew)?;
    let begun = engine.backup(receiver.request()).await;
    receiver.take(&drain(begun.expect("a backup")).await)?;
    receiver.finish()
}

/// A transaction that writes the same number to two partitions and to a group's progress.
async fn step(engine: &LocalEngine, topic: &Topic, lease: &millrace_engine::Lease, number: u64) {
    let value = format!("{number} {}", "x".repeat(number as usize % 300));
    let transaction = Transaction {
        appends: vec![append(at(topic, 0), &value), append(at(topic, 1), &value)],
        progress: vec![ProgressWrite {
            partition: lease.partition,
            lease: lease.clone(),
            progress: Progress {
                next: Offset(number + 1),
                ..Progress::default()
            }
            .into(),
        }],
        ..Transaction::default()
    };
    engine.commit(transaction).await.expect("committed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_of_one_instant_after_it_was_asked_for_while_commits_go_on() {
    let place = Place::new();
    let engine = open_real(&place.at("data"), small()).await.unwrap();
    let topic = topic(&engine, "orders", Durability::Durable).await;
    let lease = engine
        .claim(&named("g"), at(&topic, 2))
        .await
        .unwrap()
        .lease;
    let (done, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let writing = tokio::spawn({
        let (engine, topic) = (Arc::clone(&engine), topic.clone());
        let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Acquire) {
                let number = done.load(Ordering::Acquire);
                step(&engine, &topic, &lease, number).await;
                done.store(number + 1, Ordering::Release);
            }
        }
    });
    for round in 0..8 {
        eventually(async || done.load(Ordering::Acquire) > 40 * round).await;
        let before = done.load(Ordering::Acquire);
        let received = back_up(&engine, &place.at("backup")).await;
        assert_eq!(received.manifest.damage, []);
        let to = format!("restored-{round}");
        let restored = place.restored("backup", &to);
        for dir in ["backup", &to] {
            let mode = fs::metadata(place.at(dir)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{dir}");
        }
        assert_eq!(restored.flaws, []);
        assert_eq!(restored.topics, [("orders".to_owned(), 3)]);
        let copy = open_real(&place.at(&to), small()).await.expect("it opens");
        let ends = [0, 1].map(|number| copy.ends(at(&topic, number)).unwrap().end.0);
        let progress = copy.progress(&named("g"), at(&topic, 2)).await.unwrap();
        assert_eq!(ends, [progress.map_or(0, |progress| progress.next.0); 2]);
        assert!(ends[0] >= before, "{} of {before}", ends[0]);
        let read = values(&copy, at(&topic, 0)).await;
        let numbers = read.iter().map(|value| value.split_once(' ').unwrap().0);
        assert!(numbers.eq((0..ends[0]).map(|number| number.to_string())));
        // And it continues from there.
        produce(&copy, at(&topic, 1), "more").await.expect("taken");
        copy.close().await;
    }
    stop.store(true, Ordering::Release);
    writing.await.unwrap();
    let verified = place.verified("backup");
    assert_eq!(verified.flaws, []);
    assert!(
        verified.report.worst() < Severity::Damage,
        "{:?}",
        verified.report
    );
    engine.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_of_before_and_after_a_topic_grew_are_each_of_their_time() {
    let place = Place::new();
    let engine = open_real(&place.at("data"), small()).await.unwrap();
    let topic = topic(&engine, "orders", Durability::Durable).await;
    for partition in 0..3 {
        produce(&engine, at(&topic, partition), "before")
            .await
            .unwrap();
    }
    back_up(&engine, &place.at("backup")).await;
    place.restored("backup", "earlier");
    let grown = grow(&engine, "orders", 6).await;
    for partition in 0..6 {
        let value = "x".repeat(3_000);
        produce(&engine, at(&grown, partition), &value)
            .await
            .unwrap();
    }
    // Into the same directory: existing files are not sent again.
    back_up(&engine, &place.at("backup")).await;
    assert_eq!(place.verified("backup").flaws, []);
    let restored = place.restored("backup", "later");
    assert_eq!(restored.topics, [("orders".to_owned(), 6)]);
    engine.close().await;
    for (dir, partitions, messages) in [("earlier", 3, [1, 1]), ("later", 6, [2, 1])] {
        let copy = open_real(&place.at(dir), small()).await.expect("it opens");
        let known = copy.topic(&grown.spec.name).unwrap();
        assert_eq!(known.spec.partitions, partitions, "{dir}");
        for id in known.partitions() {
            let expected = messages[usize::from(id.partition.0 > 2)];
            assert_eq!(values(&copy, id).await.len(), expected, "{dir}: {id}");
        }
        // And it can grow from there.
        let more = grow(&copy, "orders", 7).await;
        produce(&copy, at(&more, 6), "more").await.expect("taken");
        copy.close().await;
    }
}

/// Room for large values, so that a few of them are much data.
fn large() -> LocalOptions {
    LocalOptions {
        journal_file_bytes: 1 << 20,
        segment_bytes: 256 << 10,
        tail_bytes_max: 1 << 20,
        checkpoint_journal_bytes: 1 << 20,
        cleaning_interval: Duration::from_millis(5),
        ..small()
    }
}

/// More than the queued pieces of an archive.
const MORE_THAN_WAITS: usize = 6 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_or_trimmed_while_it_is_copied_is_in_the_copy() {
    let place = Place::new();
    let options = large();
    let data = place.at("data");
    let engine = open_real(&data, options.clone()).await.unwrap();
    let (kept, gone) = (
        topic(&engine, "kept", Durability::Os).await,
        topic(&engine, "gone", Durability::Os).await,
    );
    let value = "v".repeat(100_000);
    let count = MORE_THAN_WAITS / value.len() / 2;
    for _ in 0..count {
        produce(&engine, at(&kept, 0), &value).await.unwrap();
        produce(&engine, at(&gone, 0), &value).await.unwrap();
    }
    let module = Bytes::from_static(b"\0asm of a module");
    engine
        .put_module(digest_of(&module), module.clone())
        .await
        .unwrap();
    let stream = engine
        .backup(BackupRequest::default())
        .await
        .expect("begun");
    let end = Offset(count as u64);
    engine
        .delete_module(digest_of(&module), Vec::new())
        .await
        .unwrap();
    engine.trim(at(&kept, 0), end).await.unwrap();
    let name = TopicName::parse("gone").unwrap();
    let deleted = engine.delete_topic(&name, Vec::new()).await.unwrap();
    let dir = data.join(format!("topics/{deleted}"));
    let first = data.join(format!("topics/{}/0-{:020}.segment", kept.id, 0));
    eventually(async || {
        // Each write may lead to the checkpoint that drops the files.
        let _ = produce(&engine, at(&kept, 1), &value).await;
        !dir.exists() && !first.exists()
    })
    .await;
    let mut restorer = Restorer::begin(&place.at("restored")).unwrap();
    restorer.take(&drain(stream).await).unwrap();
    let restored = apart(|| restorer.finish()).unwrap();
    assert_eq!(restored.flaws, []);
    let copy = open_real(&place.at("restored"), options).await.unwrap();
    for topic in [&kept, &gone] {
        assert_eq!(values(&copy, at(topic, 0)).await.len(), count);
    }
    let found = copy.module(digest_of(&module)).await.unwrap();
    assert_eq!(found, Some(module));
    copy.close().await;
    engine.close().await;
    assert!(!data.join("backup").exists(), "nothing is left");
}

#[tokio::test]
async fn a_second_backup_copies_only_what_is_new_and_removes_what_is_gone() {
    let place = Place::new();
    let engine = open_real(&place.at("data"), small()).await.unwrap();
    let topic = topic(&engine, "orders", Durability::Os).await;
    let text = |number: u32| format!("{number} {}", "y".repeat(400));
    for number in 0..60 {
        produce(&engine, at(&topic, 0), &text(number))
            .await
            .unwrap();
    }
    let first = back_up(&engine, &place.at("backup")).await;
    assert_eq!(first.copied.0, first.manifest.files.len());
    assert!(first.copied.0 > 8, "{:?}", first.copied);
    // If nothing happened, only the checkpoint differs.
    let idle = back_up(&engine, &place.at("backup")).await;
    assert_eq!(idle.copied.0, 1, "{:?}", idle.copied);
    for number in 60..70 {
        produce(&engine, at(&topic, 1), &text(number))
            .await
            .unwrap();
    }
    engine.trim(at(&topic, 0), Offset(40)).await.unwrap();
    eventually(async || {
        let second = back_up(&engine, &place.at("backup")).await;
        assert!(second.copied.0 < first.copied.0, "{:?}", second.copied);
        second.manifest.files.len() < first.manifest.files.len()
    })
    .await;
    place.restored("backup", "restored");
    let copy = open_real(&place.at("restored"), small()).await.unwrap();
    let found = values(&copy, at(&topic, 1)).await;
    assert_eq!(found, (60..70).map(text).collect::<Vec<_>>());
    // The directory has only the files in the manifest, the manifest itself, and the lock.
    let manifest = Manifest::read(&RealDisk, &place.at("backup")).unwrap();
    let stored = files_under(&place.at("backup"));
    assert_eq!(stored.len(), manifest.files.len() + 2, "{stored:?}");
    // Everything again, if requested.
    let anew = try_back_up(&engine, &place.at("backup"), true)
        .await
        .unwrap();
    assert_eq!(anew.copied.0, anew.manifest.files.len());
    copy.close().await;
    engine.close().await;
}

fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_under(&path)),
            false => found.push(path),
        }
    }
    found
}

/// Checks that all files of the backup on a simulated disk match its manifest; returns its
/// transaction.
fn whole_on(disk: &SimDisk, dir: &Path) -> u64 {
    let manifest = Manifest::read(disk, dir).expect("a manifest");
    for file in &manifest.files {
        let path = dir.join(&file.run).join(&file.path);
        let bytes = disk.contents(&path);
        let bytes = bytes.unwrap_or_else(|| panic!("{} is there", path.display()));
        assert_eq!(digest_of(&bytes), file.sha256, "{}", path.display());
        assert_eq!(bytes.len() as u64, file.bytes);
    }
    manifest.sequence
}

#[tokio::test]
async fn wherever_the_power_fails_an_earlier_backup_stays_until_the_new_one_is_whole() {
    let place = Place::new();
    let engine = open_real(&place.at("data"), small()).await.unwrap();
    let topic = topic(&engine, "orders", Durability::Os).await;
    for number in 0..20 {
        let value = format!("{number} {}", "z".repeat(300));
        produce(&engine, at(&topic, 0), &value).await.unwrap();
    }
    let dir = place.at("backup");
    fs::create_dir(&dir).unwrap();
    let disk = SimDisk::default();
    let mut receiver = Receiver::begin_on(Arc::new(disk.clone()), &dir, false).unwrap();
    let begun = engine.backup(receiver.request()).await.unwrap();
    receiver.take(&drain(begun).await).unwrap();
    let first = receiver.finish().unwrap().manifest.sequence;
    assert_eq!(whole_on(&disk, &dir), first);
    for number in 20..40 {
        let value = format!("{number} {}", "z".repeat(300));
        produce(&engine, at(&topic, 1), &value).await.unwrap();
    }
    let receiver = Receiver::begin_on(Arc::new(disk.clone()), &dir, false).unwrap();
    let request = receiver.request();
    drop(receiver);
    let second = drain(engine.backup(request).await.unwrap()).await;
    let image = disk.image();
    let mut outcomes = [0, 0];
    for operations in 0.. {
        let mut image = image.clone();
        image.close_all();
        let disk = SimDisk::with_image(image);
        disk.cut_power_after(operations);
        let receive = || -> Result<Received, ReceiveError> {
            let mut receiver = Receiver::begin_on(Arc::new(disk.clone()), &dir, false)?;
            receiver.take(&second)?;
            receiver.finish()
        };
        let received = receive();
        let is_whole = received.is_ok() && !disk.is_off();
        disk.restore_power(operations);
        let found = whole_on(&disk, &dir);
        if received.is_ok() {
            assert!(found > first, "what was said to be there is there");
        }
        outcomes[usize::from(found > first)] += 1;
        if is_whole {
            break;
        }
    }
    assert!(outcomes[0] > 10 && outcomes[1] > 1, "{outcomes:?}");
    engine.close().await;
}

#[tokio::test]
async fn an_archive_that_breaks_off_is_no_backup_and_what_was_there_stays() {
    let place = Place::new();
    let engine = open_real(&place.at("data"), small()).await.unwrap();
    let topic = topic(&engine, "orders", Durability::Os).await;
    produce(&engine, at(&topic, 0), "kept").await.unwrap();
    let first = back_up(&engine, &place.at("backup")).await;
    let all = archive(&engine).await;
    let mut random = Rng::with_seed(7);
    for _ in 0..20 {
        let mut receiver = Receiver::begin(&place.at("backup"), true).unwrap();
        let length = random.usize(..all.len() - 2 * 512);
        receiver.take(&all[..length]).unwrap();
        let error = receiver.finish().unwrap_err();
        assert!(matches!(error, ReceiveError::BrokenOff), "{error}");
        let there = Manifest::read(&RealDisk, &place.at("backup")).unwrap();
        assert_eq!(there, first.manifest);
    }
    // A flipped bit is reported, wherever it is.
    for _ in 0..60 {
        let mut changed = all.clone();
        let at = random.usize(..all.len() - 1_024);
        changed[at] ^= 1 << random.u8(..8);
        let mut receiver = Receiver::begin(&place.at("backup"), true).unwrap();
        let received = receiver.take(&changed).and_then(|()| receiver.finish());
        // Nothing depends on padding, or on header fields other than name and length.
        if let Ok(received) = received {
            let verified = place.verified("backup");
            assert_eq!(verified.flaws, [], "{:?}", received.copied);
        }
    }
    // A host refuses an incomplete data directory, and a restore does not continue it.
    let restoring = place.at("restoring");
    let mut restorer = Restorer::begin(&restoring).unwrap();
    restorer.take(&all[..all.len() / 2]).unwrap();
    assert!(matches!(restorer.finish(), Err(RestoreError::Malformed(_))));
    let opened = open_real(&restoring, small()).await.err().expect("refused");
    assert!(matches!(opened, OpenError::Checkpoint { .. }), "{opened}");
    let again = Restorer::begin(&restoring).err().expect("refused");
    assert!(matches!(again, RestoreError::NotEmpty { .. }), "{again}");
    // Nor does a host start on the backup itself.
    let opened = open_real(&place.at("backup"), small()).await;
    let opened = opened.err().expect("refused");
    assert!(matches!(opened, OpenError::Backup { .. }), "{opened}");
    engine.close().await;
}

#[tokio::test]
async fn damage_is_copied_and_named_and_all_else_is_there() {
    let place = Place::new();
    let data = place.at("data");
    let engine = open_real(&data, small()).await.unwrap();
    let topic = topic(&engine, "orders", Durability::Durable).await;
    for number in 0..40 {
        let value = format!("{number} {}", "d".repeat(400));
        produce(&engine, at(&topic, 0), &value).await.unwrap();
    }
    back_up(&engine, &place.at("sound")).await;
    let segment = data.join(format!("topics/{}/0-{:020}.segment", topic.id, 0));
    let mut bytes = fs::read(&segment).unwrap();
    bytes[300] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let received = back_up(&engine, &place.at("backup")).await;
    let damage = &received.manifest.damage;
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert!(damage[0].path.ends_with("0-00000000000000000000.segment"));
    assert!(damage[0].what.contains("messages 0 to "), "{damage:?}");
    // It is still reported when the file is not copied again.
    let again = back_up(&engine, &place.at("backup")).await;
    assert_eq!(&again.manifest.damage, damage);
    let restored = place.restored("backup", "restored");
    assert_eq!(&restored.flaws, damage);
    let copy = open_real(&place.at("restored"), small()).await.unwrap();
    let read = copy.read(at(&topic, 0), Offset(0), 1_000).await;
    let Err(ReadError::Damaged { to, .. }) = read else {
        panic!("{read:?}");
    };
    let rest = copy.read(at(&topic, 0), to, 1_000_000).await.unwrap();
    assert_eq!(rest.last().unwrap().end_offset(), Offset(40));
    copy.close().await;
    // If a backup's own files change afterwards, this is found and reported, and everything else is
    // restored.
    let sound = Manifest::read(&RealDisk, &place.at("sound")).unwrap();
    let of_messages = |file: &&crate::backup::BackupFile| file.path.ends_with(".segment");
    let file = sound.files.iter().find(of_messages).unwrap();
    let path = place.at("sound").join(&file.run).join(&file.path);
    let mut bytes = fs::read(&path).unwrap();
    bytes[200] ^= 4;
    fs::write(&path, bytes).unwrap();
    let verified = place.verified("sound");
    assert_eq!(verified.flaws.len(), 1);
    assert_eq!(verified.flaws[0].path, file.path);
    assert_eq!(verified.report.worst(), Severity::Damage);
    let restored = place.restored("sound", "restored-again");
    assert_eq!(restored.flaws.len(), 1);
    // Without the checkpoint nothing can be restored.
    let path = |file: &&crate::backup::BackupFile| file.path == "checkpoint.sqlite";
    let file = sound.files.iter().find(path).unwrap();
    fs::remove_file(place.at("sound").join(&file.run).join(&file.path)).unwrap();
    let refused = place.try_restore("sound", "none");
    assert!(matches!(refused, Err(RestoreError::Checkpoint(_))));
    engine.close().await;
}

#[tokio::test]
async fn one_backup_at_a_time_and_one_that_nobody_takes_ends() {
    let place = Place::new();
    let engine = open_real(&place.at("data"), large()).await.unwrap();
    let topic = topic(&engine, "orders", Durability::Os).await;
    let value = "w".repeat(100_000);
    for _ in 0..MORE_THAN_WAITS / value.len() {
        produce(&engine, at(&topic, 0), &value).await.unwrap();
    }
    let stream = engine.backup(BackupRequest::default()).await.unwrap();
    let second = engine.backup(BackupRequest::default()).await.unwrap_err();
    assert!(matches!(second, BackupError::UnderWay), "{second}");
    drop(stream);
    // A stopping host does not wait for a reader that reads nothing; the reader sees that the
    // archive is incomplete.
    let mut stream = begin(&engine).await;
    engine.close().await;
    let mut came = Vec::new();
    while let Some(Ok(piece)) = stream.next().await {
        came.extend_from_slice(&piece);
    }
    let mut receiver = Receiver::begin(&place.at("backup"), false).unwrap();
    receiver.take(&came).unwrap();
    let error = receiver.finish().unwrap_err();
    assert!(matches!(error, ReceiveError::BrokenOff), "{error}");
    let closed = engine.backup(BackupRequest::default()).await.unwrap_err();
    assert!(
        matches!(closed, BackupError::Engine(CommitError::Closed)),
        "{closed}"
    );
    assert!(!place.at("data/backup").exists(), "nothing is left");
    let memory = MemoryEngine::new(Arc::new(SystemClock::new()));
    let cannot = memory.backup(BackupRequest::default()).await.unwrap_err();
    assert!(matches!(cannot, BackupError::Unsupported), "{cannot}");
}

#[tokio::test]
async fn a_restored_directory_is_another_one_and_gives_other_ids() {
    let place = Place::new();
    let engine = open_real(&place.at("data"), small()).await.unwrap();
    topic(&engine, "orders", Durability::Os).await;
    let named = engine.init_producer(Some("till")).await.unwrap();
    engine.init_producer(None).await.unwrap();
    back_up(&engine, &place.at("backup")).await;
    // Ids that the old host issues from now on are not issued again.
    let mut given = Vec::new();
    for _ in 0..50 {
        given.push(engine.init_producer(None).await.unwrap().id);
    }
    let renamed = engine.init_producer(Some("till")).await.unwrap();
    assert_eq!(renamed.id, named.id);
    place.restored("backup", "restored");
    let copy = open_real(&place.at("restored"), small()).await.unwrap();
    for _ in 0..50 {
        let id = copy.init_producer(None).await.unwrap().id;
        assert!(!given.contains(&id), "{id}");
    }
    let again = copy.init_producer(Some("till")).await.unwrap();
    assert_eq!(again.id, named.id);
    assert!(again.epoch > renamed.epoch, "{again:?} {renamed:?}");
    // Its backups do not replace those of the original.
    let receiver = Receiver::begin(&place.at("backup"), false).unwrap();
    let refused = copy.backup(receiver.request()).await.unwrap_err();
    assert!(
        matches!(refused, BackupError::OtherDirectory { .. }),
        "{refused}"
    );
    copy.close().await;
    engine.close().await;
}

#[tokio::test]
async fn what_is_no_place_for_a_backup_is_refused_and_left_as_it_is() {
    let place = Place::new();
    let data = place.at("data");
    let engine = open_real(&data, small()).await.unwrap();
    let inside = Receiver::begin(&data.join("backups/monday"), false).err();
    let inside = inside.expect("refused");
    assert!(
        matches!(inside, ReceiveError::InDataDirectory { .. }),
        "{inside}"
    );
    assert!(!data.join("backups").exists());
    fs::create_dir(place.at("photos")).unwrap();
    fs::write(place.at("photos/one"), "kept").unwrap();
    let others = Receiver::begin(&place.at("photos"), true)
        .err()
        .expect("refused");
    assert!(matches!(others, ReceiveError::NotOurs { .. }), "{others}");
    let held = Receiver::begin(&place.at("backup"), false).unwrap();
    let second = Receiver::begin(&place.at("backup"), false)
        .err()
        .expect("refused");
    assert!(matches!(second, ReceiveError::InUse { .. }), "{second}");
    drop(held);
    back_up(&engine, &place.at("backup")).await;
    let newer = br#"{"format": 7}"#;
    fs::write(place.at("backup").join(MANIFEST), newer).unwrap();
    for anew in [false, true] {
        let refused = Receiver::begin(&place.at("backup"), anew)
            .err()
            .expect("refused");
        let is_newer = matches!(refused, ReceiveError::Earlier(ManifestError::Newer { .. }));
        assert!(is_newer, "{refused}");
    }
    let refused = place.try_restore("backup", "none");
    assert!(matches!(refused, Err(RestoreError::Manifest(_))));
    assert!(!place.at("none").exists(), "nothing was begun");
    engine.commits.reserve.set_full(true);
    let full = engine.backup(BackupRequest::default()).await.unwrap_err();
    assert!(matches!(full, BackupError::DiskFull), "{full}");
    engine.commits.reserve.set_full(false);
    engine.close().await;
}

#[tokio::test]
async fn a_backup_of_an_encrypted_directory_is_encrypted_and_needs_its_key() {
    let place = Place::new();
    let key = format!("1:{}", "0123456789abcdef".repeat(4));
    let encrypted = LocalOptions {
        encryption: Some(Arc::new(Cipher::parse(&key).unwrap())),
        ..small()
    };
    let engine = open_real(&place.at("data"), encrypted.clone())
        .await
        .unwrap();
    let topic = topic(&engine, "orders", Durability::Os).await;
    produce(&engine, at(&topic, 0), "a secret").await.unwrap();
    let received = back_up(&engine, &place.at("backup")).await;
    engine.close().await;
    assert_eq!(received.manifest.encryption_key, Some(1));
    for path in files_under(&place.at("backup")) {
        let bytes = fs::read(&path).unwrap();
        let is_readable = bytes.windows(8).any(|window| window == b"a secret");
        assert!(!is_readable, "{}", path.display());
    }
    let restored = place.restored("backup", "restored");
    assert_eq!(restored.topics.len(), 1);
    let without = open_real(&place.at("restored"), small()).await.err();
    assert!(matches!(without, Some(OpenError::Encryption { .. })));
    let copy = open_real(&place.at("restored"), encrypted).await.unwrap();
    assert_eq!(values(&copy, at(&topic, 0)).await, ["a secret"]);
    copy.close().await;
}

#[tokio::test]
async fn what_a_killed_process_kept_for_a_backup_goes_with_the_next_start() {
    let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    let topic = topic(&engine, "orders", Durability::Durable).await;
    produce(&engine, at(&topic, 0), "kept").await.unwrap();
    let all = archive(&engine).await;
    assert!(!all.is_empty());
    // As it is when the process dies during a backup.
    let staging = dir.path().join("backup");
    disk.create_dir_all(&staging).unwrap();
    let segment = disk
        .paths()
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "segment"));
    disk.link(&segment.unwrap(), &staging.join("0")).unwrap();
    fs::create_dir_all(&staging).unwrap();
    fs::write(staging.join("checkpoint.sqlite"), "a copy").unwrap();
    drop(engine);
    disk.cut_power();
    disk.restore_power(3);
    let engine = open_sim(&disk, dir.path()).await.unwrap();
    assert!(disk.paths().iter().all(|path| !path.starts_with(&staging)));
    assert!(!staging.exists());
    assert_eq!(values(&engine, at(&topic, 0)).await, ["kept"]);
    engine.close().await;
}
