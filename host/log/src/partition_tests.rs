//! Tests of one partition's files: written batches can be read from any offset and across rolls;
//! damage is reported, and the rest stays readable.

use super::*;
use crate::disk::RealDisk;
use crate::sim::{Effect, Fault, OperationKind, SimDisk};
use millrace_model::{BatchBuilder, Message, Timestamp, TopicPartition};
use proptest::prelude::*;

fn batch(base: u64, messages: u64, value_bytes: usize) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    for number in 0..messages {
        builder.push(&Message {
            key: None,
            value: Some(vec![(base + number) as u8; value_bytes].into()),
            headers: Vec::new(),
            timestamp: Timestamp(base),
        });
    }
    builder.finish().unwrap().at_offset(Offset(base))
}

fn batches(shape: &[(u64, usize)]) -> Vec<RecordBatch> {
    let mut base = 0;
    let place = |&(messages, bytes): &(u64, usize)| {
        let batch = batch(base, messages, bytes);
        base += messages;
        batch
    };
    shape.iter().map(place).collect()
}

fn open_on(disk: Arc<dyn Disk>, dir: &Path, mark: Mark) -> PartitionFiles {
    open_as(disk, dir, None, mark)
}

fn open_as(
    disk: Arc<dyn Disk>,
    dir: &Path,
    partition: Option<TopicPartition>,
    mark: Mark,
) -> PartitionFiles {
    let listing = Listing::read(&*disk, dir).unwrap();
    let files = listing.files(&*disk, 0).unwrap();
    PartitionFiles::open(disk, Arc::default(), files, partition, 20_000, mark).unwrap()
}

fn open(disk: &SimDisk, mark: Mark) -> PartitionFiles {
    open_on(Arc::new(disk.clone()), Path::new("/data/topics/1"), mark)
}

fn read_all(files: &PartitionFiles, mut from: Offset, bytes_max: usize) -> Vec<RecordBatch> {
    let mut all = Vec::new();
    while let Some(reader) = files.reader(from) {
        let read = reader.read(bytes_max).unwrap();
        from = read.last().expect("at least one batch").end_offset();
        all.extend(read);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_appended_is_read_from_every_offset_now_and_after_a_restart(
        shape in proptest::collection::vec((1u64..5, 0usize..3_000), 1..60),
        cuts in proptest::collection::vec(1usize..20, 1..10),
        bytes_max in 1usize..30_000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("topics/1");
        let written = batches(&shape);
        let mut files = open_on(Arc::new(RealDisk), &dir, Mark::default());
        let mut rest = &written[..];
        for cut in cuts.iter().cycle() {
            let (run, after) = rest.split_at((*cut).min(rest.len()));
            files.append(run).unwrap();
            files.take_unsynced().sync(&RealDisk).unwrap();
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let reopened = open_on(Arc::new(RealDisk), &dir, files.mark());
        for files in [&files, &reopened] {
            prop_assert_eq!(&read_all(files, Offset(0), bytes_max), &written);
            for (number, batch) in written.iter().enumerate() {
                for offset in batch.base_offset().0..batch.end_offset().0 {
                    let read = files.reader(Offset(offset)).unwrap().read(bytes_max).unwrap();
                    prop_assert_eq!(&read[..], &written[number..number + read.len()]);
                    // Everything was just read, so it is in memory, if the system can tell.
                    if let Some(now) = files.reader(Offset(offset)).unwrap().read_now(bytes_max) {
                        prop_assert_eq!(&now[..], &read[..now.len()]);
                    }
                }
            }
        }
    }
}

#[test]
fn what_was_just_read_is_read_again_without_waiting_and_what_is_damaged_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("topics/1");
    let mut files = open_on(Arc::new(RealDisk), &path, Mark::default());
    files.append(&small_batches(60)).unwrap();
    let sealed = files.sealed_segments();
    assert!(!sealed.is_empty());
    let (first, last) = (Offset(2), Offset(118));
    for from in [first, last] {
        let read = files.reader(from).unwrap().read(5_000).unwrap();
        assert!(read.len() > 1 || from == last);
        let now = files.reader(from).unwrap().read_now(5_000);
        assert_eq!(now.expect("it is in memory"), read);
    }
    let active = std::fs::OpenOptions::new()
        .write(true)
        .open(files.place.location.segment(files.active.base))
        .unwrap();
    let at = files.active.bytes - 20;
    std::os::unix::fs::FileExt::write_all_at(&active, &[0xa5; 4], at).unwrap();
    assert!(files.reader(last).unwrap().read_now(5_000).is_none());
    assert!(files.reader(last).unwrap().read(5_000).is_err());
}

fn small_batches(count: usize) -> Vec<RecordBatch> {
    batches(&vec![(2, 400); count])
}

#[test]
fn damage_is_named_by_its_offsets_and_all_else_stays_readable() {
    // In a sealed segment and the active one, before and after a restart; in header, records and
    // base offset.
    for (damaged, reopen, byte) in [
        (5, false, 100),
        (5, true, 8),
        (60, false, 300),
        (60, true, 16),
        (7, true, 6),
    ] {
        let disk = SimDisk::default();
        let written = small_batches(61);
        let mut files = open(&disk, Mark::default());
        files.append(&written).unwrap();
        files.take_unsynced().sync(&disk).unwrap();
        assert!(files.sealed.len() >= 2);
        let batch = &written[damaged];
        let after = files.sealed.partition_point(|&b| b <= batch.base_offset());
        let active = files.active.base;
        let base = if batch.base_offset() >= active {
            active
        } else {
            files.sealed[after - 1]
        };
        let in_segment = written.iter().filter(|b| b.base_offset() >= base);
        let before: usize = in_segment
            .take_while(|b| b.base_offset() < batch.base_offset())
            .map(RecordBatch::byte_count)
            .sum();
        disk.flip_bit(&files.place.location.segment(base), before + byte, 1);
        let files = if reopen {
            open(&disk, files.mark())
        } else {
            files
        };
        let (mut from, mut good, mut bad) = (Offset(0), Vec::new(), Vec::new());
        while let Some(reader) = files.reader(from) {
            match reader.read(5_000) {
                Ok(read) => {
                    from = read.last().unwrap().end_offset();
                    good.extend(read);
                }
                Err(SegmentError::Damaged {
                    from: first, to, ..
                }) => {
                    bad.push((first, to));
                    from = to;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(
            bad,
            [(batch.base_offset(), batch.end_offset())],
            "byte {byte}"
        );
        let mut expected = written.clone();
        expected.remove(damaged);
        assert_eq!(good, expected);
    }
}

#[test]
fn a_missing_segment_is_damage_of_its_offsets_only() {
    let disk = SimDisk::default();
    let written = small_batches(61);
    let mut files = open(&disk, Mark::default());
    files.append(&written).unwrap();
    let second = files.sealed[1];
    disk.remove(&files.place.location.segment(Offset(0)))
        .unwrap();
    for files in [&files, &open(&disk, files.mark())] {
        let read = files.reader(Offset(3)).unwrap().read(1);
        assert!(
            matches!(read, Err(SegmentError::Damaged { from: Offset(3), to, .. }) if to == second),
            "{read:?}"
        );
        assert!(files.reader(second).unwrap().read(1).is_ok());
    }
}

#[test]
fn a_damaged_or_missing_index_is_built_again() {
    let disk = SimDisk::default();
    let written = small_batches(61);
    let mut files = open(&disk, Mark::default());
    files.append(&written).unwrap();
    disk.flip_bit(&files.place.location.index(Offset(0)), 3, 3);
    disk.remove(&files.place.location.index(files.sealed[1]))
        .unwrap();
    assert_eq!(read_all(&files, Offset(0), 3_000), written);
}

#[test]
fn what_came_after_the_mark_is_written_again_and_read_once() {
    for seed in 0..50 {
        let disk = SimDisk::default();
        let written = small_batches(61);
        let (checkpointed, later) = written.split_at(10 + seed as usize % 20);
        let mut files = open(&disk, Mark::default());
        files.append(checkpointed).unwrap();
        files.take_unsynced().sync(&disk).unwrap();
        let mark = files.mark();
        files.append(later).unwrap();
        disk.restore_power(seed);
        let mut files = open(&disk, mark);
        assert_eq!(read_all(&files, Offset(0), 3_000), checkpointed);
        // Another history: the same offsets with other sizes.
        let again: Vec<RecordBatch> = later
            .iter()
            .map(|b| batch(b.base_offset().0, 2, 300))
            .collect();
        files.append(&again).unwrap();
        let all = read_all(&files, Offset(0), 3_000);
        assert_eq!(all, [checkpointed, &again[..]].concat(), "seed {seed}");
    }
}

#[test]
fn a_full_disk_stops_an_append_where_it_is_and_it_goes_on_later() {
    let disk = SimDisk::default();
    let written = small_batches(200);
    let mut files = open(&disk, Mark::default());
    disk.set_capacity(Some(70_000));
    assert!(files.append(&written).is_err_and(|e| is_full(&e)));
    let end = files.mark().end;
    assert!(end > Offset(0));
    disk.set_capacity(None);
    let rest = written.partition_point(|b| b.base_offset() < end);
    files.append(&written[rest..]).unwrap();
    assert_eq!(read_all(&files, Offset(0), 3_000), written);
}

#[test]
fn a_partition_that_has_a_directory_of_its_own_goes_on_in_it() {
    let disk = SimDisk::default();
    let topic_dir = Path::new("/data/topics/1");
    let written = small_batches(121);
    let (older, newer) = written.split_at(60);
    let own = Location::own_dir(topic_dir, 0);
    let mut files = PartitionFiles::fresh(
        Arc::new(disk.clone()),
        Arc::default(),
        own.clone(),
        None,
        20_000,
    );
    files.append(older).unwrap();
    assert!(
        disk.contents(&topic_dir.join("0/00000000000000000000.segment"))
            .is_some()
    );
    let mut files = open(&disk, files.mark());
    assert_eq!(files.place.location, own);
    files.append(newer).unwrap();
    assert_eq!(
        read_all(&open(&disk, files.mark()), Offset(0), 3_000),
        written
    );
    // Its new neighbour has none.
    let listing = Listing::read(&disk, topic_dir).unwrap();
    let neighbour = listing.files(&disk, 1).unwrap();
    assert_eq!(neighbour.location, Location::new(topic_dir, 1));
}

#[test]
fn what_is_written_is_durable_by_single_syncs_or_by_one_of_the_whole_file_system() {
    for (whole, closed) in [(false, false), (true, false), (true, true)] {
        let disk = SimDisk::default();
        let written = small_batches(61);
        let mut files = open(&disk, Mark::default());
        files.append(&written).unwrap();
        let file_system = disk.file_system(Path::new("/data")).unwrap();
        if closed {
            assert!(files.let_go(), "something is unsynced");
            assert!(files.take_unsynced().is_empty());
        }
        if whole {
            file_system.sync().unwrap();
        } else {
            files.take_unsynced().sync(&disk).unwrap();
        }
        let mark = files.mark();
        disk.cut_power();
        disk.restore_power(1);
        assert_eq!(read_all(&open(&disk, mark), Offset(0), 3_000), written);
    }
}

#[test]
fn files_in_a_topics_directory_are_told_apart_by_their_names() {
    let disk = SimDisk::default();
    let dir = Path::new("/data/topics/1");
    for name in [
        "0-00000000000000000000.segment",
        "1/00000000000000000000.segment",
        "12-x",
        "07-x",
        "note",
    ] {
        disk.create(&dir.join(name)).unwrap();
    }
    let listing = Listing::read(&disk, dir).unwrap();
    assert_eq!(listing.partitions(), [0, 1, 12].into());
    for partition in [0, 1] {
        let files = listing.files(&disk, partition).unwrap();
        assert_eq!(files.segments(), [Offset(0)]);
    }
    let strangers = listing.strangers(2);
    assert_eq!(
        strangers,
        ["07-x", "note", "12-x"].map(|name| dir.join(name))
    );
}

/// What a reader of these files gets, in order: batches, and damage.
fn met(files: &PartitionFiles) -> (Vec<RecordBatch>, Vec<(u64, u64, DamageKind)>) {
    let (mut from, mut good, mut bad) = (Offset(0), Vec::new(), Vec::new());
    while let Some(reader) = files.reader(from) {
        match reader.read(5_000) {
            Ok(read) => {
                from = read.last().unwrap().end_offset();
                good.extend(read);
            }
            Err(SegmentError::Damaged {
                from: first,
                to,
                kind,
            }) => {
                bad.push((first.0, to.0, kind));
                from = to;
            }
            Err(error) => panic!("{error}"),
        }
    }
    (good, bad)
}

fn partition(topic: u64) -> TopicPartition {
    TopicPartition {
        topic: millrace_model::TopicId(topic),
        partition: millrace_model::PartitionId(0),
    }
}

fn open_of(disk: &SimDisk, topic: u64, mark: Mark) -> PartitionFiles {
    let dir = PathBuf::from(format!("/data/topics/{topic}"));
    open_as(Arc::new(disk.clone()), &dir, Some(partition(topic)), mark)
}

fn swap(disk: &SimDisk, one: &Path, other: &Path) {
    let (first, second) = (disk.contents(one).unwrap(), disk.contents(other).unwrap());
    for (path, bytes) in [(one, second), (other, first)] {
        let file = disk.create(path).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
    }
}

#[test]
fn a_segment_of_another_partition_is_damage_of_its_offsets_only() {
    let disk = SimDisk::default();
    let written = small_batches(200);
    let mut both = [1, 2].map(|topic| open_of(&disk, topic, Mark::default()));
    for files in &mut both {
        files.append(&written).unwrap();
    }
    let bases = both[0].sealed.clone();
    assert!(bases.len() > 3);
    let (from, to) = (bases[1], bases[2]);
    for with_index in [false, true] {
        let [one, other] = [&both[0], &both[1]].map(|files| &files.place.location);
        swap(&disk, &one.segment(from), &other.segment(from));
        if with_index {
            swap(&disk, &one.index(from), &other.index(from));
        }
        for files in [1, 2].map(|topic| open_of(&disk, topic, both[0].mark())) {
            let (good, bad) = met(&files);
            assert_eq!(bad, [(from.0, to.0, DamageKind::Misplaced)]);
            let kept = |b: &&RecordBatch| b.end_offset() <= from || b.base_offset() >= to;
            let expected: Vec<RecordBatch> = written.iter().filter(kept).cloned().collect();
            assert_eq!(good, expected);
        }
        swap(&disk, &one.segment(from), &other.segment(from));
    }
    assert_eq!(met(&open_of(&disk, 1, both[0].mark())).0, written);
}

#[test]
fn a_batch_that_was_written_to_the_wrong_file_is_damage_and_those_around_it_are_read() {
    let disk = SimDisk::default();
    let written = small_batches(61);
    let mut files = open_of(&disk, 1, Mark::default());
    files.append(&written).unwrap();
    let path = files.place.location.segment(Offset(0));
    let at: usize = written[..3].iter().map(RecordBatch::byte_count).sum();
    let astray = written[3].clone().stamped(Stamp::of(partition(2)));
    disk.corrupt(&path, |bytes| {
        bytes[at..at + astray.byte_count()].copy_from_slice(astray.bytes());
    });
    let files = open_of(&disk, 1, files.mark());
    let (good, bad) = met(&files);
    let (from, to) = (written[3].base_offset(), written[3].end_offset());
    assert_eq!(bad, [(from.0, to.0, DamageKind::Misplaced)]);
    assert_eq!(good, [&written[..3], &written[4..]].concat());
}

#[test]
fn an_active_segment_of_another_partition_is_not_written_over() {
    let disk = SimDisk::default();
    let written = small_batches(40);
    let mut both = [1, 2].map(|topic| open_of(&disk, topic, Mark::default()));
    for files in &mut both {
        files.append(&written[..30]).unwrap();
    }
    let mark = both[0].mark();
    assert!(mark.bytes > 0);
    let paths = [&both[0], &both[1]].map(|files| files.place.location.segment(mark.segment));
    swap(&disk, &paths[0], &paths[1]);
    let before = paths.each_ref().map(|path| disk.contents(path).unwrap());
    let mut files = open_of(&disk, 1, mark);
    files.append(&written[30..]).unwrap();
    assert_eq!(
        paths.each_ref().map(|path| disk.contents(path).unwrap()),
        before
    );
    let (good, bad) = met(&files);
    let (from, to) = (mark.segment, written[30].base_offset());
    assert_eq!(bad, [(from.0, to.0, DamageKind::Misplaced)]);
    let kept = |b: &&RecordBatch| b.end_offset() <= from || b.base_offset() >= to;
    assert_eq!(
        good,
        written.iter().filter(kept).cloned().collect::<Vec<_>>()
    );
    // Once restored, everything is there.
    swap(&disk, &paths[0], &paths[1]);
    assert_eq!(met(&open_of(&disk, 1, files.mark())), (written, Vec::new()));
}

/// The contents of all files.
fn segments(disk: &SimDisk, topic: u64) -> Vec<Vec<u8>> {
    let dir = PathBuf::from(format!("/data/topics/{topic}"));
    let names = disk.list(&dir).unwrap().into_iter();
    let names = names.filter(|name| name.contains(".segment"));
    let mut all: Vec<Vec<u8>> = names
        .map(|name| disk.contents(&dir.join(name)).unwrap())
        .collect();
    all.sort();
    all
}

fn swap_dirs(disk: &SimDisk) {
    let [one, other, aside] = ["1", "2", "aside"].map(|name| Path::new("/data/topics").join(name));
    for (from, to) in [(&one, &aside), (&other, &one), (&aside, &other)] {
        disk.create_dir_all(to).unwrap();
        for name in disk.list(from).unwrap() {
            disk.rename(&from.join(&name), &to.join(&name)).unwrap();
        }
    }
}

#[test]
fn nothing_is_removed_of_another_partition_whose_directory_stands_here() {
    let disk = SimDisk::default();
    let written = small_batches(300);
    let [mut short, mut long] = [1, 2].map(|topic| open_of(&disk, topic, Mark::default()));
    short.append(&written[..50]).unwrap();
    long.append(&written).unwrap();
    assert!(long.sealed.len() > short.sealed.len() + 2);
    let all = segments(&disk, 2);
    swap_dirs(&disk);
    // Segments after the mark, segments below the start, and segments although the mark says that
    // there are none yet.
    let below = Mark {
        start: short.end,
        ..short.mark()
    };
    for mark in [short.mark(), below, Mark::default()] {
        let files = open_of(&disk, 1, mark);
        assert_eq!(segments(&disk, 1), all, "{mark:?}");
        assert_eq!(met(&files).0, []);
    }
    // A file with this name was kept before.
    let taken = Path::new("/data/topics/1/0-00000000000000000000.segment");
    disk.create(taken).unwrap();
    let other = written[0].clone().stamped(Stamp::of(partition(2)));
    disk.open(taken)
        .unwrap()
        .write_all_at(other.bytes(), 0)
        .unwrap();
    open_of(&disk, 1, Mark::default());
    assert_eq!(segments(&disk, 1).len(), all.len() + 1);
}

#[test]
fn retention_removes_nothing_of_another_partition() {
    let disk = SimDisk::default();
    let written = small_batches(200);
    let mut both = [1, 2].map(|topic| open_of(&disk, topic, Mark::default()));
    for files in &mut both {
        files.append(&written).unwrap();
    }
    let base = both[0].sealed[1];
    let paths = [&both[0], &both[1]].map(|files| files.place.location.segment(base));
    let other = disk.contents(&paths[1]).unwrap();
    swap(&disk, &paths[0], &paths[1]);
    let mut files = open_of(&disk, 1, both[0].mark());
    files.advance_start(files.end).unwrap();
    files.take_below_start().remove().unwrap();
    assert_eq!(segments(&disk, 1), [other]);
}

#[test]
fn an_active_segment_whose_beginning_cannot_be_read_is_left_and_writing_goes_on() {
    let disk = SimDisk::default();
    let written = small_batches(40);
    let mut files = open_of(&disk, 1, Mark::default());
    files.append(&written[..30]).unwrap();
    let mark = files.mark();
    assert!(mark.bytes > 0);
    let path = files.place.location.segment(mark.segment);
    let before = disk.contents(&path);
    let unreadable = Fault::new(Effect::Fail).on(OperationKind::Read);
    disk.inject(unreadable.at_path(path.to_str().unwrap()).for_ever());
    let mut files = open_of(&disk, 1, mark);
    files.append(&written[30..]).unwrap();
    assert_eq!(disk.contents(&path), before);
    disk.heal();
    // The fault was temporary: everything is there.
    assert_eq!(met(&open_of(&disk, 1, files.mark())), (written, Vec::new()));
}

#[test]
fn an_index_made_of_a_misplaced_segment_is_not_kept_for_when_it_is_put_back() {
    let disk = SimDisk::default();
    let written = small_batches(200);
    let mut both = [1, 2].map(|topic| open_of(&disk, topic, Mark::default()));
    for files in &mut both {
        files.append(&written).unwrap();
    }
    let base = both[0].sealed[1];
    let paths = [&both[0], &both[1]].map(|files| files.place.location.segment(base));
    disk.remove(&both[0].place.location.index(base)).unwrap();
    swap(&disk, &paths[0], &paths[1]);
    for segment in open_of(&disk, 1, both[0].mark()).sealed_segments() {
        segment.facts(Timestamp(77)).unwrap();
    }
    swap(&disk, &paths[0], &paths[1]);
    let files = open_of(&disk, 1, both[0].mark());
    let segments = files.sealed_segments();
    let put_back = segments
        .iter()
        .find(|segment| segment.base == base)
        .unwrap();
    let latest = written.iter().filter(|b| b.end_offset() <= put_back.end);
    let latest = latest.map(RecordBatch::max_timestamp).max().unwrap();
    assert_eq!(put_back.facts(Timestamp(78)).unwrap().max_timestamp, latest);
}

#[test]
fn files_of_a_version_without_stamps_are_read_and_go_on_with_them() {
    let disk = SimDisk::default();
    let written = small_batches(40);
    let mut files = open(&disk, Mark::default());
    files.append(&written[..30]).unwrap();
    let mut files = open_of(&disk, 1, files.mark());
    files.append(&written[30..]).unwrap();
    let (good, bad) = met(&files);
    assert_eq!((&good, bad), (&written, Vec::new()));
    let stamps: Vec<_> = good.iter().map(RecordBatch::stamp).collect();
    assert_eq!(stamps[..30], [None; 30]);
    assert_eq!(stamps[30..], [Some(Stamp::of(partition(1))); 10]);
}
