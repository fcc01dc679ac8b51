//! Tests compaction as readers see it: messages that a pass removed are gone everywhere and
//! permanently, and time alone can start a pass.

use millrace_model::{ManualClock, TopicSettings};

use super::lifetime::{START, cleaned, keyed, put, set};
use super::*;
use crate::start::examine::{Severity, examine};

const TOMBSTONE_MS: u64 = 60_000;
const FAR_FUTURE: Timestamp = Timestamp(9_000_000_000_000_000);
const LONG_AGO: Timestamp = Timestamp(1);

struct Rig {
    disk: SimDisk,
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    engine: Option<Arc<LocalEngine>>,
    at: TopicPartition,
}

impl Rig {
    /// One compacted topic whose batches all stay in memory.
    async fn new() -> Self {
        let mut rig = Self {
            disk: SimDisk::default(),
            dir: tempfile::tempdir().unwrap(),
            clock: Arc::new(ManualClock::at(START)),
            engine: None,
            at: TopicPartition {
                topic: millrace_model::TopicId(1),
                partition: PartitionId(0),
            },
        };
        rig.open().await;
        rig.at = at(&topic(rig.engine(), "orders", Durability::Durable).await, 0);
        let settings = TopicSettings {
            compact: true,
            tombstone_ms: TOMBSTONE_MS,
            ..TopicSettings::default()
        };
        set(rig.engine(), settings).await;
        rig
    }

    async fn open(&mut self) {
        self.engine = None;
        let options = LocalOptions {
            tail_bytes_max: 1 << 20,
            checkpoint_interval: Duration::from_millis(5),
            ..cleaned()
        };
        let (disk, clock) = (Arc::new(self.disk.clone()), Arc::clone(&self.clock));
        let opened = LocalEngine::open_on(disk, self.dir.path(), options, clock).await;
        self.engine = Some(opened.expect("the directory opens"));
    }

    fn engine(&self) -> &LocalEngine {
        self.engine.as_ref().expect("an open engine")
    }

    async fn put(&self, key: &str, value: Option<&str>, at: Timestamp) {
        put(self.engine(), self.at, keyed(Some(key), value, at)).await;
    }

    /// Lets time pass in small steps, as for a real host.
    async fn pass_time(&self, by: Duration) {
        for _ in 0..20 {
            self.clock.advance(by / 20);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Keys and values from `from` on, as readers get them.
    async fn read_from(&self, from: Offset) -> Vec<(u64, String, Option<String>)> {
        let end = self.engine().ends(self.at).unwrap().end;
        let (mut next, mut found) = (from, Vec::new());
        while next < end {
            for batch in self.engine().read(self.at, next, 3_000).await.unwrap() {
                let seen = next;
                next = batch.end_offset();
                if batch.is_control() {
                    continue;
                }
                for record in batch.records().unwrap().map(Result::unwrap) {
                    let message = record.to_message(batch.bytes()).unwrap();
                    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                    let key = text(message.key.unwrap_or_default());
                    if record.offset >= seen {
                        found.push((record.offset.0, key, message.value.map(text)));
                    }
                }
            }
        }
        found
    }

    async fn read(&self) -> Vec<(u64, String, Option<String>)> {
        self.read_from(Offset(0)).await
    }

    /// Checks that counts between any two offsets equal the messages that are read.
    async fn counts_what_it_reads(&self) {
        let end = self.engine().ends(self.at).unwrap().end;
        let all = self.read().await;
        for from in 0..=end.0 {
            for to in from..=end.0 + 1 {
                let within = all
                    .iter()
                    .filter(|(offset, ..)| (from..to).contains(offset));
                let counted = self.engine().count(self.at, Offset(from), Offset(to)).await;
                assert_eq!(counted.unwrap(), within.count() as u64, "{from}..{to}");
            }
        }
    }

    async fn holds(&self, what: impl Fn(&(u64, String, Option<String>)) -> bool) -> bool {
        self.read().await.iter().any(what)
    }
}

fn is_tombstone((_, key, value): &(u64, String, Option<String>)) -> bool {
    !key.is_empty() && value.is_none()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pass_removed_is_read_from_nowhere_though_it_was_in_memory() {
    let rig = Rig::new().await;
    for number in 0..40 {
        let value = format!("secret {number} {}", "x".repeat(300));
        rig.put(&format!("k{}", number % 4), Some(&value), START)
            .await;
    }
    let found = rig.engine().partition(rig.at).unwrap();
    assert!(
        found.read_tail(Offset(0), 10).is_some(),
        "memory has it all"
    );
    rig.pass_time(Duration::from_millis(100)).await;
    eventually(async || found.files.read().clean() > Offset(20)).await;
    let clean = found.files.read().clean();
    // Wherever a reader begins, it gets the content of the files.
    let all = rig.read().await;
    assert!(all.len() < 30, "{} of 40 are left", all.len());
    for from in 0..40 {
        let seen = rig.read_from(Offset(from)).await;
        let expected: Vec<_> = all
            .iter()
            .filter(|(offset, ..)| *offset >= from)
            .cloned()
            .collect();
        assert_eq!(seen, expected, "from {from}");
    }
    // And a search by time agrees.
    let first = rig.engine().offset_at(rig.at, START).await.unwrap();
    assert_eq!(
        first.map(|first| first.0),
        all.first().map(|(offset, ..)| *offset)
    );
    // Unchanged batches stay in memory.
    assert!(found.read_tail(clean, 10).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_compacted_partition_is_counted_and_not_its_offsets() {
    let mut rig = Rig::new().await;
    for number in 0..40 {
        let value = format!("{number} {}", "x".repeat(300));
        rig.put(&format!("k{}", number % 4), Some(&value), START)
            .await;
    }
    rig.pass_time(Duration::from_millis(100)).await;
    let found = rig.engine().partition(rig.at).unwrap();
    eventually(async || found.files.read().clean() > Offset(20)).await;
    assert!(rig.read().await.len() < 30);
    rig.counts_what_it_reads().await;
    rig.put("k9", Some("after the pass"), START).await;
    rig.counts_what_it_reads().await;
    rig.engine().close().await;
    rig.open().await;
    rig.counts_what_it_reads().await;
    // Indexes of earlier versions have no count, and may be missing: then segments are read.
    let is_index = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "index");
    for version in ["MRX3", "none"] {
        rig.engine().close().await;
        let indexes: Vec<_> = rig.disk.paths().into_iter().filter(is_index).collect();
        assert!(!indexes.is_empty());
        for path in indexes {
            let mut bytes = rig.disk.contents(&path).unwrap();
            let footer = bytes.len() - 48;
            bytes.truncate(footer + 32);
            bytes.extend(version.as_bytes());
            bytes.extend(crc32c::crc32c(&bytes[footer..]).to_le_bytes());
            rig.disk.plant(&path, &bytes);
        }
        rig.open().await;
        rig.counts_what_it_reads().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_key_stays_deleted_after_passes_and_restarts_though_its_segment_became_no_shorter()
 {
    let mut rig = Rig::new().await;
    // One small value among those that stay: removing it leaves a gap of the same size.
    rig.put("deleted", Some(""), START).await;
    for round in 0..4 {
        for number in 0..30 {
            rig.put(&format!("{round} {number}"), Some(&"x".repeat(100)), START)
                .await;
        }
        if round == 0 {
            rig.put("deleted", None, START).await;
        }
        rig.pass_time(Duration::from_millis(TOMBSTONE_MS * 3 / 2))
            .await;
        rig.open().await;
        let of_key = rig
            .read()
            .await
            .into_iter()
            .rfind(|(_, key, _)| key == "deleted");
        let back = of_key.filter(|(_, _, value)| value.is_some());
        assert_eq!(back, None, "round {round}");
    }
    rig.pass_time(Duration::from_millis(TOMBSTONE_MS * 3)).await;
    eventually(async || !rig.holds(|(_, key, _)| key == "deleted").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_topic_loses_its_tombstones_in_time_whatever_time_their_producers_say_it_is() {
    for claimed in [START, FAR_FUTURE, LONG_AGO, Timestamp::default()] {
        let mut rig = Rig::new().await;
        rig.put("gone", Some("secret"), claimed).await;
        rig.put("gone", None, claimed).await;
        rig.put("stays", Some("value"), claimed).await;
        // Readers get the full time, even if the host is restarted meanwhile.
        rig.pass_time(Duration::from_millis(TOMBSTONE_MS / 2)).await;
        rig.open().await;
        rig.pass_time(Duration::from_millis(TOMBSTONE_MS / 2 - 1_000))
            .await;
        assert!(rig.holds(is_tombstone).await, "{claimed:?}: it went early");
        // And it is removed without further writes.
        rig.pass_time(Duration::from_millis(TOMBSTONE_MS * 2)).await;
        eventually(async || !rig.holds(|(_, key, _)| key == "gone").await).await;
        let left = rig.read().await;
        assert_eq!(
            left,
            [(2, "stays".to_owned(), Some("value".to_owned()))],
            "{claimed:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tombstones_stay_behind_a_segment_that_cannot_be_read_and_go_once_it_was_put_back() {
    let mut rig = Rig::new().await;
    rig.put("gone", Some("secret"), START).await;
    for number in 0..40 {
        rig.put(&format!("{number}"), Some(&"x".repeat(300)), START)
            .await;
    }
    rig.put("gone", None, START).await;
    let first = rig
        .dir
        .path()
        .join("topics/1/0-00000000000000000000.segment");
    rig.pass_time(Duration::from_millis(100)).await;
    let found = rig.engine().partition(rig.at).unwrap();
    eventually(async || !found.files.read().compactable_segments().is_empty()).await;
    drop(found);
    rig.engine = None;
    let whole = rig.disk.contents(&first).expect("a segment");
    rig.disk.flip_bit(&first, whole.len() / 2, 3);
    rig.open().await;
    rig.pass_time(Duration::from_millis(TOMBSTONE_MS * 5)).await;
    let kept = rig.read_from(Offset(41)).await;
    assert_eq!(kept, [(41, "gone".to_owned(), None)]);
    rig.engine = None;
    rig.disk.plant(&first, &whole);
    rig.open().await;
    rig.pass_time(Duration::from_millis(TOMBSTONE_MS * 3)).await;
    eventually(async || !rig.holds(|(_, key, _)| key == "gone").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_topic_keeps_its_messages_about_twice_its_retention_at_most_and_no_shorter() {
    // A timestamp in the future does not prolong anything, and old timestamps remove nothing before
    // its segment has ended.
    for claimed in [START, FAR_FUTURE, LONG_AGO, Timestamp::default()] {
        let rig = Rig::new().await;
        let settings = TopicSettings {
            retention_ms: Some(60_000),
            ..TopicSettings::default()
        };
        set(rig.engine(), settings).await;
        rig.put("a", Some("value"), claimed).await;
        rig.pass_time(Duration::from_secs(58)).await;
        assert_eq!(rig.engine().ends(rig.at).unwrap().start, Offset(0));
        // Plus the time that it takes to reach the files.
        rig.pass_time(Duration::from_secs(62 + 40)).await;
        let is_gone = async || rig.engine().ends(rig.at).unwrap().start == Offset(1);
        eventually(is_gone).await;
        assert_eq!(rig.read_from(Offset(1)).await, []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_ahead_for_a_while_keeps_neither_tombstones_nor_messages() {
    let mut rig = Rig::new().await;
    let right = Arc::clone(&rig.clock);
    let wrong = ManualClock::at(Timestamp(START.0 + 400 * 24 * 3_600_000));
    rig.clock = Arc::new(wrong);
    rig.open().await;
    rig.put("gone", Some("secret"), START).await;
    rig.put("gone", None, START).await;
    for number in 0..40 {
        rig.put(&format!("{number}"), Some(&"x".repeat(300)), START)
            .await;
    }
    rig.pass_time(Duration::from_millis(100)).await;
    rig.clock = right;
    rig.open().await;
    rig.pass_time(Duration::from_millis(TOMBSTONE_MS * 3)).await;
    eventually(async || !rig.holds(|(_, key, _)| key == "gone").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_where_all_is_said_to_be_compacted_is_noted_by_an_examination() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_real(dir.path(), small()).await.unwrap();
    let orders = at(&topic(&engine, "orders", Durability::Durable).await, 0);
    for number in 0..60 {
        let key = format!("{}", number % 50);
        let value = "x".repeat(300);
        put(&engine, orders, keyed(Some(&key), Some(&value), START)).await;
    }
    let clean = |to: u64| {
        let found = engine.partition(orders).unwrap();
        found.files.write().set_clean(Offset(to));
        engine.checkpoints.compacted.lock().push(found);
    };
    // As left by a version that skipped a segment.
    clean(55);
    engine.close().await;
    let path = dir.path().to_owned();
    let examined = tokio::task::spawn_blocking(move || examine(&path, &mut |_| {}));
    let report = examined.await.unwrap().expect("it is examined");
    let noted = report
        .findings
        .iter()
        .filter(|f| f.meaning.contains("superseded"));
    let noted: Vec<_> = noted.collect();
    assert_eq!(noted.len(), 1, "{noted:?}");
    assert_eq!(noted[0].offsets, Some(Offset(0)..Offset(5)), "keys 0 to 4");
    assert_eq!(noted[0].severity, Severity::Note);
}
