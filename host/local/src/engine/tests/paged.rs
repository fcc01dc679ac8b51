//! Tests of paged tables of state: their files, and what happens to them.

mod budget;
mod damage;

use millrace_engine::conformance::named;
use millrace_engine::room::Kept;
use millrace_engine::state::keeper::KeepTable as _;
use millrace_engine::state::{
    NEVER, StateChange, StatePage, StateQuery, StateValue, StateWrite, StateWrites,
};
use millrace_log::Cipher;
use millrace_model::Clock as _;

use super::backup::{Place, back_up};
use super::damage::change_checkpoint;
use super::*;

const GROUP: &str = "counts";

fn paged() -> LocalOptions {
    LocalOptions {
        state_resident_bytes: Some(0),
        ..small()
    }
}

/// Writes pairs of keys and values; a key without a value is removed.
async fn write(engine: &LocalEngine, at: TopicPartition, pairs: &[(&str, Option<&str>)]) {
    commit(engine, at, false, pairs).await;
}

async fn commit(
    engine: &LocalEngine,
    partition: TopicPartition,
    resets: bool,
    pairs: &[(&str, Option<&str>)],
) {
    let changes = pairs.iter().map(|(key, value)| StateChange {
        key: key.as_bytes().into(),
        value: value.map(|value| StateValue::new(value.as_bytes())),
        ends_at: NEVER,
    });
    change(engine, partition, resets, changes.collect()).await;
}

async fn change(
    engine: &LocalEngine,
    partition: TopicPartition,
    resets: bool,
    changes: Vec<StateChange>,
) {
    let writes = StateWrites {
        resets,
        changes,
        adds: None,
    };
    let transaction = Transaction {
        state: vec![StateWrite {
            group: named(GROUP),
            partition,
            lease: None,
            writes: Arc::new(writes),
        }],
        durability: Some(Durability::Durable),
        ..Transaction::default()
    };
    engine.commit(transaction).await.expect("committed");
}

async fn page(engine: &LocalEngine, at: TopicPartition) -> StatePage {
    let all = StateQuery {
        entries_max: 1_000,
        bytes_max: usize::MAX,
        ..StateQuery::default()
    };
    engine
        .read_state(&named(GROUP), at, &all)
        .await
        .expect("read")
}

async fn pairs(engine: &LocalEngine, at: TopicPartition) -> Vec<(String, String)> {
    let page = page(engine, at).await;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let entries = page.entries.iter();
    entries
        .map(|entry| (text(&entry.key), text(entry.value.as_bytes())))
        .collect()
}

async fn checkpoint(engine: &LocalEngine) {
    let before = engine.commits.headroom.checkpoints_made();
    engine.commits.orders.ask(|orders| orders.checkpoint = true);
    eventually(async || engine.commits.headroom.checkpoints_made() > before).await;
    eventually(async || engine.commits.orders.are_done()).await;
}

/// The numbers of the existing runs, in order.
fn runs(dir: &Path) -> Vec<u64> {
    let names = std::fs::read_dir(dir.join("state")).expect("a directory");
    let number = |name: &std::ffi::OsStr| name.to_str()?.strip_suffix(".run")?.parse().ok();
    let mut numbers: Vec<u64> = names
        .filter_map(|entry| number(&entry.expect("an entry").file_name()))
        .collect();
    numbers.sort_unstable();
    numbers
}

async fn format_of(dir: &Path) -> i64 {
    use sqlx::{Connection as _, Row as _};
    let path = dir.join("checkpoint.sqlite");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    let format = sqlx::query("SELECT value FROM meta WHERE key = 'format'");
    let format = format.fetch_one(&mut connection).await.unwrap().get(0);
    connection.close().await.unwrap();
    format
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_opens_what_has_no_paged_table_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), small()).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    write(&engine, at, &[("a", Some("1"))]).await;
    engine.close().await;
    assert_eq!((format_of(dir.path()).await, runs(dir.path())), (3, vec![]));
    // Earlier rows become a run in the start's own checkpoint.
    let engine = open_real(dir.path(), paged()).await.unwrap();
    assert_eq!(runs(dir.path()), [1]);
    assert_eq!(pairs(&engine, at).await, [("a".into(), "1".into())]);
    engine.close().await;
    assert_eq!(format_of(dir.path()).await, 4);
    // It stays paged whatever the options are then, until it is emptied.
    let engine = open_real(dir.path(), small()).await.unwrap();
    write(&engine, at, &[("b", Some("2"))]).await;
    assert_eq!(pairs(&engine, at).await.len(), 2);
    commit(&engine, at, true, &[("c", Some("3"))]).await;
    engine.close().await;
    assert_eq!((format_of(dir.path()).await, runs(dir.path())), (3, vec![]));
    let engine = open_real(dir.path(), small()).await.unwrap();
    assert_eq!(pairs(&engine, at).await, [("c".into(), "3".into())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_missing_or_another_one_keeps_the_directory_from_being_opened() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), paged()).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    for (key, value) in [("a", "1"), ("b", "22")] {
        write(&engine, at, &[(key, Some(value))]).await;
        checkpoint(&engine).await;
    }
    engine.close().await;
    drop(engine);
    assert_eq!(runs(dir.path()), [1, 2]);
    let path = |number: u64| dir.path().join(format!("state/{number}.run"));
    let whole = std::fs::read(path(2)).unwrap();
    let other = std::fs::read(path(1)).unwrap();
    for bytes in [None, Some(&other[..]), Some(&whole[..whole.len() - 1])] {
        match bytes {
            None => std::fs::remove_file(path(2)).unwrap(),
            Some(bytes) => std::fs::write(path(2), bytes).unwrap(),
        }
        let refused = open_real(dir.path(), paged()).await.map(drop).unwrap_err();
        assert!(matches!(refused, OpenError::State { .. }), "{refused}");
    }
    std::fs::write(path(2), &whole).unwrap();
    let engine = open_real(dir.path(), paged()).await.unwrap();
    assert_eq!(pairs(&engine, at).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_no_checkpoint_names_go_and_their_numbers_are_never_given_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), paged()).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    write(&engine, at, &[("a", Some("1"))]).await;
    engine.close().await;
    drop(engine);
    assert_eq!(runs(dir.path()), [1]);
    for name in ["7.run", "notes.txt", "07.run"] {
        std::fs::write(dir.path().join("state").join(name), b"half").unwrap();
    }
    let engine = open_real(dir.path(), paged()).await.unwrap();
    // Files without the name of a run are not removed.
    assert!(dir.path().join("state/notes.txt").exists());
    assert!(dir.path().join("state/07.run").exists());
    std::fs::remove_file(dir.path().join("state/07.run")).unwrap();
    assert_eq!(runs(dir.path()), [1]);
    write(&engine, at, &[("b", Some("1"))]).await;
    checkpoint(&engine).await;
    assert_eq!(runs(dir.path()), [1, 8]);
    commit(&engine, at, true, &[]).await;
    checkpoint(&engine).await;
    assert!(runs(dir.path()).is_empty());
    engine.close().await;
    drop(engine);
    let engine = open_real(dir.path(), paged()).await.unwrap();
    write(&engine, at, &[("c", Some("1"))]).await;
    checkpoint(&engine).await;
    assert_eq!(runs(dir.path()), [9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_checkpoint_has_of_an_emptied_table_does_not_count_for_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), paged()).await.unwrap();
    let topic = topic(&engine, "in", Durability::Durable).await;
    let at = at(&topic, 0);
    let held = || engine.commits.state.read().room.held(Kept::State);
    let value = "x".repeat(2_000);
    write(&engine, at, &[("a", Some(&value))]).await;
    assert!(held() > 2_000);
    // Named by a checkpoint that is not made yet.
    let step = {
        let table = engine.state(&named(GROUP), at).await.unwrap();
        table.take_step(true).expect("something to write")
    };
    assert!(held() > 2_000, "what stands in no run is in memory");
    commit(&engine, at, true, &[]).await;
    assert_eq!(held(), 0);
    drop(step);
    write(&engine, at, &[("a", Some(&value))]).await;
    checkpoint(&engine).await;
    assert!(
        held() < 2_000,
        "{}: what stands in a run does not count",
        held()
    );
    write(&engine, at, &[("a", Some(&value))]).await;
    engine
        .delete_topic(&topic.spec.name, Vec::new())
        .await
        .unwrap();
    assert_eq!(held(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_in_a_table_at_rest_is_removed_as_everybody_writes() {
    let dir = tempfile::tempdir().unwrap();
    let options = LocalOptions {
        cleaning_interval: Duration::from_millis(5),
        ..paged()
    };
    let engine = open_real(dir.path(), options.clone()).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    write(&engine, at, &[("stays", Some("1"))]).await;
    let ends_at = Timestamp(SystemClock::new().wall().0 + 200);
    let changes = (0..2_500_u32).map(|number| StateChange {
        key: number.to_string().as_bytes().into(),
        value: Some(StateValue::new(b"2")),
        ends_at,
    });
    let changes: Vec<StateChange> = changes.collect();
    // No more than fits into a journal file.
    for some in changes.chunks(300) {
        change(&engine, at, false, some.to_vec()).await;
    }
    checkpoint(&engine).await;
    let table = engine.state(&named(GROUP), at).await.unwrap();
    assert!(table.is_paged());
    eventually(async || table.size().entries == 1).await;
    assert_eq!(pairs(&engine, at).await, [("stays".into(), "1".into())]);
    let size = table.size();
    drop(table);
    // It was recorded.
    engine.close().await;
    drop(engine);
    let engine = open_real(dir.path(), paged()).await.unwrap();
    assert_eq!(page(&engine, at).await.size, size);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_of_before_the_encryption_and_of_each_key_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let key = |number: u32| format!("{number}:{}\n", format!("{number:016x}").repeat(4));
    let with = |keys: &[u32]| LocalOptions {
        encryption: (!keys.is_empty()).then(|| {
            let keys: String = keys.iter().map(|number| key(*number)).collect();
            Arc::new(Cipher::parse(&keys).expect("keys"))
        }),
        ..paged()
    };
    let mut at_partition = None;
    let steps: [(&[u32], &str); 3] = [(&[], "a"), (&[1], "b"), (&[2, 1], "c")];
    for (keys, name) in steps {
        let engine = open_real(dir.path(), with(keys)).await.unwrap();
        let at = match at_partition {
            Some(at) => at,
            None => at(&topic(&engine, "in", Durability::Durable).await, 0),
        };
        at_partition = Some(at);
        write(&engine, at, &[(name, Some(name))]).await;
        engine.close().await;
    }
    let engine = open_real(dir.path(), with(&[2, 1])).await.unwrap();
    assert_eq!(pairs(&engine, at_partition.unwrap()).await.len(), 3);
    engine.close().await;
    drop(engine);
    let refused = open_real(dir.path(), with(&[2])).await.map(drop);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("key 1"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_a_topic_that_is_not_there_is_forgotten_with_its_runs() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), paged()).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    write(&engine, at, &[("a", Some("1"))]).await;
    engine.close().await;
    drop(engine);
    // As if something else had removed only the topic itself.
    let path = dir.path().join("checkpoint.sqlite");
    change_checkpoint(&path, "DELETE FROM topics").await;
    let engine = open_real(dir.path(), paged()).await.unwrap();
    assert!(runs(dir.path()).is_empty());
    engine.close().await;
    assert_eq!(format_of(dir.path()).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_become_one_and_the_table_stays_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), paged()).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    for round in 0..9 {
        let (key, value) = (format!("key {}", round % 4), round.to_string());
        write(&engine, at, &[(&key, Some(&value)), ("gone", None)]).await;
        write(
            &engine,
            at,
            &[(&format!("of {round}"), Some("")), ("gone", Some("1"))],
        )
        .await;
        checkpoint(&engine).await;
        eventually(async || engine.checkpoints.merges.are_idle()).await;
    }
    write(&engine, at, &[("gone", None)]).await;
    checkpoint(&engine).await;
    eventually(async || engine.checkpoints.merges.are_idle()).await;
    checkpoint(&engine).await;
    assert!(runs(dir.path()).len() < 5, "{:?}", runs(dir.path()));
    let expected = pairs(&engine, at).await;
    assert_eq!(expected.len(), 4 + 9);
    assert_eq!(expected[0], ("key 0".into(), "8".into()));
    let size = page(&engine, at).await.size;
    engine.close().await;
    drop(engine);
    let engine = open_real(dir.path(), paged()).await.unwrap();
    assert_eq!(pairs(&engine, at).await, expected);
    assert_eq!(page(&engine, at).await.size, size);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_run_is_not_merged_and_others_are() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), paged()).await.unwrap();
    let topic = topic(&engine, "in", Durability::Durable).await;
    let (damaged, sound) = (at(&topic, 0), at(&topic, 1));
    for round in 0..3 {
        let key = format!("{round}");
        write(&engine, damaged, &[(&key, Some("1"))]).await;
        write(&engine, sound, &[(&key, Some("1"))]).await;
        checkpoint(&engine).await;
    }
    let path = dir
        .path()
        .join(format!("state/{}.run", runs(dir.path())[0]));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for round in 3..9 {
        let key = format!("{round}");
        write(&engine, damaged, &[(&key, Some("1"))]).await;
        write(&engine, sound, &[(&key, Some("1"))]).await;
        checkpoint(&engine).await;
        eventually(async || engine.checkpoints.merges.are_idle()).await;
    }
    // The runs that should have been merged with it stay; newer ones are merged, like those of the
    // other table.
    let left = runs(dir.path()).len();
    assert!((5..14).contains(&left), "{left}");
    assert!(path.exists());
    assert_eq!(pairs(&engine, sound).await.len(), 9);
    let all = StateQuery {
        entries_max: 100,
        bytes_max: usize::MAX,
        ..StateQuery::default()
    };
    let refused = engine.read_state(&named(GROUP), damaged, &all).await;
    let refused = refused.expect_err("it cannot be read").to_string();
    assert!(refused.contains(".run"), "{refused}");
    // Nothing else is affected.
    write(&engine, damaged, &[("9", Some("1"))]).await;
    checkpoint(&engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_has_the_state_of_its_moment_and_what_is_restored_has_it() {
    let place = Place::new();
    let engine = open_real(&place.at("data"), paged()).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    for (key, value) in [("a", "1"), ("b", "22")] {
        write(&engine, at, &[(key, Some(value))]).await;
        checkpoint(&engine).await;
    }
    write(&engine, at, &[("c", Some("3")), ("a", None)]).await;
    let expected = pairs(&engine, at).await;
    back_up(&engine, &place.at("backup")).await;
    // Its runs are removed, but stay in the backup.
    commit(&engine, at, true, &[("later", Some("4"))]).await;
    checkpoint(&engine).await;
    let verified = place.verified("backup");
    assert!(verified.flaws.is_empty(), "{:?}", verified.flaws);
    assert!(verified.manifest.damage.is_empty());
    assert_eq!(verified.manifest.format, 2);
    place.restored("backup", "restored");
    let restored = open_real(&place.at("restored"), paged()).await.unwrap();
    assert_eq!(pairs(&restored, at).await, expected);
    // Without tables in files, older versions can read the directory as before.
    let plain = open_real(&place.at("plain"), small()).await.unwrap();
    back_up(&plain, &place.at("plain-backup")).await;
    assert_eq!(place.verified("plain-backup").manifest.format, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_state_is_copied_and_named() {
    let place = Place::new();
    let engine = open_real(&place.at("data"), paged()).await.unwrap();
    let at = at(&topic(&engine, "in", Durability::Durable).await, 0);
    write(&engine, at, &[("a", Some("1"))]).await;
    checkpoint(&engine).await;
    let path = place.at("data").join("state/1.run");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    back_up(&engine, &place.at("backup")).await;
    let manifest = place.verified("backup").manifest;
    let named: Vec<&str> = { manifest.damage.iter() }.map(|flaw| &*flaw.path).collect();
    assert_eq!(named, ["state/1.run"]);
}
