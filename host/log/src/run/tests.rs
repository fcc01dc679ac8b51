//! Tests that a run returns what was written, or an error.

mod whole;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::disk::Disk;
use crate::sim::{Loss, SimDisk};

type Model = BTreeMap<Vec<u8>, (Option<Vec<u8>>, u64)>;

const NUMBER: u64 = 7;

fn path() -> PathBuf {
    Path::new("/data/state").join("7.run")
}

fn disk() -> SimDisk {
    let disk = SimDisk::default();
    disk.create_dir_all(Path::new("/data/state")).unwrap();
    disk.sync_dir(Path::new("/data/state")).unwrap();
    disk
}

fn model(count: u32) -> Model {
    let mut random = fastrand::Rng::with_seed(u64::from(count));
    let entry = |number: u32| {
        let key = format!(
            "{:0width$}",
            number * 3,
            width = 1 + (number as usize % 3) * 9
        );
        let value = match number % 7 {
            0 => None,
            5 => Some(vec![number as u8; random.usize(..20_000)]),
            _ => Some(vec![number as u8; random.usize(..200)]),
        };
        let ends_at = if number.is_multiple_of(4) {
            u64::from(number)
        } else {
            u64::MAX
        };
        (key.into_bytes(), (value, ends_at))
    };
    (0..count).map(entry).collect()
}

fn written(disk: &SimDisk, model: &Model, cipher: Option<&Arc<Cipher>>) -> io::Result<RunFacts> {
    let mut writer = RunWriter::create(disk, &path(), NUMBER, model.len() as u64, cipher.cloned())?;
    for (key, (value, ends_at)) in model {
        writer.add(&Item {
            key,
            value: value.as_deref(),
            ends_at: *ends_at,
        })?;
    }
    let facts = writer.finish()?;
    disk.sync_dir(Path::new("/data/state"))?;
    Ok(facts)
}

fn read(run: &Run, from: &[u8]) -> Result<Model, RunError> {
    let mut cursor = run.cursor(from)?;
    let mut read = Model::new();
    while let Some(item) = cursor.item()? {
        let value = item.value.map(<[u8]>::to_vec);
        read.insert(item.key.to_vec(), (value, item.ends_at));
        cursor.advance()?;
    }
    Ok(read)
}

fn open(disk: &SimDisk, cipher: Option<&Arc<Cipher>>) -> Result<Run, RunError> {
    Run::open(disk, &path(), NUMBER, cipher.cloned())
}

/// Looks up all keys, and some that do not exist.
fn found(run: &Run, model: &Model) -> Result<Model, RunError> {
    let mut keys: Vec<Vec<u8>> = model.keys().cloned().collect();
    keys.extend(model.keys().map(|key| [key, &b"x"[..]].concat()));
    keys.extend([vec![], vec![255; 40]]);
    keys.sort();
    keys.dedup();
    let sought: Vec<Sought<'_>> = keys.iter().map(|key| Sought::of(key)).collect();
    let mut found = Model::new();
    let left = run.find(&sought, Reach::Disk, |place, item| {
        assert_eq!(item.key, keys[place]);
        let value = item.value.map(<[u8]>::to_vec);
        found.insert(item.key.to_vec(), (value, item.ends_at));
    })?;
    assert!(left.is_empty());
    Ok(found)
}

#[test]
fn a_run_of_any_length_says_what_was_written() {
    let cipher = Arc::new(Cipher::parse(&format!("1:{}", "0123456789abcdef".repeat(4))).unwrap());
    for cipher in [None, Some(&cipher)] {
        for count in [0, 1, 2, 50, 3_000] {
            let (disk, model) = (disk(), model(count));
            let facts = written(&disk, &model, cipher).unwrap();
            let removals = model.values().filter(|(value, _)| value.is_none()).count();
            assert_eq!(facts.removals, removals as u64);
            assert_eq!(facts.entries, (model.len() - removals) as u64);
            let run = open(&disk, cipher).unwrap();
            assert_eq!(*run.facts(), facts);
            assert_eq!(read(&run, b"").unwrap(), model);
            assert_eq!(found(&run, &model).unwrap(), model);
            run.forget_map();
            for from in [&b"0"[..], b"00", b"1", b"5000", b"~"] {
                let mut after = model.clone();
                after.retain(|key, _| &**key >= from);
                assert_eq!(read(&run, from).unwrap(), after, "{from:?}");
            }
        }
    }
}

#[test]
fn entries_of_the_largest_size_have_a_block_of_their_own() {
    let (disk, mut model) = (disk(), model(20));
    model.insert(
        vec![b'5'; KEY_BYTES_MAX],
        (Some(vec![1; VALUE_BYTES_MAX]), 1),
    );
    model.insert(vec![b'6'; KEY_BYTES_MAX], (None, 2));
    written(&disk, &model, None).unwrap();
    let run = open(&disk, None).unwrap();
    assert_eq!(found(&run, &model).unwrap(), model);
    assert_eq!(read(&run, b"").unwrap(), model);
}

#[test]
fn what_the_system_does_not_hold_is_left_to_the_disk() {
    let (disk, model) = (disk(), model(50));
    written(&disk, &model, None).unwrap();
    let run = open(&disk, None).unwrap();
    let keys: Vec<Sought<'_>> = model.keys().map(|key| Sought::of(key)).collect();
    let left = run.find(&keys, Reach::Memory, |_, _| panic!("nothing is held"));
    assert_eq!(left.unwrap().len(), keys.len());
    assert_eq!(found(&run, &model).unwrap(), model);
    // The simulated disk cannot tell what is in memory.
    let left = run.find(&keys, Reach::Memory, |_, _| panic!("nothing is held"));
    assert_eq!(left.unwrap().len(), keys.len());
}

#[test]
fn of_each_key_the_newest_run_counts() {
    let disk = disk();
    let mut expected = Model::new();
    let runs = (0..4_u64).map(|age| {
        let path = Path::new("/data/state").join(format!("{age}.run"));
        let mut writer = RunWriter::create(&disk, &path, age, 900, None).unwrap();
        let items = model(900).into_iter().enumerate();
        let items = items.filter(|(place, _)| (*place as u64 + age).is_multiple_of(2 + age));
        for (_, (key, (value, _))) in items {
            writer
                .add(&Item {
                    key: &key,
                    value: value.as_deref(),
                    ends_at: age,
                })
                .unwrap();
            expected.insert(key, (value, age));
        }
        writer.finish().unwrap();
        Run::open(&disk, &path, age, None).unwrap()
    });
    let runs: Vec<Run> = runs.collect();
    for from in [&b""[..], b"1", b"7", b"~"] {
        let cursors = runs.iter().map(|run| run.cursor(from).unwrap());
        let mut merged = Merged::of(cursors.collect()).unwrap();
        let mut read = Model::new();
        while let Some(item) = merged.item().unwrap() {
            let value = item.value.map(<[u8]>::to_vec);
            let before = read.insert(item.key.to_vec(), (value, item.ends_at));
            assert_eq!(before, None, "a key comes once");
            merged.advance().unwrap();
        }
        let mut after = expected.clone();
        after.retain(|key, _| &**key >= from);
        assert_eq!(read, after);
    }
}

#[test]
fn a_flipped_bit_anywhere_is_told_or_changes_nothing() {
    let (disk, model) = (disk(), model(60));
    written(&disk, &model, None).unwrap();
    let bytes = disk.contents(&path()).unwrap();
    let step = if bytes.len() > 20_000 { 37 } else { 1 };
    for at in (0..bytes.len()).step_by(step) {
        disk.flip_bit(&path(), at, (at % 8) as u8);
        let looked = open(&disk, None).and_then(|run| Ok((read(&run, b"")?, found(&run, &model)?)));
        if let Ok((read, found)) = looked {
            assert_eq!((&read, &found), (&model, &model), "byte {at}");
        }
        disk.flip_bit(&path(), at, (at % 8) as u8);
    }
    assert_eq!(found(&open(&disk, None).unwrap(), &model).unwrap(), model);
}

#[test]
fn a_run_that_is_cut_or_another_one_is_refused() {
    let (disk, model) = (disk(), model(10));
    written(&disk, &model, None).unwrap();
    let bytes = disk.contents(&path()).unwrap();
    for length in 0..bytes.len() {
        disk.plant(&path(), &bytes[..length]);
        assert!(open(&disk, None).is_err(), "{length} bytes");
    }
    disk.plant(&path(), &[&bytes[..], b"\0"].concat());
    assert!(open(&disk, None).is_err());
    disk.plant(&path(), &bytes);
    assert!(open(&disk, None).is_ok());
    assert!(Run::open(&disk, &path(), NUMBER + 1, None).is_err());
}

#[test]
fn wherever_the_power_fails_a_run_is_whole_or_none() {
    let model = model(400);
    let operations = {
        let disk = disk();
        let before = disk.operation_count();
        written(&disk, &model, None).unwrap();
        disk.operation_count() - before
    };
    for at in 0..=operations {
        let disk = disk();
        disk.cut_power_after(at);
        let ended = written(&disk, &model, None).is_ok();
        for loss in Loss::NAMED {
            let mut image = disk.image();
            image.lose_power(loss);
            let after = SimDisk::with_image(image);
            match open(&after, None).and_then(|run| read(&run, b"")) {
                Ok(read) => assert_eq!(read, model),
                Err(_) => assert!(!ended, "it was durable"),
            }
        }
    }
}
