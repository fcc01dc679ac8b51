//! Tests that a checkpoint with flipped bits is refused, or has its original content.

use fastrand::Rng;
use millrace_engine::conformance::named as group_named;
use millrace_engine::idempotence::producers::{Named, ProducerChanges, ProducerState, Sent};
use millrace_engine::idempotence::requests::{Request, WindowChange};
use millrace_engine::state::StateEntry;
use millrace_engine::state::keeper::{TableChanges, TableStep};
use millrace_engine::state::{StateSize, StateValue};
use millrace_model::{Attempt, Durability, Parked, ProducerId, TopicName, TopicSpec};

use super::*;
use crate::decide::state::Group;

/// Enough rows to fill some pages of each table, and a value that takes pages of its own.
fn changes() -> Changes {
    let at = |partition| TopicPartition {
        topic: TopicId(1),
        partition: PartitionId(partition),
    };
    let topic = |id: u64| Topic {
        id: TopicId(id),
        spec: TopicSpec {
            name: TopicName::parse(&format!("topic-{id}")).unwrap(),
            partitions: 3,
            durability: Durability::Durable,
            partitioner: None,
            owner: None,
            created_at: Timestamp(1),
            settings: Default::default(),
        },
    };
    let text = |kind: &str, n: u32| Bytes::from(format!("{kind} {n} {}", "v".repeat(n as usize)));
    let entry = |n: u32| StateEntry {
        key: text("key", n).to_vec().into(),
        value: StateValue::new(&text("value", n)),
        ends_at: Timestamp(n.into()),
    };
    let request = |n: u64| Request {
        key: [n as u8; 16],
        fingerprint: [n as u8 + 1; 16],
        at: Timestamp(n),
        base_offsets: vec![Offset(n), Offset(n + 7)],
        note: text("note", n as u32),
    };
    let sent = |n: i32| Sent {
        first: n,
        last: n + 3,
        base: Offset(n as u64),
    };
    let producer = |n: i64| {
        let state = ProducerState::stored(n as i16, Timestamp(5), &[sent(1), sent(9)]);
        (at(n as u32 % 3), n, state)
    };
    let named = |n: i64| Named {
        producer: ProducerId { id: n, epoch: 1 },
        at: Timestamp(n as u64),
    };
    let large = (
        EntryKind::Module,
        "large".to_owned(),
        Some(vec![7; 9_000].into()),
    );
    let progress = |n| Progress {
        parked: vec![Parked {
            log: vec![Attempt {
                at: Timestamp(7),
                revision: 1,
                class: "busy".to_owned(),
                reason: String::from_utf8(text("progress", n).to_vec()).unwrap(),
            }],
            ..Parked::default()
        }],
        ..Progress::default()
    };
    let entries = (0..40).map(|n| (EntryKind::Processor, n.to_string(), Some(text("entry", n))));
    Changes {
        next_topic: TopicId(9),
        topics: (1..20).map(topic).collect(),
        groups: (0..60)
            .map(|n| {
                (
                    at(n % 3),
                    group_named(&format!("group-{n}")),
                    Group::stored(n.into(), Some(progress(n).into())),
                )
            })
            .collect(),
        tables: vec![(
            at(1),
            group_named("group-1"),
            TableStep::Rows(TableChanges {
                entries: (0..60).map(|n| (n.into(), entry(n))).collect(),
                ..TableChanges::default()
            }),
        )],
        entries: entries.chain([large]).collect(),
        moment: Timestamp(77),
        producers: ProducerChanges {
            next_id: 50,
            states: (0..50).map(producer).collect(),
            names: (0..50)
                .map(|n| (format!("name-{n}").into(), Some(named(n))))
                .collect(),
        },
        requests: vec![WindowChange {
            topic: TopicId(1),
            first: 0,
            added: (0..60).map(|n| (n, Arc::new(request(n)))).collect(),
        }],
        ..Changes::default()
    }
}

/// Some paged tables, each with some runs.
fn runs() -> RunsStep {
    let run = |n: u64| StoredRun {
        number: n,
        file_bytes: 1_000 * n,
        entries: 7 * n,
        removals: n,
        key: n.is_multiple_of(2).then_some(n as u32),
    };
    let table = |n: u64| {
        let id = TopicPartition {
            topic: TopicId(1),
            partition: PartitionId(n as u32),
        };
        let table = PagedTable {
            size: StateSize {
                entries: n as usize,
                bytes: 100 * n as usize,
            },
            runs: (n * 10..n * 11).map(run).collect(),
            replaces_rows: true,
        };
        ((id, group_named(&format!("paged-{n}"))), Some(table))
    };
    RunsStep {
        tables: (2..30).map(table).collect(),
        next_run: 1_000,
    }
}

fn step<'a>(
    changes: &'a Changes,
    marks: &'a [(TopicPartition, Mark)],
    runs: &'a RunsStep,
) -> Step<'a> {
    Step {
        sequence: 300,
        journal_file: 4,
        changes,
        marks,
        swept_topics: &[],
        runs,
    }
}

/// Every row of every table, as text; or why the checkpoint is refused.
fn contents(path: &Path) -> Result<Vec<String>, OpenError> {
    contents_with(path, None)
}

fn contents_with(path: &Path, cipher: Option<Arc<Cipher>>) -> Result<Vec<String>, OpenError> {
    let mut store = CheckpointStore::open(path, cipher)?;
    store.check_keys()?;
    store.load()?;
    let on = &mut store.connection;
    let all = store.runtime.block_on(async {
        let mut all = Vec::new();
        for table in rows::ALL {
            for row in table.read(on, true).await? {
                all.push(format!("{} {:?}", table.name, table.values(&row)?));
            }
        }
        all.sort();
        Ok::<_, sqlx::Error>(all)
    });
    all.map_err(|error| unusable(path, &error))
}

/// The bytes of a checkpoint that SQLite uses, and its content.
fn filled(dir: &Path) -> (Vec<u8>, Vec<String>) {
    let path = dir.join("whole.sqlite");
    let mut store = CheckpointStore::open(&path, None).unwrap();
    let mark = |n: u64| {
        let id = TopicPartition {
            topic: TopicId(n),
            partition: PartitionId(2),
        };
        let mark = Mark {
            start: Offset(n),
            end: Offset(1_000 * n),
            bytes: 4_096 * n,
            ..Mark::default()
        };
        (id, mark)
    };
    let marks: Vec<_> = (1..80).map(mark).collect();
    store.save(&step(&changes(), &marks, &runs())).unwrap();
    drop(store);
    let said = contents(&path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let pages = u32::from_be_bytes([bytes[28], bytes[29], bytes[30], bytes[31]]);
    bytes.truncate(pages as usize * 4096);
    (bytes, said)
}

#[test]
fn a_flipped_bit_never_changes_what_a_checkpoint_says() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, said) = filled(dir.path());
    assert!(said.len() > 400, "{}", said.len());
    let mut random = Rng::with_seed(11);
    let mut places: Vec<(usize, u8)> = (0..100).map(|at| (at, random.u8(..8))).collect();
    for page in (0..whole.len()).step_by(4096) {
        // First in the header of a page, then anywhere.
        places.extend((0..24).map(|at| (page + at, random.u8(..8))));
        places.extend((0..60).map(|_| (page + random.usize(..4096), random.u8(..8))));
    }
    let (mut refused, mut equal) = (0, 0);
    let path = dir.path().join("checkpoint.sqlite");
    for (at, bit) in places {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << bit;
        std::fs::write(&path, bytes).unwrap();
        match contents(&path) {
            Ok(found) => {
                assert!(found == said, "bit {bit} of byte {at}");
                equal += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("backup"), "{error}");
                refused += 1;
            }
        }
        let _ = std::fs::remove_file(dir.path().join("checkpoint.sqlite-journal"));
        let _ = std::fs::remove_file(dir.path().join("checkpoint.sqlite-wal"));
        let _ = std::fs::remove_file(dir.path().join("checkpoint.sqlite-shm"));
    }
    println!("{refused} refused, {equal} of no effect");
    assert!(refused > equal, "{refused} refused, {equal} of no effect");
}

#[test]
fn a_flipped_bit_in_what_is_known_of_keys_is_not_taken_for_a_wrong_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.sqlite");
    let cipher = Cipher::parse(&format!("7:{}", "0123456789abcdef".repeat(4))).unwrap();
    let cipher = Some(Arc::new(cipher));
    let mut store = CheckpointStore::open(&path, cipher.clone()).unwrap();
    store.adopt_keys().unwrap();
    store.save(&step(&changes(), &[], &runs())).unwrap();
    drop(store);
    let said = contents_with(&path, cipher.clone()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let name = b"encryption_key";
    // In the page of the table's rows; others name the columns.
    let page = whole
        .windows(16)
        .position(|found| found == b"encryption_key:7");
    let page = page.unwrap() / 4096 * 4096;
    let places = whole[page..page + 4096].windows(name.len()).enumerate();
    let places = places.filter(|(_, found)| *found == name);
    let mut refused = 0;
    for at in places.flat_map(|(at, _)| page + at..page + at + 40) {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at.min(whole.len() - 1)] ^= 1 << bit;
            std::fs::write(&path, bytes).unwrap();
            match contents_with(&path, cipher.clone()) {
                Ok(found) => assert!(found == said, "bit {bit} of byte {at}"),
                Err(error) => {
                    assert!(error.to_string().contains("backup"), "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 300, "{refused} refused");
}

#[test]
fn a_value_that_changed_is_refused_by_the_name_of_its_table() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, _) = filled(dir.path());
    let path = dir.path().join("checkpoint.sqlite");
    for (value, table) in [
        ("progress 17 ", "groups"),
        ("entry 8 ", "entries"),
        ("value 30 ", "state"),
        ("note 5 ", "requests"),
    ] {
        let mut bytes = whole.clone();
        // It may also be in the unused part of a page.
        let places = whole.windows(value.len()).enumerate();
        for (at, _) in places.filter(|(_, found)| *found == value.as_bytes()) {
            bytes[at + value.len() - 2] ^= 1;
        }
        assert_ne!(bytes, whole);
        std::fs::write(&path, bytes).unwrap();
        let refused = contents(&path).expect_err("refused").to_string();
        let named = format!("a row of its table {table} is not as it was written");
        assert!(refused.contains(&named), "{refused}");
    }
}

#[test]
fn rows_of_an_earlier_format_get_their_checksums_with_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, said) = filled(dir.path());
    let path = dir.path().join("checkpoint.sqlite");
    std::fs::write(&path, whole).unwrap();
    let mut store = CheckpointStore::open(&path, None).unwrap();
    let earlier: String = rows::ALL
        .map(|table| format!("UPDATE {} SET checksum = NULL;", table.name))
        .concat();
    for sql in [
        earlier,
        "UPDATE meta SET value = 2 WHERE key = 'format'".to_owned(),
    ] {
        let made = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut store.connection);
        store.runtime.block_on(made).unwrap();
    }
    drop(store);
    let mut store = CheckpointStore::open(&path, None).unwrap();
    store.load().unwrap();
    let nothing = Changes {
        next_topic: TopicId(9),
        moment: Timestamp(77),
        producers: ProducerChanges {
            next_id: 50,
            ..ProducerChanges::default()
        },
        ..Changes::default()
    };
    let runs = RunsStep {
        next_run: 1_000,
        ..RunsStep::default()
    };
    store.save(&step(&nothing, &[], &runs)).unwrap();
    drop(store);
    assert_eq!(contents(&path).unwrap(), said);
    // From then on, a row without a checksum is damage.
    let mut store = CheckpointStore::open(&path, None).unwrap();
    let made = sqlx::raw_sql("UPDATE groups SET checksum = NULL WHERE name = 'group-7'");
    store
        .runtime
        .block_on(made.execute(&mut store.connection))
        .unwrap();
    drop(store);
    assert!(
        contents(&path)
            .unwrap_err()
            .to_string()
            .contains("table groups")
    );
}
