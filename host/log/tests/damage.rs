//! Exhaustive damage: each prefix of a file and each single flipped bit. Exactly what is lost is
//! reported, everything else can be read, and nothing is ever read that was not written.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use millrace_log::journal::{self, JournalScan};
use millrace_log::partition::{Listing, Location};
use millrace_log::sim::SimDisk;
use millrace_log::{Disk, FrameBuffer, Journal, JournalError, Mark, PartitionFiles, SegmentError};
use millrace_model::{BatchBuilder, Message, Offset, RecordBatch};

const FILE_BYTES: u64 = 640;
const HEADER_BYTES: usize = 64;

fn journal_dir() -> &'static Path {
    Path::new("/data/journal")
}

fn body(number: u64) -> Vec<u8> {
    format!(
        "transaction {number} {}",
        "x".repeat(number as usize * 7 % 40)
    )
    .into_bytes()
}

/// Synced transactions, and where in which file each begins.
fn journal(transactions: u64) -> (SimDisk, Vec<(PathBuf, usize)>) {
    let disk = SimDisk::default();
    let scan = journal::scan(Arc::new(disk.clone()), journal_dir(), 0, 0).unwrap();
    let mut journal = Journal::start(scan, FILE_BYTES).unwrap();
    let mut places = Vec::new();
    for number in 1..=transactions {
        let mut frame = FrameBuffer::default();
        frame.body().extend(body(number));
        journal.append(&mut frame).unwrap();
        journal.sync().unwrap();
        let holds = |path: &PathBuf| {
            let bytes = disk.contents(path).unwrap();
            let body = body(number);
            let at = bytes.windows(body.len()).position(|w| w == body)?;
            Some((path.clone(), at - millrace_log::frame::FRAME_HEADER_BYTES))
        };
        places.push(disk.paths().iter().find_map(holds).expect("it is written"));
    }
    (disk, places)
}

fn scan(disk: &SimDisk) -> Result<JournalScan, JournalError> {
    journal::scan(Arc::new(disk.clone()), journal_dir(), first_file(disk), 0)
}

/// The first file in use; the others are spares.
fn first_file(disk: &SimDisk) -> u64 {
    let used = |path: &&PathBuf| disk.contents(path).unwrap().starts_with(b"MRJRNL");
    let paths = disk.paths();
    let name = paths.iter().find(used).unwrap().file_stem().unwrap();
    name.to_str().unwrap().parse().unwrap()
}

/// How many transactions are read; each must equal the one that was written.
fn replayed(scan: &JournalScan) -> u64 {
    let mut count = 0;
    scan.replay(|sequence, found| {
        count += 1;
        assert_eq!((sequence, &found[..]), (count, &body(count)[..]));
        Ok::<_, std::io::Error>(())
    })
    .unwrap();
    count
}

#[test]
fn every_prefix_of_the_last_journal_file_keeps_the_transactions_that_are_whole_in_it() {
    let (disk, places) = journal(6);
    let (path, _) = &places[0];
    assert!(places.iter().all(|(file, _)| file == path), "one file");
    let ends: Vec<usize> = (1..=6)
        .map(|n| places[n as usize - 1].1 + millrace_log::frame::FRAME_HEADER_BYTES + body(n).len())
        .collect();
    for length in (0..=FILE_BYTES as usize).rev() {
        disk.corrupt(path, |bytes| bytes.truncate(length));
        let whole = ends.iter().filter(|end| **end <= length).count() as u64;
        // The number of the first file must be passed, since the damage may leave nothing that
        // tells it.
        let number = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let scan = journal::scan(Arc::new(disk.clone()), journal_dir(), number, 0).unwrap();
        assert_eq!(replayed(&scan), whole, "{length} bytes");
    }
}

#[test]
fn a_journal_file_cut_anywhere_before_another_one_is_refused_where_it_loses_something() {
    let (disk, places) = journal(14);
    let (path, last) = places
        .iter()
        .rfind(|(file, _)| *file == places[0].0)
        .unwrap();
    assert!(places[13].0 != *path, "more files than one");
    let number = places.iter().filter(|(file, _)| file == path).count() as u64;
    let end = last + millrace_log::frame::FRAME_HEADER_BYTES + body(number).len();
    let first = first_file(&disk);
    for length in (0..=FILE_BYTES as usize).rev() {
        disk.corrupt(path, |bytes| bytes.truncate(length));
        match journal::scan(Arc::new(disk.clone()), journal_dir(), first, 0) {
            Ok(scan) => {
                assert!(length >= end, "{length} bytes");
                assert_eq!(replayed(&scan), 14);
            }
            Err(JournalError::Damaged { sequence, .. }) => {
                assert!(length < end && sequence <= number, "{length} bytes");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn every_flipped_bit_of_a_journal_is_harmless_or_refused_by_name_but_in_the_last_transaction() {
    let (disk, places) = journal(14);
    let first = first_file(&disk);
    let (mut harmless, mut refused, mut cut) = (0, 0, 0);
    let files: std::collections::BTreeSet<&PathBuf> = places.iter().map(|(f, _)| f).collect();
    for path in files {
        for at in 0..FILE_BYTES as usize {
            // The transaction whose frame the byte is in, if any is.
            let hit = places
                .iter()
                .zip(1..)
                .filter(|((file, start), _)| file == path && *start <= at)
                .last();
            let inside = |n: u64, start: usize| {
                at < start + millrace_log::frame::FRAME_HEADER_BYTES + body(n).len()
            };
            let hit = hit.filter(|((_, start), n)| inside(*n, *start));
            for bit in 0..8 {
                disk.flip_bit(path, at, bit);
                match (
                    journal::scan(Arc::new(disk.clone()), journal_dir(), first, 0),
                    hit,
                ) {
                    (Ok(scan), Some((_, 14))) => {
                        // A torn tail looks the same: the known limit.
                        assert_eq!(replayed(&scan), 13);
                        cut += 1;
                    }
                    (Ok(scan), None) => {
                        assert_eq!(replayed(&scan), 14);
                        harmless += 1;
                    }
                    (
                        Err(JournalError::Damaged {
                            path: named,
                            position,
                            sequence,
                        }),
                        Some(((_, start), number)),
                    ) if number < 14 => {
                        assert_eq!((&named, position, sequence), (path, *start as u64, number));
                        refused += 1;
                    }
                    (Err(JournalError::Damaged { .. }), None) if at < HEADER_BYTES => refused += 1,
                    (Ok(scan), hit) => {
                        panic!(
                            "bit {bit} of byte {at}, {hit:?}: {} transactions",
                            replayed(&scan)
                        )
                    }
                    (Err(error), hit) => panic!("bit {bit} of byte {at}, {hit:?}: {error}"),
                }
                disk.flip_bit(path, at, bit);
            }
        }
    }
    println!("{harmless} flips were harmless, {refused} refused, {cut} cut the last transaction");
    assert!(harmless > 0 && refused > 0 && cut > 0);
    assert_eq!(replayed(&scan(&disk).unwrap()), 14);
}

#[test]
fn a_tail_that_looks_like_frames_is_cut_and_no_frame_inside_a_message_is_ever_replayed() {
    let (disk, places) = journal(3);
    let (path, start) = places[1].clone();
    let bytes = disk.contents(&path).unwrap();
    let frame = bytes[start..places[2].1].to_vec();
    let end = (places[2].1 + 32 + body(3).len()).next_multiple_of(8);
    // An old frame again; the same with another number; a truncated one; a length that leads past
    // the end of the file.
    let mut renumbered = frame.clone();
    renumbered[16] = 4;
    let mut endless = frame.clone();
    endless[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let tails = [
        frame.clone(),
        renumbered,
        frame[..20].to_vec(),
        endless,
        vec![0xff; 100],
    ];
    for tail in tails {
        disk.corrupt(&path, |bytes| {
            bytes.truncate(end);
            bytes.extend(&tail);
            bytes.resize(FILE_BYTES as usize, 0);
        });
        assert_eq!(replayed(&scan(&disk).unwrap()), 3);
    }
    // A message that contains a frame: whatever damage the message gets, the frame in it is not a
    // transaction.
    disk.corrupt(&path, |bytes| bytes[end..].fill(0));
    let scanned = scan(&disk).unwrap();
    let mut journal = Journal::start(scanned, FILE_BYTES).unwrap();
    let mut holder = FrameBuffer::default();
    holder.body().extend(&frame);
    journal.append(&mut holder).unwrap();
    journal.sync().unwrap();
    let (path, at) = disk
        .paths()
        .into_iter()
        .filter(|other| *other != path)
        .find_map(|path| {
            let bytes = disk.contents(&path).unwrap();
            let at = bytes.windows(frame.len()).position(|w| w == frame)?;
            Some((path, at))
        })
        .unwrap();
    let number: u64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let found = |disk: &SimDisk| {
        let scan = journal::scan(Arc::new(disk.clone()), journal_dir(), number, 3).unwrap();
        scan.last_sequence()
    };
    assert_eq!(found(&disk), 4);
    disk.flip_bit(&path, at - 32 + 4, 0);
    assert_eq!(found(&disk), 3, "cut, and the frame inside is none");
}

const SEGMENT_BYTES: u64 = 700;

fn batch(base: u64, messages: u64) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    for number in 0..messages {
        builder.push(&Message {
            value: Some(vec![(base + number) as u8; 60].into()),
            ..Message::default()
        });
    }
    builder.finish().unwrap().at_offset(Offset(base))
}

fn topic_dir() -> &'static Path {
    Path::new("/data/topics/1")
}

fn open(disk: &SimDisk, mark: Mark) -> PartitionFiles {
    open_one(disk, 0, SEGMENT_BYTES, mark)
}

fn open_one(disk: &SimDisk, partition: u32, segment_bytes: u64, mark: Mark) -> PartitionFiles {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let listing = Listing::read(&*disk, topic_dir()).unwrap();
    let files = listing.files(&*disk, partition).unwrap();
    PartitionFiles::open(disk, Arc::default(), files, None, segment_bytes, mark).unwrap()
}

/// A few segments of a few batches of two messages each; returns the batches, and the file and
/// place where each begins.
fn segments() -> (SimDisk, Mark, Vec<(RecordBatch, PathBuf, usize)>) {
    let disk = SimDisk::default();
    let mut files = open(&disk, Mark::default());
    let mut written = Vec::new();
    for number in 0..9 {
        let batch = batch(number * 2, 2);
        files.append(std::slice::from_ref(&batch)).unwrap();
        let holds = |path: &PathBuf| {
            let bytes = disk.contents(path).unwrap();
            let at = bytes
                .windows(batch.byte_count())
                .position(|w| w == &batch.bytes()[..])?;
            Some((batch.clone(), path.clone(), at))
        };
        written.push(disk.paths().iter().find_map(holds).expect("it is written"));
    }
    files.take_unsynced().sync(&disk).unwrap();
    (disk, files.mark(), written)
}

/// All batches that can be read, and the ranges of offsets that cannot.
fn read_all(disk: &SimDisk, mark: Mark) -> (Vec<RecordBatch>, Vec<(u64, u64)>) {
    let files = open(disk, mark);
    let (mut from, mut read, mut damaged) = (Offset(0), Vec::new(), Vec::new());
    while let Some(reader) = files.reader(from) {
        match reader.read(1_000) {
            Ok(batches) => {
                from = batches.last().expect("at least one").end_offset();
                read.extend(batches);
            }
            Err(SegmentError::Damaged {
                from: first, to, ..
            }) => {
                damaged.push((first.0, to.0));
                from = to;
            }
            Err(error) => panic!("{error}"),
        }
    }
    (read, damaged)
}

fn all_but(
    written: &[(RecordBatch, PathBuf, usize)],
    lost: impl Fn(usize) -> bool,
) -> Vec<RecordBatch> {
    let kept = written
        .iter()
        .enumerate()
        .filter(|(place, _)| !lost(*place));
    kept.map(|(_, (batch, ..))| batch.clone()).collect()
}

#[test]
fn every_flipped_bit_of_a_segment_costs_its_batch_and_nothing_else() {
    let (disk, mark, written) = segments();
    assert_eq!(
        read_all(&disk, mark),
        (all_but(&written, |_| false), Vec::new())
    );
    for (place, (batch, path, start)) in written.iter().enumerate() {
        for at in *start..start + batch.byte_count() {
            for bit in 0..8 {
                // The leader's epoch means nothing here, and Kafka's checksum does not cover it.
                if (12..16).contains(&(at - start)) {
                    continue;
                }
                disk.flip_bit(path, at, bit);
                let (read, damaged) = read_all(&disk, mark);
                let what = format!("bit {bit} of byte {} of batch {place}", at - start);
                let range = (batch.base_offset().0, batch.end_offset().0);
                assert_eq!(damaged, [range], "{what}");
                assert_eq!(read, all_but(&written, |other| other == place), "{what}");
                disk.flip_bit(path, at, bit);
            }
        }
    }
}

#[test]
fn every_prefix_of_a_segment_keeps_the_batches_that_are_whole_in_it() {
    let (disk, mark, written) = segments();
    let paths: std::collections::BTreeSet<&PathBuf> = written.iter().map(|(_, p, _)| p).collect();
    assert!(paths.len() > 2, "sealed ones, too");
    for path in paths {
        let whole = disk.contents(path).unwrap();
        let length_max = whole.len();
        for length in (0..length_max).rev() {
            disk.corrupt(path, |bytes| bytes.truncate(length));
            let (read, damaged) = read_all(&disk, mark);
            let lost = |place: usize| {
                let (batch, file, start): &(RecordBatch, PathBuf, usize) = &written[place];
                file == path && start + batch.byte_count() > length
            };
            assert_eq!(read, all_but(&written, lost), "{length} bytes");
            let lost = (0..written.len()).filter(|place| lost(*place));
            let lost: Vec<u64> = lost
                .flat_map(|p| [p as u64 * 2, p as u64 * 2 + 1])
                .collect();
            let named: Vec<u64> = damaged.iter().flat_map(|(from, to)| *from..*to).collect();
            assert_eq!(named, lost, "{length} bytes");
        }
        disk.corrupt(path, |bytes| *bytes = whole.clone());
    }
}

#[test]
fn an_index_that_is_missing_longer_damaged_or_of_another_segment_changes_nothing() {
    let disk = SimDisk::default();
    let open = |partition, mark| open_one(&disk, partition, 13_000, mark);
    // Batches of different sizes, in segments that are nevertheless equally long.
    let sizes = [[40, 90, 50], [90, 50, 40], [50, 40, 90], [1, 1, 1]];
    let write = |partition, sizes: &[u64]| {
        let mut files = open(partition, Mark::default());
        let mut base = 0;
        for size in sizes {
            files.append(&[batch(base, *size)]).unwrap();
            base += size;
        }
        files.take_unsynced().sync(&disk).unwrap();
        files.mark()
    };
    let mark = write(0, sizes.as_flattened());
    let turned: Vec<u64> = sizes.as_flattened()[1..].to_vec();
    write(
        1,
        &[&turned[..1], &turned[1..2], &turned[..1], &turned[1..]].concat(),
    );
    let index = |partition, base| Location::new(topic_dir(), partition).index(Offset(base));
    let read = || {
        let mut found = Vec::new();
        for from in 0..mark.end.0 {
            let reader = open(0, mark).reader(Offset(from)).expect("before the end");
            let batch = reader
                .read(1)
                .unwrap_or_else(|error| panic!("{from}: {error}"))
                .remove(0);
            assert!((batch.base_offset().0..batch.end_offset().0).contains(&from));
            found.push(batch);
        }
        found
    };
    let expected = read();
    for base in [0, 180] {
        let own = disk.contents(&index(0, base)).unwrap();
        assert!(own.len() > 40, "more than one entry");
        let longer = [&own[..], b"more"].concat();
        let mut others = vec![longer, Vec::new(), vec![0; 64]];
        others.extend(disk.contents(&index(0, 180 - base)));
        others.extend(disk.contents(&index(1, 0)));
        others.extend((0..own.len()).step_by(3).map(|at| {
            let mut bytes = own.clone();
            bytes[at] ^= 4;
            bytes
        }));
        for bytes in others {
            disk.corrupt(&index(0, base), |index| *index = bytes.clone());
            assert_eq!(read(), expected);
        }
        disk.remove(&index(0, base)).unwrap();
        assert_eq!(read(), expected);
        disk.plant(&index(0, base), &own);
    }
}

#[test]
fn files_with_other_names_than_ours_are_left_alone() {
    let (disk, mark, written) = segments();
    let names = [
        "0-5.segment",
        "0-+0000000000000000003.segment",
        "0-00000000000000000003.segment.bak",
        "0-99999999999999999999.segment",
        "00-00000000000000000003.segment",
        "notes.txt",
    ];
    for name in names {
        disk.plant(&topic_dir().join(name), b"not ours");
    }
    assert_eq!(
        read_all(&disk, mark),
        (all_but(&written, |_| false), Vec::new())
    );
    for name in names {
        assert!(disk.contents(&topic_dir().join(name)).is_some(), "{name}");
    }

    let (disk, _) = journal(3);
    for name in [
        "7.journal",
        "+00000000009.journal",
        "99999999999999999999.journal",
        "a.journal",
    ] {
        disk.plant(&journal_dir().join(name), b"not ours");
    }
    assert_eq!(replayed(&scan(&disk).unwrap()), 3);
    assert!(disk.contents(&journal_dir().join("7.journal")).is_some());
}
