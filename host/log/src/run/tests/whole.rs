//! Tests of reading whole runs: an examination shows everything readable and reports the rest; a
//! merge leaves nothing out.

use super::*;
use crate::pace::Pace;

fn at_once() -> Pace {
    Arc::new(|_| Ok(()))
}

#[derive(Default)]
struct Examined {
    items: Model,
    faults: Vec<Fault>,
    bytes: u64,
}

impl Examined {
    /// Checks that missing keys are within the range of a reported fault.
    fn check(&self, model: &Model) {
        for (key, said) in &self.items {
            assert_eq!(model.get(key), Some(said));
        }
        let covers = |key: &Vec<u8>, fault: &Fault| match fault {
            Fault::Items { after, before, .. } => {
                let is_after = after.as_ref().is_none_or(|after| after < key);
                is_after && before.as_ref().is_none_or(|before| key < before)
            }
            Fault::Map(_) | Fault::Counts { .. } => false,
        };
        for key in model.keys().filter(|key| !self.items.contains_key(*key)) {
            assert!(self.faults.iter().any(|fault| covers(key, fault)));
        }
    }
}

fn examined(run: &Run) -> Examined {
    let mut examined = Examined::default();
    let mut see = |met: Met<'_>| match met {
        Met::Read(bytes) => examined.bytes += bytes,
        Met::Fault(fault) => examined.faults.push(fault),
        Met::Item(item) => {
            let value = item.value.map(<[u8]>::to_vec);
            let before = examined
                .items
                .insert(item.key.to_vec(), (value, item.ends_at));
            assert_eq!(before, None, "a key comes once");
        }
    };
    run.examine(&at_once(), &mut see).unwrap();
    examined
}

/// A run whose blocks were changed by `change`, with correct checksums.
fn changed(disk: &SimDisk, model: &Model, change: fn(&mut [u8])) -> Run {
    let facts = written(disk, model, None).unwrap();
    let mut bytes = disk.contents(&path()).unwrap();
    let mut at = HEADER_BYTES;
    while at < facts.index_at as usize {
        let body = at + PIECE_HEADER_BYTES;
        let end = body + body_bytes(&bytes[at..]).unwrap();
        change(&mut bytes[body..end]);
        let crc = checksum(NUMBER, at as u64, &bytes[body..end]);
        bytes[at + 4..body].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
    disk.plant(&path(), &bytes);
    open(disk, None).unwrap()
}

#[test]
fn of_a_sound_run_everything_is_shown() {
    let cipher = Arc::new(Cipher::parse(&format!("1:{}", "0123456789abcdef".repeat(4))).unwrap());
    for cipher in [None, Some(&cipher)] {
        for count in [0, 1, 2, 50, 3_000] {
            let (disk, model) = (disk(), model(count));
            let facts = written(&disk, &model, cipher).unwrap();
            let found = examined(&open(&disk, cipher).unwrap());
            assert!(found.faults.is_empty(), "{:?}", found.faults);
            assert_eq!(found.items, model);
            assert_eq!(found.bytes, facts.file_bytes);
        }
    }
}

#[test]
fn wherever_a_bit_is_flipped_the_rest_is_shown_and_what_is_lost_is_said() {
    let (disk, model) = (disk(), model(60));
    written(&disk, &model, None).unwrap();
    let bytes = disk.contents(&path()).unwrap();
    for at in (0..bytes.len()).step_by(37) {
        disk.flip_bit(&path(), at, (at % 8) as u8);
        if let Ok(run) = open(&disk, None) {
            let found = examined(&run);
            assert!(!found.faults.is_empty(), "byte {at}");
            assert_eq!(found.bytes, bytes.len() as u64);
            found.check(&model);
            let lost = model.len() - found.items.len();
            assert!(lost < 40, "byte {at}: {lost} items");
        }
        disk.flip_bit(&path(), at, (at % 8) as u8);
    }
}

#[test]
fn where_the_index_is_lost_blocks_lead_to_the_next_ones() {
    let (disk, model) = (disk(), model(3_000));
    let facts = written(&disk, &model, None).unwrap();
    disk.flip_bit(&path(), facts.index_at as usize + 20, 3);
    let found = examined(&open(&disk, None).unwrap());
    assert!(matches!(&found.faults[..], [Fault::Map(_)]));
    assert_eq!(found.items, model);
    // A block in which only the items are damaged, and the last block.
    disk.flip_bit(&path(), HEADER_BYTES + PIECE_HEADER_BYTES + 5, 0);
    disk.flip_bit(&path(), facts.index_at as usize - 1, 0);
    let found = examined(&open(&disk, None).unwrap());
    found.check(&model);
    let [first, last, Fault::Map(_)] = &found.faults[..] else {
        panic!("{:?}", found.faults);
    };
    assert!(matches!(
        first,
        Fault::Items {
            after: None,
            before: Some(_),
            ..
        }
    ));
    assert!(matches!(
        last,
        Fault::Items {
            after: Some(_),
            before: None,
            ..
        }
    ));
    // A wrong length makes the rest unreadable.
    disk.flip_bit(&path(), HEADER_BYTES + 1, 7);
    let found = examined(&open(&disk, None).unwrap());
    found.check(&model);
    assert!(found.items.is_empty());
    assert!(matches!(
        &found.faults[..],
        [Fault::Items { .. }, Fault::Map(_)]
    ));
}

#[test]
fn blocks_that_say_something_impossible_are_refused_though_their_checksums_are_right() {
    const KEY_AT: usize = 3 + 4;
    let impossible: [fn(&mut [u8]); 4] = [
        // A key that comes after the next one, a key and a value of any length, and more items than there are bytes.
        |body| body[KEY_AT] = 255,
        |body| body[2] = 255,
        |body| body[6] = 255,
        |body| body.iter_mut().rev().take(4).for_each(|byte| *byte = 255),
    ];
    let model: Model = (0..500_u32)
        .map(|key| {
            (
                format!("{key:04}").into_bytes(),
                (Some(vec![7; 100]), u64::MAX),
            )
        })
        .collect();
    for change in impossible {
        let disk = disk();
        let run = Arc::new(changed(&disk, &model, change));
        let found = examined(&run);
        assert!(matches!(found.faults[0], Fault::Items { .. }));
        found.check(&model);
        let _ = read(&run, b"");
        let _ = super::found(&run, &model);
        let target = Path::new("/data/state").join("8.run");
        let writer = RunWriter::create(&disk, &target, 8, 500, None).unwrap();
        let merged = merge(&[run], false, writer, &at_once());
        assert!(matches!(merged, Err(RunError::Damaged { .. })));
    }
}

#[test]
fn an_examination_ends_when_its_pace_does() {
    let (disk, model) = (disk(), model(3_000));
    written(&disk, &model, None).unwrap();
    let run = open(&disk, None).unwrap();
    let pace: Pace = Arc::new(|_| Err(io::ErrorKind::Interrupted.into()));
    let ended = run.examine(&pace, &mut |met| panic!("{met:?}"));
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::Interrupted);
}

/// Three runs, each of which changes and removes a part of the earlier ones.
fn three(disk: &SimDisk) -> (Vec<Arc<Run>>, Model) {
    let mut expected = Model::new();
    let runs = (0..3_u64).map(|age| {
        let path = Path::new("/data/state").join(format!("{age}.run"));
        let mut writer = RunWriter::create(disk, &path, age, 900, None).unwrap();
        for (place, (key, (value, ends_at))) in model(900).into_iter().enumerate() {
            if !(place as u64 + age).is_multiple_of(1 + age) {
                continue;
            }
            let value = value.filter(|_| !(place as u64 + age).is_multiple_of(5));
            let item = Item {
                key: &key,
                value: value.as_deref(),
                ends_at,
            };
            writer.add(&item).unwrap();
            expected.insert(key, (value, ends_at));
        }
        writer.finish().unwrap();
        Arc::new(Run::open(disk, &path, age, None).unwrap())
    });
    (runs.collect(), expected)
}

fn merged(
    disk: &SimDisk,
    runs: &[Arc<Run>],
    are_oldest: bool,
    pace: &Pace,
) -> Result<Run, RunError> {
    let items = runs.iter().map(|run| run.facts().items()).sum();
    let writer = RunWriter::create(disk, &path(), NUMBER, items, None).unwrap();
    let facts = merge(runs, are_oldest, writer, pace)?;
    let run = open(disk, None)?;
    assert_eq!(*run.facts(), facts);
    Ok(run)
}

#[test]
fn a_merged_run_says_what_its_runs_said_together() {
    let disk = disk();
    let (runs, mut expected) = three(&disk);
    let run = merged(&disk, &runs, false, &at_once()).unwrap();
    assert_eq!(read(&run, b"").unwrap(), expected);
    assert!(examined(&run).faults.is_empty());
    let run = merged(&disk, &runs, true, &at_once()).unwrap();
    expected.retain(|_, (value, _)| value.is_some());
    assert_eq!(read(&run, b"").unwrap(), expected);
    assert_eq!(run.facts().removals, 0);
    assert!(examined(&run).faults.is_empty());
    assert_eq!(found(&run, &expected).unwrap(), expected);
}

#[test]
fn a_merge_reads_everything_at_its_pace_and_ends_with_it() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let disk = disk();
    let (runs, _) = three(&disk);
    let asked = Arc::new(AtomicU64::new(0));
    let of_pace = Arc::clone(&asked);
    let counting: Pace = Arc::new(move |bytes| {
        of_pace.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    });
    merged(&disk, &runs, true, &counting).unwrap();
    let of_blocks = |run: &Arc<Run>| run.facts().index_at - HEADER_BYTES as u64;
    let all: u64 = runs.iter().map(of_blocks).sum();
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked >= all && asked < all * 2, "{asked} of {all}");
    let ended: Pace = Arc::new(|_| Err(io::ErrorKind::Interrupted.into()));
    let error = merged(&disk, &runs, true, &ended).unwrap_err();
    assert!(
        matches!(error, RunError::Io { source, .. } if source.kind() == io::ErrorKind::Interrupted)
    );
}

#[test]
fn a_merge_passes_over_no_damage() {
    let disk = disk();
    let (runs, _) = three(&disk);
    let damaged = Path::new("/data/state").join("1.run");
    let index_at = runs[1].facts().index_at as usize;
    for at in [HEADER_BYTES + 40, index_at / 2, index_at - 1, index_at + 9] {
        disk.flip_bit(&damaged, at, 1);
        for are_oldest in [false, true] {
            let error = merged(&disk, &runs, are_oldest, &at_once()).unwrap_err();
            assert!(matches!(error, RunError::Damaged { path, .. } if path == damaged));
        }
        disk.flip_bit(&damaged, at, 1);
    }
}
