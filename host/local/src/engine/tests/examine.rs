//! Tests that an examination finds exactly what was done to a directory, and leaves no trace in it.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::time::SystemTime;

use millrace_engine::{EntryKind, EntryWrite};

use super::*;
use crate::start::examine::{ExamineError, Finding, Reached, Report, Severity, examine};

/// Every file with the digest of its bytes and the time of its last change, and directories with
/// that time.
fn fingerprint(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let changed = fs::metadata(&path).unwrap().modified().unwrap();
        let digest = match path.is_dir() {
            true => {
                open.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
                Vec::new()
            }
            false => Sha256::digest(fs::read(&path).unwrap()).to_vec(),
        };
        all.insert(path, (changed, digest));
    }
    all
}

/// Examines outside the runtime, and checks that nothing was changed.
async fn examined(dir: &Path) -> Report {
    let before = fingerprint(dir);
    let owned = dir.to_owned();
    let examined = tokio::task::spawn_blocking(move || {
        let mut last = Reached::default();
        let report = examine(&owned, &mut |reached| last = reached);
        assert!(last.bytes <= last.bytes_total, "{last:?}");
        report
    });
    let report = examined.await.unwrap().expect("it is examined");
    assert!(before == fingerprint(dir), "something was changed");
    report
}

fn worse_than_ok(report: &Report) -> Vec<&Finding> {
    let findings = report.findings.iter();
    findings.filter(|f| f.severity > Severity::Ok).collect()
}

fn damage(report: &Report) -> Vec<&Finding> {
    let findings = report.findings.iter();
    findings
        .filter(|f| f.severity == Severity::Damage)
        .collect()
}

fn offsets(range: Range<u64>) -> Option<Range<Offset>> {
    Some(Offset(range.start)..Offset(range.end))
}

/// A directory with 100 messages in several segments of `orders/1` and a module, closed in order.
async fn filled() -> (tempfile::TempDir, TopicPartition, Digest) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), small()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 1);
    for number in 0..100 {
        let value = format!("{number} {}", "w".repeat(100));
        produce(&engine, orders, &value).await.unwrap();
    }
    let module = b"the bytes of a module";
    let digest = digest_of(module);
    let put = engine.put_module(digest, Bytes::from_static(module));
    put.await.unwrap();
    let entry = EntryWrite {
        kind: EntryKind::Module,
        key: digest.to_string(),
        value: Some(Bytes::from_static(b"{}")),
    };
    let entries = vec![entry];
    let transaction = Transaction {
        entries,
        ..Transaction::default()
    };
    engine.commit(transaction).await.unwrap();
    engine.close().await;
    (dir, orders, digest)
}

/// The partition's segments, in order.
fn segments(dir: &Path, id: TopicPartition) -> Vec<PathBuf> {
    let dir = dir.join(format!("topics/{}", id.topic));
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut segments: Vec<PathBuf> = names
        .filter(|p| p.extension().unwrap() == "segment")
        .collect();
    segments.sort_unstable();
    assert!(segments.len() > 2, "{segments:?}");
    segments
}

fn base(segment: &Path) -> u64 {
    segment
        .file_stem()
        .unwrap()
        .to_str()
        .unwrap()
        .split_once('-')
        .unwrap()
        .1
        .parse()
        .unwrap()
}

/// The position of a text in a file.
fn place(path: &Path, text: &str) -> Option<usize> {
    let bytes = fs::read(path).unwrap();
    bytes.windows(text.len()).position(|w| w == text.as_bytes())
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_closed_in_order_is_clean() {
    let (dir, ..) = filled().await;
    let report = examined(dir.path()).await;
    assert_eq!(worse_than_ok(&report), Vec::<&Finding>::new());
    let topic = report.findings.iter().find(|f| f.topic.is_some()).unwrap();
    assert!(topic.meaning.contains(" 100 messages"), "{topic:?}");
    // And repeatedly, because no lock remains. Free disk space is ignored, because other programs
    // change it.
    let ours = |report: &Report| {
        let findings = report.findings.iter().filter(|f| f.place != Path::new("."));
        findings.cloned().collect::<Vec<_>>()
    };
    assert_eq!(ours(&examined(dir.path()).await), ours(&report));
    open_real(dir.path(), small()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_left_by_a_killed_process_has_notes_and_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), small()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Os).await, 0);
    for _ in 0..300 {
        produce(&engine, orders, &"v".repeat(200)).await.unwrap();
    }
    topic(
        &engine,
        "after the checkpoint".replace(' ', "-").as_str(),
        Durability::Os,
    )
    .await;
    drop(engine);
    fs::write(dir.path().join("notes.txt"), "of a person").unwrap();
    let report = examined(dir.path()).await;
    assert_eq!(report.worst(), Severity::Note, "{report:#?}");
    let stray = Path::new("notes.txt");
    assert!(
        report.findings.iter().any(|f| f.place == stray),
        "{report:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_a_segment_is_found_with_its_exact_ranges() {
    let (dir, orders, _) = filled().await;
    let segment = &segments(dir.path(), orders)[1];
    let hurt = base(segment) + 2;
    let at = place(segment, &format!("{hurt} w")).unwrap();
    flip(segment, at);
    let report = examined(dir.path()).await;
    let [found] = damage(&report)[..] else {
        panic!("{report:#?}");
    };
    assert_eq!(found.offsets, offsets(hurt..hurt + 1));
    assert_eq!(found.topic.as_deref(), Some("orders"));
    assert_eq!(found.partition, Some(PartitionId(1)));
    assert_eq!(dir.path().join(&found.place), *segment);
    let bytes = found.bytes.clone().unwrap();
    assert!(bytes.contains(&(at as u64)), "{bytes:?}");
    assert_eq!(
        bytes.end - bytes.start,
        batch(&format!("{hurt} {}", "w".repeat(100))).byte_count() as u64
    );
    let advice = found.advice.as_deref().unwrap();
    assert!(
        advice.contains(&format!("go on at {}", hurt + 1)),
        "{advice}"
    );
    assert!(found.meaning.contains(&format!("{hurt} to {}", hurt + 1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_segment_is_found_with_the_offsets_that_went_with_it() {
    for missing in [0, 1] {
        let (dir, orders, _) = filled().await;
        let segments = segments(dir.path(), orders);
        fs::remove_file(&segments[missing]).unwrap();
        let report = examined(dir.path()).await;
        let [found] = damage(&report)[..] else {
            panic!("{report:#?}");
        };
        let gone = base(&segments[missing])..base(&segments[missing + 1]);
        assert_eq!(found.offsets, offsets(gone));
        assert!(found.meaning.contains("missing"), "{found:?}");
    }
    let (dir, orders, _) = filled().await;
    let active = segments(dir.path(), orders).pop().unwrap();
    fs::remove_file(&active).unwrap();
    let report = examined(dir.path()).await;
    let lost: Vec<_> = damage(&report).into_iter().map(|f| &f.offsets).collect();
    assert_eq!(lost, [&offsets(base(&active)..100)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_and_missing_modules_are_found() {
    let (dir, _, digest) = filled().await;
    let module = dir.path().join(format!("modules/{digest}.wasm"));
    flip(&module, 3);
    let report = examined(dir.path()).await;
    let [found] = damage(&report)[..] else {
        panic!("{report:#?}");
    };
    assert_eq!(dir.path().join(&found.place), module);
    fs::remove_file(&module).unwrap();
    let report = examined(dir.path()).await;
    assert!(
        damage(&report)[0].meaning.contains("missing"),
        "{report:#?}"
    );
}

/// A directory whose messages are only in the journal, and the journal file with them.
async fn only_journalled(values: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), small()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    for value in values {
        produce(&engine, orders, value).await.unwrap();
    }
    drop(engine);
    let files = fs::read_dir(dir.path().join("journal")).unwrap();
    let file = files
        .map(|entry| entry.unwrap().path())
        .find(|path| place(path, values[0]).is_some());
    (dir, file.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_of_the_journal_is_a_note() {
    let (dir, file) = only_journalled(&["the first", "the middle", "the last"]).await;
    flip(&file, place(&file, "the last").unwrap());
    let report = examined(dir.path()).await;
    let [found] = worse_than_ok(&report)[..] else {
        panic!("{report:#?}");
    };
    assert_eq!(found.severity, Severity::Note);
    assert_eq!(dir.path().join(&found.place), file);
    let at = place(&file, "e last").unwrap() as u64;
    assert!(found.bytes.clone().unwrap().contains(&at), "{found:?}");
    assert!(
        found
            .advice
            .as_deref()
            .unwrap()
            .contains("cut by the next start")
    );
    let engine = open_real(dir.path(), small()).await.unwrap();
    let orders = at_zero(&engine);
    assert_eq!(values(&engine, orders).await, ["the first", "the middle"]);
}

fn at_zero(engine: &LocalEngine) -> TopicPartition {
    at(&engine.topics()[0], 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_the_middle_of_the_journal_is_damage_and_names_the_offsets_in_it() {
    let (dir, file) = only_journalled(&["the first", "the middle", "the last"]).await;
    let at = place(&file, "the middle").unwrap();
    flip(&file, at);
    let report = examined(dir.path()).await;
    let [of_file, of_messages] = damage(&report)[..] else {
        panic!("{report:#?}");
    };
    assert_eq!(dir.path().join(&of_file.place), file);
    let bytes = of_file.bytes.clone().unwrap();
    assert!(bytes.contains(&(at as u64)), "{bytes:?}");
    assert!(!bytes.contains(&(place(&file, "the last").unwrap() as u64)));
    assert_eq!(of_messages.topic.as_deref(), Some("orders"));
    assert_eq!(of_messages.offsets, offsets(1..2));
    let refused = open_real(dir.path(), small()).await.map(|_| ());
    assert!(matches!(refused, Err(OpenError::Journal(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_usable_checkpoint_segments_are_still_examined() {
    let (dir, orders, _) = filled().await;
    let segment = &segments(dir.path(), orders)[0];
    let at = place(segment, "5 w").unwrap();
    flip(segment, at);
    let checkpoint = dir.path().join("checkpoint.sqlite");
    fs::write(&checkpoint, "no database at all".repeat(300)).unwrap();
    for _ in 0..2 {
        let report = examined(dir.path()).await;
        let found = damage(&report);
        assert_eq!(found.len(), 2, "{report:#?}");
        assert_eq!(found[0].place, Path::new("checkpoint.sqlite"));
        assert_eq!(found[1].offsets, offsets(5..6));
        // The second time the file is missing.
        let _ = fs::remove_file(&checkpoint);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_in_use_or_of_something_else_is_not_examined() {
    let (dir, ..) = filled().await;
    let engine = open_real(dir.path(), small()).await.unwrap();
    let refused = |path: &Path| examine(path, &mut |_| ()).unwrap_err();
    assert!(matches!(refused(dir.path()), ExamineError::InUse { .. }));
    engine.close().await;
    let other = tempfile::tempdir().unwrap();
    let none = refused(other.path());
    assert!(matches!(none, ExamineError::NotADataDirectory { .. }));
    let none = refused(&other.path().join("nowhere"));
    assert!(matches!(none, ExamineError::NoSuchDirectory { .. }));
}
