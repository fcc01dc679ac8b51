//! Tests of damaged files of state: the examination reports file and position, and the background
//! search finds them.

use std::fs;

use super::*;
use crate::start::examine::{Finding, Report, Severity, examine};
use crate::start::repair::repair;

/// A closed directory whose table is in two files; returns their paths.
async fn filled() -> (tempfile::TempDir, Vec<std::path::PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), paged()).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 1);
    write(&engine, at, &[("a", Some("1")), ("b", Some("2"))]).await;
    checkpoint(&engine).await;
    write(&engine, at, &[("a", None), ("c", Some("3"))]).await;
    checkpoint(&engine).await;
    engine.close().await;
    let files = runs(dir.path()).into_iter();
    let files: Vec<_> = files
        .map(|number| dir.path().join(format!("state/{number}.run")))
        .collect();
    assert_eq!(files.len(), 2, "{files:?}");
    (dir, files)
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

async fn examined(dir: &Path) -> Report {
    let dir = dir.to_owned();
    let examined = tokio::task::spawn_blocking(move || {
        let mut last = Default::default();
        let report = examine(&dir, &mut |reached| last = reached);
        assert!(last.bytes <= last.bytes_total, "{last:?}");
        report
    });
    examined.await.unwrap().expect("it is examined")
}

fn of_state(report: &Report) -> Vec<&Finding> {
    let findings = report.findings.iter();
    findings.filter(|f| f.place.starts_with("state")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_examination_reads_all_files_of_state_and_counts_what_they_hold() {
    let (dir, _) = filled().await;
    let report = examined(dir.path()).await;
    let [finding] = of_state(&report)[..] else {
        panic!("{:?}", report.findings);
    };
    assert_eq!(finding.severity, Severity::Ok);
    assert_eq!(finding.topic.as_deref(), Some("in"));
    assert!(
        finding.meaning.contains("counts: sound; 2 entries"),
        "{finding:?}"
    );
    assert!(finding.meaning.contains("2 files"), "{finding:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_examination_says_which_entries_cannot_be_read_and_what_is_nobodys() {
    let (dir, files) = filled().await;
    // Within the first block.
    flip(&files[1], 30);
    fs::write(dir.path().join("state/99.run"), "left by a crash").unwrap();
    fs::write(dir.path().join("state/notes"), "a stranger's").unwrap();
    let report = examined(dir.path()).await;
    let found = of_state(&report);
    let [damage, left, strange] = found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(damage.severity, Severity::Damage);
    assert_eq!(dir.path().join(&damage.place), files[1]);
    assert!(
        damage
            .bytes
            .as_ref()
            .is_some_and(|bytes| bytes.contains(&30))
    );
    assert!(damage.meaning.contains("state of counts: "), "{damage:?}");
    assert_eq!(
        (left.severity, strange.severity),
        (Severity::Note, Severity::Note)
    );
    assert!(left.meaning.contains("no checkpoint names"), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_examination_misses_files_that_are_gone_or_short() {
    let (dir, files) = filled().await;
    let bytes = fs::read(&files[0]).unwrap();
    for cut in [None, Some(bytes.len() - 1), Some(3)] {
        fs::remove_file(&files[0]).unwrap();
        if let Some(cut) = cut {
            fs::write(&files[0], &bytes[..cut]).unwrap();
        }
        let report = examined(dir.path()).await;
        let found = of_state(&report);
        let [damage] = found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(damage.severity, Severity::Damage);
        assert!(damage.meaning.contains("does not start"), "{damage:?}");
        assert!(open_real(dir.path(), paged()).await.is_err());
        fs::write(&files[0], &bytes).unwrap();
    }
    open_real(dir.path(), paged()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_search_for_damage_reads_files_of_state() {
    let (dir, files) = filled().await;
    let options = LocalOptions {
        scrub_bytes_per_second: 1 << 30,
        scrub_interval: Duration::ZERO,
        ..paged()
    };
    let engine = open_real(dir.path(), options).await.unwrap();
    let finished = || engine.damage().scrub.unwrap().round_finished_at;
    eventually(async || finished().is_some()).await;
    assert_eq!(engine.damage().state, []);
    flip(&files[0], 30);
    eventually(async || !engine.damage().state.is_empty()).await;
    let [damaged] = &engine.damage().state[..] else {
        panic!("one is");
    };
    assert_eq!(damaged.group.as_str(), GROUP);
    assert_eq!(dir.path().join(&damaged.file), files[0]);
    flip(&files[0], 30);
    eventually(async || engine.damage().state.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_state_that_nobody_can_assign_any_more_are_kept() {
    let (dir, files) = filled().await;
    let before: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    fs::remove_file(dir.path().join("checkpoint.sqlite")).unwrap();
    let owned = dir.path().to_owned();
    let repaired = tokio::task::spawn_blocking(move || {
        repair(&owned, None, Timestamp(7), &mut |_| {}).expect("it is repaired")
    });
    repaired.await.unwrap();
    let engine = open_real(dir.path(), paged()).await.unwrap();
    engine.close().await;
    let kept = dir.path().join("quarantine/7/state");
    for (file, bytes) in files.iter().zip(before) {
        let kept = kept.join(file.file_name().unwrap());
        assert!(fs::read(kept).unwrap() == bytes);
    }
}
