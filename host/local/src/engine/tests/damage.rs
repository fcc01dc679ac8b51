//! Tests directories that were tampered with or damaged: they are refused with a reason, or opened
//! with all their content.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use fastrand::Rng;
use millrace_engine::{EntryKind, EntryWrite, ReadError};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, Executor};

use super::*;

/// A directory with messages in several segments, an entry and a module, closed cleanly or killed.
struct Filled {
    dir: tempfile::TempDir,
    orders: TopicPartition,
    values: Vec<String>,
}

impl Filled {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = open_real(dir.path(), small()).await.unwrap();
        let orders = at(&topic(&engine, "orders", Durability::Durable).await, 1);
        let entry = EntryWrite {
            kind: EntryKind::Processor,
            key: "p".to_owned(),
            value: Some("kept".into()),
        };
        let entries = vec![entry];
        let transaction = Transaction {
            entries,
            ..Transaction::default()
        };
        engine.commit(transaction).await.unwrap();
        engine.close().await;
        drop(engine);
        let mut filled = Self {
            dir,
            orders,
            values: Vec::new(),
        };
        filled.go_on(60, true).await;
        filled
    }

    /// Writes more messages, and then closes cleanly or kills.
    async fn go_on(&mut self, count: usize, in_order: bool) {
        let engine = open_real(self.dir.path(), small()).await.unwrap();
        for _ in 0..count {
            let value = format!("{} {}", self.values.len(), "w".repeat(150));
            produce(&engine, self.orders, &value).await.unwrap();
            self.values.push(value);
        }
        if in_order {
            engine.close().await;
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn segments(&self) -> Vec<PathBuf> {
        let dir = self.path(&format!("topics/{}", self.orders.topic));
        let mut paths: Vec<PathBuf> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "segment"));
        paths.sort();
        paths
    }

    /// Opens it: everything must be there.
    async fn open(&self) -> Result<(), OpenError> {
        let engine = open_real(self.dir.path(), small()).await?;
        assert_eq!(values(&engine, self.orders).await, self.values);
        let entry = engine.entry(EntryKind::Processor, "p");
        assert_eq!(entry.unwrap().value, &b"kept"[..]);
        engine.close().await;
        Ok(())
    }

    async fn refusal(&self) -> String {
        self.open().await.expect_err("it is refused").to_string()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}

fn replace(from: &Path, to: &Path) {
    if to.is_dir() {
        fs::remove_dir_all(to).unwrap();
        copy(from, to);
    } else {
        fs::copy(from, to).unwrap();
    }
}

pub(super) async fn change_checkpoint(path: &Path, sql: &str) {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    connection
        .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())))
        .await
        .unwrap();
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_cut_or_overwritten_is_refused_and_nothing_is_changed() {
    let filled = Filled::new().await;
    let path = filled.path("checkpoint.sqlite");
    let mut whole = fs::read(&path).unwrap();
    let mut random = Rng::with_seed(7);
    let pages = whole.len() / 4096;
    let mut refused = 0;
    for round in 0..2 * pages {
        let mut bytes = whole.clone();
        let page = round / 2 * 4096;
        if round % 2 == 0 {
            bytes.truncate(page + random.usize(..4096));
        } else {
            random.fill(&mut bytes[page..page + 4096]);
        }
        fs::write(&path, bytes).unwrap();
        if let Err(error) = filled.open().await {
            let text = error.to_string();
            assert!(
                text.contains("checkpoint") && text.contains("backup"),
                "{text}"
            );
            refused += 1;
            fs::write(&path, &whole).unwrap();
            filled.open().await.expect("nothing was changed");
            whole = fs::read(&path).unwrap();
        } else {
            // A page without content, with which the engine continued.
            whole = fs::read(&path).unwrap();
        }
    }
    println!("{refused} of {} refused", 2 * pages);
    assert!(refused >= pages, "{refused} of {}", 2 * pages);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_is_gone_empty_newer_or_foreign_is_refused_with_a_reason() {
    for killed in [false, true] {
        let mut filled = Filled::new().await;
        filled.go_on(3, !killed).await;
        let path = filled.path("checkpoint.sqlite");
        let whole = fs::read(&path).unwrap();

        change_checkpoint(&path, "UPDATE meta SET value = 99 WHERE key = 'format'").await;
        let refusal = filled.refusal().await;
        assert!(refusal.contains("format 99"), "{refusal}");

        fs::remove_file(&path).unwrap();
        change_checkpoint(
            &path,
            "CREATE TABLE meta (name TEXT); INSERT INTO meta VALUES ('theirs')",
        )
        .await;
        let refusal = filled.refusal().await;
        assert!(refusal.contains("checkpoint"), "{refusal}");

        fs::write(&path, "what is this").unwrap();
        let refusal = filled.refusal().await;
        assert!(refusal.contains("not a database"), "{refusal}");

        for empty in [true, false] {
            fs::remove_file(&path).unwrap();
            if empty {
                fs::write(&path, b"").unwrap();
            }
            let refusal = filled.refusal().await;
            assert!(
                refusal.contains("checkpoint") && refusal.contains("backup"),
                "{refusal}"
            );
        }
        // Even without its journal, because existing messages would be overwritten.
        let journal = filled.path("journal");
        let aside = filled.path("aside");
        fs::rename(&journal, &aside).unwrap();
        let _ = fs::remove_file(&path);
        let refusal = filled.refusal().await;
        assert!(
            refusal.contains("checkpoint") && refusal.contains("backup"),
            "{refusal}"
        );
        fs::remove_dir_all(&journal).unwrap();
        fs::rename(&aside, &journal).unwrap();

        fs::write(&path, &whole).unwrap();
        filled.open().await.expect("nothing was changed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_different_backups_are_refused_or_their_difference_is_named() {
    let mut filled = Filled::new().await;
    let (older, newer) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy(filled.dir.path(), older.path());
    let older_end = filled.values.len() as u64;
    filled.go_on(100, true).await;
    copy(filled.dir.path(), newer.path());

    // An old checkpoint, and a journal without the transactions right after it.
    replace(
        &older.path().join("checkpoint.sqlite"),
        &filled.path("checkpoint.sqlite"),
    );
    let refusal = filled.refusal().await;
    assert!(
        refusal.contains("journal") && refusal.contains("backup"),
        "{refusal}"
    );
    replace(
        &newer.path().join("checkpoint.sqlite"),
        &filled.path("checkpoint.sqlite"),
    );

    // An old journal beside a checkpoint that does not need it.
    replace(&older.path().join("journal"), &filled.path("journal"));
    filled.open().await.unwrap();

    // Old messages: the missing ones are reported, and the rest can be read.
    replace(&older.path().join("topics"), &filled.path("topics"));
    let engine = open_real(filled.dir.path(), small()).await.unwrap();
    let ends = engine.ends(filled.orders).unwrap();
    assert_eq!(ends.end.0, filled.values.len() as u64);
    let (mut from, mut missing) = (Offset(0), Vec::new());
    while from < ends.end {
        match engine.read(filled.orders, from, 1_000).await {
            Ok(batches) => {
                for batch in batches {
                    assert_eq!(values_of(&batch), [filled.values[from.0 as usize].clone()]);
                    from = batch.end_offset();
                }
            }
            Err(ReadError::Damaged {
                from: first, to, ..
            }) => {
                missing.extend(first.0..to.0);
                from = to;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let expected: Vec<u64> = (older_end..ends.end.0).collect();
    assert_eq!(missing, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_checkpoint_beside_what_is_left_of_the_journal_gives_everything_or_is_refused() {
    let (mut whole, mut refused) = (0, 0);
    for checkpoints in 0..6 {
        let mut filled = Filled::new().await;
        let path = filled.path("checkpoint.sqlite");
        let engine = open_real(filled.dir.path(), small()).await.unwrap();
        let older = fs::read(&path).unwrap();
        for round in 0..=checkpoints {
            for _ in 0..12 {
                let value = format!("{} {}", filled.values.len(), "w".repeat(150));
                produce(&engine, filled.orders, &value).await.unwrap();
                filled.values.push(value);
            }
            if round < checkpoints {
                engine.commits.orders.ask(|orders| orders.checkpoint = true);
                eventually(async || engine.commits.orders.are_done()).await;
            }
        }
        drop(engine);
        fs::write(&path, older).unwrap();
        match filled.open().await {
            Ok(()) => whole += 1,
            Err(error) => {
                assert!(error.to_string().contains("backup"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(whole > 0 && refused > 0, "{whole} {refused}");
}

fn make_fifo(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_file_where_a_file_should_be_is_named_and_waited_for_by_nobody() {
    for what in ["link", "pipe", "directory"] {
        let filled = Filled::new().await;
        let segments = filled.segments();
        assert!(segments.len() > 2);
        let aside = filled.path("aside");
        let put = |path: &Path| {
            fs::rename(path, &aside).unwrap();
            match what {
                "link" => symlink(&aside, path).unwrap(),
                "pipe" => make_fifo(path),
                _ => fs::create_dir(path).unwrap(),
            }
        };
        let take_back = |path: &Path| {
            match what {
                "directory" => fs::remove_dir(path).unwrap(),
                _ => fs::remove_file(path).unwrap(),
            }
            fs::rename(&aside, path).unwrap();
        };
        // A sealed segment: the rest can be read.
        put(&segments[0]);
        let engine = open_real(filled.dir.path(), small()).await.unwrap();
        let refused = engine
            .read(filled.orders, Offset(0), 1_000)
            .await
            .unwrap_err();
        assert!(
            refused.to_string().contains("is not a regular file"),
            "{refused}"
        );
        let last = Offset(filled.values.len() as u64 - 1);
        let read = engine.read(filled.orders, last, 1_000).await.unwrap();
        assert_eq!(values_of(&read[0]), filled.values[last.0 as usize..]);
        engine.close().await;
        drop(engine);
        take_back(&segments[0]);
        // A journal file.
        let journal = filled.path("journal");
        let mut names: Vec<PathBuf> = fs::read_dir(journal)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        names.sort();
        let newest = names.last().unwrap();
        put(newest);
        let refusal = filled.refusal().await;
        assert!(refusal.contains("is not a regular file"), "{refusal}");
        take_back(newest);
        filled.open().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_stray_files_change_nothing_and_are_left_alone() {
    let filled = Filled::new().await;
    let topic = format!("topics/{}", filled.orders.topic);
    let mut strays = Vec::new();
    for place in ["journal", "topics", "modules", &topic] {
        for number in 0..2_500 {
            strays.push(filled.path(&format!("{place}/stray {number}")));
        }
        for name in [
            "99999999999999999999.segment",
            "1-7.segment",
            "7.journal",
            "x.wasm",
            ".hidden",
        ] {
            strays.push(filled.path(&format!("{place}/{name}")));
        }
    }
    for stray in &strays {
        fs::write(stray, "not ours").unwrap();
    }
    let began_at = std::time::Instant::now();
    filled.open().await.unwrap();
    assert!(began_at.elapsed() < Duration::from_secs(20));
    for stray in &strays {
        assert_eq!(fs::read(stray).unwrap(), b"not ours", "{}", stray.display());
    }
}
