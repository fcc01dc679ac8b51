//! Tests encryption at rest: nothing in the directory is readable, only the right keys open it,
//! keys can be rotated, and power cuts change none of that.

use std::fs;
use std::path::PathBuf;

use fastrand::Rng;
use millrace_engine::conformance::named;
use millrace_engine::{EntryKind, EntryWrite, ProgressWrite, ReadError};
use millrace_log::Cipher;
use millrace_model::{Attempt, Digest, Header, Parked, Progress};

use super::*;
use crate::start::examine::{Report, Severity, examine, examine_with};

const CANARY: &str = "canary-c7e1f0";

fn key(id: u32) -> String {
    format!(
        "{id}:{:02x}{}",
        id,
        "0123456789abcdef".repeat(4)[2..].to_owned()
    )
}

fn cipher(ids: &[u32]) -> Arc<Cipher> {
    let lines: Vec<String> = ids.iter().map(|id| key(*id)).collect();
    Arc::new(Cipher::parse(&lines.join("\n")).expect("keys"))
}

fn with(ids: &[u32]) -> LocalOptions {
    LocalOptions {
        encryption: (!ids.is_empty()).then(|| cipher(ids)),
        ..small()
    }
}

fn secret_batch() -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    let text = |what: &str| Bytes::from(format!("{CANARY} {what}"));
    builder.push(&Message {
        key: Some(text("key")),
        value: Some(text("value")),
        headers: vec![Header {
            name: text("header"),
            value: Some(text("header value")),
        }],
        timestamp: Timestamp(1),
    });
    builder.finish().unwrap()
}

fn module() -> (Digest, Bytes) {
    use sha2::{Digest as _, Sha256};
    let bytes = Bytes::from(format!("\0asm {CANARY} module"));
    (Digest(Sha256::digest(&bytes).into()), bytes)
}

/// Writes all kinds of user data that a directory may contain.
async fn fill(engine: &LocalEngine) -> Topic {
    let topic = topic(engine, "in", Durability::Durable).await;
    let lease = engine
        .claim(&named("group"), at(&topic, 0))
        .await
        .unwrap()
        .lease;
    for number in 0..40u64 {
        let transaction = Transaction {
            appends: vec![Append {
                partition: at(&topic, 0),
                batch: secret_batch(),
            }],
            progress: vec![ProgressWrite {
                partition: lease.partition,
                lease: lease.clone(),
                progress: progress(number).into(),
            }],
            entries: vec![EntryWrite {
                kind: EntryKind::Processor,
                key: "p".into(),
                value: Some(format!("{CANARY} specification {number}").into()),
            }],
            ..Transaction::default()
        };
        engine.commit(transaction).await.unwrap();
    }
    let (digest, bytes) = module();
    engine.put_module(digest, bytes).await.unwrap();
    topic
}

fn progress(next: u64) -> Progress {
    Progress {
        next: Offset(next),
        revision: 1,
        parked: vec![Parked {
            offset: Offset(0),
            ordering: None,
            due: None,
            attempts: 1,
            first_failed_at: Timestamp(1),
            log: vec![Attempt {
                at: Timestamp(1),
                revision: 1,
                class: "class".into(),
                reason: format!("{CANARY} reason"),
            }],
            ..Parked::default()
        }],
        ..Progress::default()
    }
}

async fn assert_there(engine: &LocalEngine, topic: &Topic) {
    let read = engine.read(at(topic, 0), Offset(0), 1 << 20).await.unwrap();
    assert_eq!(read[0].clone().unstamped().bytes(), secret_batch().bytes());
    let found = engine
        .progress(&named("group"), at(topic, 0))
        .await
        .unwrap();
    assert_eq!(found, Some(progress(39)));
    let entry = engine.entry(EntryKind::Processor, "p").unwrap();
    assert_eq!(entry.value, format!("{CANARY} specification 39"));
    let (digest, bytes) = module();
    assert_eq!(engine.module(digest).await.unwrap(), Some(bytes));
}

/// Files under `dir` that contain the canary text.
fn readable_in(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(readable_in(&path));
        } else if let Ok(bytes) = fs::read(&path)
            && bytes.windows(CANARY.len()).any(|w| w == CANARY.as_bytes())
        {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_user_is_readable_in_any_file_while_it_runs_and_after() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), with(&[7])).await.unwrap();
    let topic = fill(&engine).await;
    assert_eq!(readable_in(dir.path()), Vec::<PathBuf>::new());
    assert_there(&engine, &topic).await;
    drop(engine);
    // From the journal, and then from files and checkpoint.
    for _ in 0..2 {
        let engine = open_real(dir.path(), with(&[7])).await.unwrap();
        assert_there(&engine, &topic).await;
        engine.close().await;
        assert_eq!(readable_in(dir.path()), Vec::<PathBuf>::new());
    }
    // The search itself works.
    let plain = tempfile::tempdir().unwrap();
    let engine = open_real(plain.path(), with(&[])).await.unwrap();
    fill(&engine).await;
    engine.close().await;
    let found = readable_in(plain.path());
    for part in ["journal", "topics", "modules", "checkpoint.sqlite"] {
        let is_in = |path: &PathBuf| path.starts_with(plain.path().join(part));
        assert!(found.iter().any(is_in), "{part} is not in {found:?}");
    }
}

async fn refused(dir: &Path, options: LocalOptions) -> String {
    let Err(error) = open_real(dir, options).await else {
        panic!("it opened");
    };
    assert!(matches!(error, OpenError::Encryption { .. }), "{error}");
    let told = format!("{error} {error:?}");
    assert!(!told.contains("0123456789abcdef"), "{told}");
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_directory_opens_with_its_key_only() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), with(&[1])).await.unwrap();
    let topic = fill(&engine).await;
    drop(engine);
    let told = refused(dir.path(), with(&[])).await;
    assert!(
        told.contains("key 1") && told.contains("--encryption-key-file"),
        "{told}"
    );
    let told = refused(dir.path(), with(&[2])).await;
    assert!(told.contains("key 1, which is not among"), "{told}");
    let wrong = key(3).replacen("3:", "1:", 1);
    let wrong = LocalOptions {
        encryption: Some(Arc::new(Cipher::parse(&wrong).unwrap())),
        ..small()
    };
    let told = refused(dir.path(), wrong).await;
    assert!(told.contains("key 1 is not the one"), "{told}");
    let engine = open_real(dir.path(), with(&[1])).await.unwrap();
    assert_there(&engine, &topic).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_directory_with_a_key_goes_on_encrypted_and_its_old_messages_stay_readable() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), with(&[])).await.unwrap();
    let topic = fill(&engine).await;
    engine.close().await;
    let engine = open_real(dir.path(), with(&[1])).await.unwrap();
    assert_there(&engine, &topic).await;
    // Data that is stored in only one place is encrypted at once.
    let checkpoint = dir.path().join("checkpoint.sqlite");
    let modules = dir.path().join("modules");
    let found = readable_in(dir.path());
    let adopted = |path: &PathBuf| *path == checkpoint || path.starts_with(&modules);
    assert!(!found.iter().any(adopted), "{found:?}");
    let new = "a new message that nobody may read";
    produce(&engine, at(&topic, 1), new).await.unwrap();
    engine.close().await;
    for entry in fs::read_dir(dir.path().join(format!("topics/{}", topic.id))).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(new.len()).any(|w| w == new.as_bytes()));
    }
    refused(dir.path(), with(&[])).await;
    let engine = open_real(dir.path(), with(&[1])).await.unwrap();
    assert_there(&engine, &topic).await;
    assert_eq!(values(&engine, at(&topic, 1)).await, [new]);
    engine.close().await;
    let report = report(dir.path(), None).await;
    let told = keys_told(&report);
    assert!(
        told.contains("key 1 (checkpoint, modules, segments)"),
        "{told}"
    );
    assert!(
        told.contains("some is plain still") && told.ends_with("segments"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_key_reads_what_it_wrote_and_is_needed_no_longer_than_that() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), with(&[1])).await.unwrap();
    let topic = fill(&engine).await;
    drop(engine);
    let engine = open_real(dir.path(), with(&[2, 1])).await.unwrap();
    assert_there(&engine, &topic).await;
    produce(&engine, at(&topic, 1), "under the second")
        .await
        .unwrap();
    engine.close().await;
    let report_of_both = report(dir.path(), Some(cipher(&[2, 1]))).await;
    assert!(
        report_of_both.worst() < Severity::Damage,
        "{report_of_both:?}"
    );
    let told = keys_told(&report_of_both);
    assert!(told.contains("key 1 (segments)"), "{told}");
    assert!(
        told.contains("key 2 (checkpoint, modules, segments)"),
        "{told}"
    );

    // Without the old key everything else works, and the missing key is named.
    let engine = open_real(dir.path(), with(&[2])).await.unwrap();
    assert_eq!(values(&engine, at(&topic, 1)).await, ["under the second"]);
    let (digest, bytes) = module();
    assert_eq!(engine.module(digest).await.unwrap(), Some(bytes));
    let Err(ReadError::Io(told)) = engine.read(at(&topic, 0), Offset(0), 1000).await else {
        panic!("it was read without its key");
    };
    assert!(told.contains("key 1"), "{told}");
    drop(engine);
    let engine = open_real(dir.path(), with(&[2, 1])).await.unwrap();
    assert_there(&engine, &topic).await;
}

async fn report(dir: &Path, keys: Option<Arc<Cipher>>) -> Report {
    let dir = dir.to_owned();
    let examined = tokio::task::spawn_blocking(move || match keys {
        None => examine(&dir, &mut |_| ()),
        keys => examine_with(&dir, keys, &mut |_| ()),
    });
    examined.await.unwrap().unwrap()
}

fn keys_told(report: &Report) -> String {
    let mut findings = report.findings.iter();
    let found = findings.find(|finding| finding.meaning.starts_with("encrypted; still needed"));
    found.expect("keys are told of").meaning.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_looks_into_the_journal_with_the_key_and_says_so_without() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), with(&[5])).await.unwrap();
    let topic = topic(&engine, "in", Durability::Durable).await;
    produce(&engine, at(&topic, 0), "only in the journal")
        .await
        .unwrap();
    drop(engine);
    let blind = report(dir.path(), None).await;
    let told = |report: &Report, text: &str| {
        let mut findings = report.findings.iter();
        findings.any(|finding| finding.meaning.contains(text))
    };
    assert!(
        told(&blind, "encrypted with key 5 and was not looked into"),
        "{blind:?}"
    );
    let seeing = report(dir.path(), Some(cipher(&[5]))).await;
    assert!(told(&seeing, "and 1 messages in the journal"), "{seeing:?}");
    assert!(seeing.worst() < Severity::Damage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_power_cuts_nothing_durable_is_lost_though_the_key_changes_at_every_start() {
    for seed in 0..40 {
        let (disk, dir) = (SimDisk::default(), tempfile::tempdir().unwrap());
        let mut random = Rng::with_seed(seed);
        let clock = || Arc::new(SystemClock::new());
        let open = async |keys: &[u32]| {
            LocalEngine::open_on(Arc::new(disk.clone()), dir.path(), with(keys), clock()).await
        };
        let mut keys = vec![1];
        let mut engine = open(&keys).await.unwrap();
        let topic = topic(&engine, "in", Durability::Durable).await;
        let mut acknowledged = Vec::new();
        for cut in 0..4 {
            disk.cut_power_after(random.u64(..400));
            let mut attempted = acknowledged.clone();
            for number in 0.. {
                let value = format!("{cut}/{number} {}", "x".repeat(random.usize(..500)));
                attempted.push(value.clone());
                if produce(&engine, at(&topic, 0), &value).await.is_err() {
                    break;
                }
                acknowledged.push(value);
            }
            drop(engine);
            disk.restore_power(random.u64(..));
            keys.insert(0, cut + 2);
            disk.cut_power_after(random.u64(..100));
            drop(open(&keys).await);
            disk.restore_power(random.u64(..));
            let opened = open(&keys).await;
            engine = opened.unwrap_or_else(|error| panic!("seed {seed}, cut {cut}: {error}"));
            let found = values(&engine, at(&topic, 0)).await;
            assert!(found.starts_with(&acknowledged), "seed {seed}, cut {cut}");
            assert!(attempted.starts_with(&found), "seed {seed}, cut {cut}");
            acknowledged = found;
        }
        assert!(acknowledged.len() > 4, "something was written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_needs_the_keys_and_rebuilds_an_encrypted_checkpoint_with_them() {
    use crate::start::repair::{RepairError, repair};
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), with(&[5])).await.unwrap();
    let topic = topic(&engine, "in", Durability::Durable).await;
    produce(&engine, at(&topic, 0), "kept").await.unwrap();
    engine.close().await;
    drop(engine);
    fs::remove_file(dir.path().join("checkpoint.sqlite")).unwrap();
    let mend = async |keys: Option<Arc<Cipher>>| {
        let dir = dir.path().to_owned();
        let mending = move || repair(&dir, keys, Timestamp(7), &mut |_| ());
        tokio::task::spawn_blocking(mending).await.unwrap()
    };
    let refused = mend(None).await.unwrap_err();
    assert!(
        matches!(refused, RepairError::Encrypted { key: 5 }),
        "{refused}"
    );
    assert!(!mend(Some(cipher(&[5]))).await.unwrap().is_empty());
    refused_without(dir.path()).await;
    let engine = open_real(dir.path(), with(&[5])).await.unwrap();
    assert_eq!(values(&engine, at(&topic, 0)).await, ["kept"]);
}

async fn refused_without(dir: &Path) {
    let told = refused(dir, with(&[])).await;
    assert!(told.contains("encrypted with key 5"), "{told}");
}
